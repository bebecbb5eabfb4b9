"""What the tests of engine.fuse share: a fused model beside itself as it was."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import engine
from engine.fusion import FuseReport

FLOOR = 2e-5  # the operator's allowance for Winograd tiles in float32


class Calls(TorchDispatchMode):
    """Counts calls of the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.kiln.resize_conv_act.default
        return function(*args, **(kwargs or {}))


def calls(model: nn.Module, *args: Tensor, **kwargs: Tensor) -> int:
    with Calls() as mode:
        model(*args, **kwargs)
    return mode.count


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return make()


def results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients of input and parameters."""
    x = x.clone().requires_grad_()
    y = model(x)
    upstream = image(*y.shape, seed=3).to(y.dtype)
    named = dict(model.named_parameters())
    found = torch.autograd.grad(y, [x, *named.values()], upstream, allow_unused=True, materialize_grads=True)
    return {"output": y.detach(), **dict(zip(["input", *named], found, strict=True))}


def assert_same(fused: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """The dtype rule: at most twice eager's error against float64, and the floor."""
    exact = results(copy.deepcopy(plain).double(), x.double())
    eager, found = results(plain, x), results(fused, x)
    for name, truth in exact.items():
        scale = truth.norm()
        assert found[name].shape == truth.shape and found[name].dtype == x.dtype, name
        allowed = 2 * (eager[name].double() - truth).norm() + FLOOR * scale
        assert (found[name].double() - truth).norm() <= allowed, name
    assert not found["output"].numel() or found["output"].stride() == eager["output"].stride()


def fused_pair(make: Callable[[], nn.Module], x: Tensor | None = None) -> tuple[nn.Module, nn.Module, FuseReport]:
    model = seeded(make)
    plain = copy.deepcopy(model)
    keys, parameters = list(model.state_dict()), list(model.parameters())
    report = engine.fuse(model)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert_same(model, plain, image() if x is None else x)
    return model, plain, report


def patterns(report: FuseReport) -> list[tuple[str, str]]:
    return [(path, pattern) for path, pattern, _ in report.replaced]


UP, HALF = "nearest x2 + conv 3x3", "nearest /2"
