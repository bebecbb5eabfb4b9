"""Random changes of a model before and after it is fused, in any order: it does what the same plain model does."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from engine.fusion import fuse
from tests.fusion.test_changed_calls import OF_MODEL, agree, changed, layers
from tests.fuzz.budget import examples
from tests.support.fuse_checks import image, seeded

CHANGES = st.lists(st.sampled_from(sorted(OF_MODEL)), max_size=3)
SHAPES = st.tuples(st.integers(1, 3), st.just(3), st.integers(2, 9), st.integers(2, 9))


def outcome(model: nn.Module, x: Tensor) -> list[Tensor] | type:
    """The output and the gradient of the input, or the kind of error where the changes do not go together."""
    torch.manual_seed(5)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    try:
        y = model(x)
        return [y.detach(), torch.autograd.grad(y.square().sum(), x)[0]]
    except Exception as error:
        # torch's layers may raise anything
        return type(error)


def applied(model: nn.Module, names: list[str]) -> list[type | None]:
    """Makes the changes; those that do not go together with the ones before are told by their errors."""
    errors: list[type | None] = []
    for name in names:
        try:
            changed(model, OF_MODEL[name])
            errors.append(None)
        except Exception as error:
            # a change of what another change took away
            errors.append(type(error))
    return errors


@given(before=CHANGES, after=CHANGES, shape=SHAPES, last=st.booleans(), again=st.booleans())
@examples(short=20, full=3000)
def test_changes_in_any_order(
    before: list[str], after: list[str], shape: tuple[int, ...], last: bool, again: bool
) -> None:
    plain, fused = seeded(layers), seeded(layers)
    x = image(*shape).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert applied(plain, before) == applied(fused, before)
    fuse(fused)
    assert applied(plain, after) == applied(fused, after)
    if again:
        fuse(fused)
    expected, found = outcome(plain, x), outcome(fused, x)
    if isinstance(expected, type):
        assert found is expected
    else:
        assert not isinstance(found, type) and agree(found, expected)
