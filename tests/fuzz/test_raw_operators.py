"""torch.ops.kiln.* called directly with arguments that do not fit: refused, or the right result; never a crash."""

import warnings

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.budget import examples
from tests.support.raw_calls import RawCall, changes, judge, valid_calls


@st.composite
def misfits(draw: st.DrawFn) -> tuple[list[str], RawCall]:
    """A valid call with one to three arguments changed, one of them maybe twice; and what was changed."""
    calls = valid_calls()
    call = draw(st.sampled_from(calls[draw(st.sampled_from(sorted(calls)))]))
    words = [call.name]
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, len(call.arguments) - 1))
        try:
            word, value = draw(st.sampled_from(list(changes(call.arguments[position]))))
        except (RuntimeError, NotImplementedError):  # torch cannot change what was changed before, a sparse tensor
            continue
        words.append(f"{call.overload._schema.arguments[position].name}: {word}")
        call = call.with_argument(position, value)
    return words, call


@examples(short=300, full=20_000)
@given(misfits())
def test_misfits(drawn):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: a complex tensor is made real
        judge(drawn[1])
