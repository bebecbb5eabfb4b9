"""Runs a fused model beside the same model unfused, for the tests of engine.fuse."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import engine
from engine.fusion import FuseReport
from engine.fusion.lookups import Onlooker

FLOOR = 2e-5  # the operator's allowance for Winograd tiles in float32
ROUNDINGS = 16  # of a sum whose terms cancel


class Calls(Onlooker):
    """Counts calls of the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.kiln.resize_conv_act.default
        return function(*args, **(kwargs or {}))


def calls(model: nn.Module, *args: Tensor, **kwargs: Tensor) -> int:
    """How often one call of the model calls the operator."""
    with Calls() as mode:
        model(*args, **kwargs)
    return mode.count


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A new model whose weights are always the same."""
    torch.manual_seed(1)
    return make()


def results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output, and the gradients of the input and of the parameters, by name; those of the input under "input"."""
    x = x.clone().requires_grad_()
    y = model(x)
    upstream = image(*y.shape, seed=3).to(y.dtype)
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(y, [x, *named.values()], upstream, allow_unused=True, materialize_grads=True)
    return {"output": y.detach(), **dict(zip(["input", *named], gradients, strict=True))}


def assert_same(fused: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """Asserts the dtype rule: errors against float64 are at most twice eager's, and the floor."""
    exact = results(copy.deepcopy(plain).double(), x.double())
    eager, computed = results(plain, x), results(fused, x)
    for name, truth in exact.items():
        assert computed[name].shape == truth.shape and computed[name].dtype == x.dtype, name
        allowed = 2 * (eager[name].double() - truth).norm() + FLOOR * truth.norm()
        if name.endswith("bias") and truth.norm() < 1e-12 * (
            terms := exact[name.removesuffix("bias") + "weight"].norm()
        ):
            # zero but for the rounding of its sum, before a normalisation in training; its terms are like the weight's
            allowed += ROUNDINGS * torch.finfo(x.dtype).eps * terms
        assert (computed[name].double() - truth).norm() <= allowed, name
    assert not computed["output"].numel() or computed["output"].stride() == eager["output"].stride()


def fused_pair(make: Callable[[], nn.Module], x: Tensor | None = None) -> tuple[nn.Module, nn.Module, FuseReport]:
    """A fused model, a copy of it that is not, and the report, after a check that both give the same results."""
    model = seeded(make)
    plain = copy.deepcopy(model)
    keys, parameters = list(model.state_dict()), list(model.parameters())
    report = engine.fuse(model)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert_same(model, plain, image() if x is None else x)
    return model, plain, report


def patterns(report: FuseReport) -> list[tuple[str, str]]:
    """(path, pattern) of what was replaced."""
    return [(path, pattern) for path, pattern, _ in report.replaced]


UP, HALF = "nearest x2 + conv 3x3", "nearest /2"
