"""The GPU kernels of resize_conv_act without a GPU, interpreted: every sample of its spec against float64.

The dtypes take turns, for they take the same way through the kernels: of the 3x3 samples with padding 1 half run in
float32, of the many others a third.
"""

import pytest

from engine.kernels._spec import Sample
from engine.kernels.resize_conv_act.spec import SPEC, WHERE
from tests.support.interpreted import DTYPES, LARGE, cases, run_interpreted


def plain(sample: Sample) -> bool:
    """Whether it is 3x3 with padding 1, with any resize."""
    return sample.shapes["weight"][-1] == 3 and not sample.options.keys() & set(WHERE[1:])


def in_turn(dtype: str) -> list[str]:
    """The cases of a dtype."""
    first = sum(map(plain, SPEC.samples))
    assert all(map(plain, SPEC.samples[:first])), "those of other kinds come last"
    names, turn = cases([LARGE], dtype), DTYPES.index(dtype)
    of_plain = {"float32": slice(0, None, 2), "bfloat16": slice(1, None, 4), "float16": slice(3, None, 4)}[dtype]
    return names[:first][of_plain] + names[first + turn :: len(DTYPES)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_operator_interpreted(dtype: str):
    run_interpreted(in_turn(dtype))
