"""Whatever changes a call of a layer, a fused model does what the same plain model does; before and after fusing."""

import copy
import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from engine.fusion import fuse
from tests.support.fuse_checks import calls, image, seeded
from tests.support.fuse_models import conv

Change = Callable[[nn.Module], object]


def layers() -> nn.Module:
    inner = nn.Sequential(conv(3, 4), nn.ELU())
    return nn.Sequential(nn.Upsample(scale_factor=2), inner, conv(4, 3), nn.LeakyReLU(0.2), nn.Hardtanh(-0.5, 0.5))


def shifted(x: Tensor) -> Tensor:
    return x + 1


class Written(nn.Module):
    """Calls functions, a function of this file, a method, and a convolution whose weight it reads itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weight = conv(3, 3), nn.Parameter(torch.randn(3, 3, 3, 3) / 5)

    def prepared(self, x: Tensor) -> Tensor:
        return 2 * x

    def forward(self, x: Tensor) -> Tensor:
        y = F.elu(self.conv(shifted(self.prepared(x))))
        return F.conv2d(F.pad(y, (0, 0, 1, 0)), self.weight, padding=1).relu() + torch.tanh(y).mean()


def around(self: nn.Conv2d, x: Tensor, *rest: object) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), self.weight, self.bias)


def bound(path: str, name: str, function: Callable) -> Change:
    """Sets a method of the module at a path, on the instance."""

    def change(model: nn.Module) -> None:
        part = model.get_submodule(path)
        setattr(part, name, types.MethodType(function, part))

    return change


def attribute(path: str, **values: object) -> Change:
    return lambda model: [setattr(model.get_submodule(path), name, value) for name, value in values.items()]


def doubled(self: nn.Module, *args: object, **kwargs: object) -> Tensor:
    return 2 * type(self).forward(self, *args, **kwargs)


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Scaled(Tensor):
    """A tensor that answers convolutions itself."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        return 2 * result if function in (F.conv2d, torch.conv2d) else result


def scaled_weight(model: nn.Module) -> None:
    model[2].weight = nn.Parameter(model[2].weight.detach().as_subclass(Scaled))


def reordered(model: nn.Module) -> None:
    model._modules["2"] = model._modules.pop("2")


def compiled(model: nn.Module) -> None:
    # what model[2].compile() sets, with a compiler that doubles
    model[2]._compiled_call_impl = lambda x: 2 * model[2]._call_impl(x)


def forward_hook(model: nn.Module, **options: bool) -> None:
    if options:
        model[2].register_forward_hook(lambda module, args, kwargs, y: 2 * y, with_kwargs=True, **options)
    else:
        model[2].register_forward_hook(lambda module, args, y: 2 * y)


def scaled_gradients(module: nn.Module, *gradients: tuple) -> tuple:
    return tuple(None if g is None else 2 * g for g in gradients[0])


def pruned(model: nn.Module) -> None:
    prune.l1_unstructured(model[2], "weight", 0.5)


def larger_weight(model: nn.Module) -> None:
    torch.manual_seed(3)
    model[2].weight, model[2].padding = nn.Parameter(torch.randn(3, 4, 5, 5) / 10), (2, 2)


# of one model: what would be passed over by a graph that calls the operator
OF_MODEL: dict[str, Change] = {
    "_conv_forward": bound("2", "_conv_forward", around),
    "forward of a convolution": bound("2", "forward", around),
    "forward of an activation": attribute("1.1", forward=torch.tanh),
    "forward of a resize": attribute("0", forward=lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "forward of a Sequential": bound("1", "forward", doubled),
    "_call_impl": bound("2", "_call_impl", doubled),
    "class": attribute("2", __class__=Doubled),
    "compile": compiled,
    "weight of a subclass": scaled_weight,
    "weight of another size": larger_weight,
    "padding_mode": attribute("2", padding_mode="circular", _reversed_padding_repeated_twice=[1, 1, 1, 1]),
    "no bias": attribute("2", bias=None),
    "stride": attribute("2", stride=(2, 2)),
    "dilation": attribute("2", dilation=(2, 2), padding=(2, 2)),
    "alpha": attribute("1.1", alpha=0.5),
    "slope": attribute("3", negative_slope=0.7),
    "scale_factor": attribute("0", scale_factor=3.0),
    "mode": attribute("0", mode="bilinear"),
    "order": reordered,
    "weight_norm": lambda model: nn.utils.parametrizations.weight_norm(model[2]).parametrizations.weight[0],
    "spectral_norm": lambda model: nn.utils.spectral_norm(model[2]),
    "pruning": pruned,
    "forward hook": forward_hook,
    "forward hook with arguments": lambda model: forward_hook(model, always_call=True),
    "forward pre-hook": lambda model: model[2].register_forward_pre_hook(lambda module, args: (2 * args[0],)),
    "forward pre-hook of a Sequential": lambda m: m[1].register_forward_pre_hook(lambda module, args: (2 * args[0],)),
    "backward hook": lambda model: model[2].register_full_backward_hook(scaled_gradients),
    "backward pre-hook": lambda model: model[2].register_full_backward_pre_hook(scaled_gradients),
}


def outcome(model: nn.Module) -> list[Tensor]:
    """The output and the gradient of the input; the random state, which spectral_norm draws from, is the same."""
    torch.manual_seed(5)
    x = image().requires_grad_()
    y = model(x)
    return [y.detach(), torch.autograd.grad(y.square().sum(), x)[0]]


def agree(a: list[Tensor], b: list[Tensor]) -> bool:
    same = (
        one.shape == other.shape and torch.allclose(one, other, 1e-3, 1e-4) for one, other in zip(a, b, strict=True)
    )
    return all(same)


def changed(model: nn.Module, change: Change) -> None:
    torch.manual_seed(4)
    change(model)


@pytest.mark.parametrize("after", [False, True], ids=["before fuse", "after fuse"])
@pytest.mark.parametrize("name", OF_MODEL)
def test_changes_of_a_model(name: str, after: bool) -> None:
    plain, fused = seeded(layers), seeded(layers)
    unchanged = outcome(plain)
    if after:
        fuse(fused)
        assert calls(fused, image()) == 2
    for model in (plain, fused):
        changed(model, OF_MODEL[name])
    if not after:
        fuse(fused)
    expected = outcome(plain)
    assert name in ("weight_norm", "spectral_norm") or not agree(expected, unchanged)
    assert agree(outcome(fused), expected)


def method(kind: type, name: str) -> tuple[object, str, Callable]:
    own = getattr(kind, name)
    return kind, name, lambda self, *args, **kwargs: _twice(own(self, *args, **kwargs))


def function(place: object, name: str) -> tuple[object, str, Callable]:
    own = getattr(place, name)
    return place, name, lambda *args, **kwargs: _twice(own(*args, **kwargs))


def _twice(value: object) -> object:
    return 2 * value if isinstance(value, Tensor) else value


class OtherFunctional(types.SimpleNamespace):
    """In place of torch.nn.functional."""

    def __getattr__(self, name: str) -> object:
        return function(F, name)[2] if name == "conv2d" else getattr(F, name)


THIS = __import__("sys").modules[__name__]
# what a module, or torch's own code, finds by a name: (model, place, name, what takes its place)
BY_NAME: dict[str, Callable[[], tuple]] = {
    "Conv2d._conv_forward": lambda: (layers, *method(nn.Conv2d, "_conv_forward")),
    "Conv2d.forward": lambda: (layers, *method(nn.Conv2d, "forward")),
    "Conv2d.__call__": lambda: (layers, *method(nn.Conv2d, "__call__")),
    "ELU.forward": lambda: (layers, *method(nn.ELU, "forward")),
    "LeakyReLU.forward": lambda: (layers, nn.LeakyReLU, "forward", lambda self, x: torch.tanh(x)),
    "Upsample.forward": lambda: (layers, *method(nn.Upsample, "forward")),
    "Sequential.forward": lambda: (layers, *method(nn.Sequential, "forward")),
    "Module.__call__": lambda: (layers, *method(nn.Module, "__call__")),
    "Module._call_impl": lambda: (layers, *method(nn.Module, "_call_impl")),
    "Module.__getattr__": lambda: (layers, *method(nn.Module, "__getattr__")),
    "F.conv2d": lambda: (layers, *function(F, "conv2d")),
    "F.elu": lambda: (layers, *function(F, "elu")),
    "F.leaky_relu": lambda: (layers, *function(F, "leaky_relu")),
    "F.interpolate": lambda: (layers, *function(F, "interpolate")),
    "torch._C._nn.elu": lambda: (layers, *function(torch._C._nn, "elu")),
    "F of torch's convolutions": lambda: (layers, nn.modules.conv, "F", OtherFunctional()),
    "F.elu, called by a forward": lambda: (Written, *function(F, "elu")),
    "F.conv2d, called by a forward": lambda: (Written, *function(F, "conv2d")),
    "F.pad, called by a forward": lambda: (Written, *function(F, "pad")),
    "torch.tanh, called by a forward": lambda: (Written, *function(torch, "tanh")),
    "Tensor.relu, called by a forward": lambda: (Written, *method(Tensor, "relu")),
    "a function of the forward's file": lambda: (Written, *function(THIS, "shifted")),
    "a method of the forward's class": lambda: (Written, *method(Written, "prepared")),
    "the forward of the class": lambda: (Written, *method(Written, "forward")),
}


@pytest.mark.parametrize("after", [False, True], ids=["before fuse", "after fuse"])
@pytest.mark.parametrize("name", BY_NAME)
def test_names_that_lead_elsewhere(name: str, after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    make, place, attribute_name, other = BY_NAME[name]()
    plain, fused = seeded(make), seeded(make)
    unchanged = outcome(plain)
    if after:
        fuse(fused)
        assert calls(fused, image()) == 2
    with monkeypatch.context() as patched:
        patched.setattr(place, attribute_name, other)
        if not after:
            fuse(fused)
        expected, found = outcome(plain), outcome(fused)
    assert not agree(expected, unchanged) and agree(found, expected)
    assert agree(outcome(fused), unchanged)
    assert calls(fused, image()) == 2 or not after


@pytest.mark.parametrize("name", ["prepared", "forward"])
def test_methods_of_a_fused_instance(name: str) -> None:
    plain, fused = seeded(Written), seeded(Written)
    fuse(fused)
    own = getattr(Written, name)
    for model in (plain, fused):
        setattr(model, name, types.MethodType(lambda self, x: 3 * own(self, x), model))
    assert agree(outcome(fused), outcome(plain)) and calls(fused, image()) == 0


GLOBAL_HOOKS: dict[str, Callable] = {
    "register_module_forward_hook": lambda module, args, y: 2 * y,
    "register_module_forward_pre_hook": lambda module, args: (2 * args[0],),
    "register_module_full_backward_hook": scaled_gradients,
    "register_module_full_backward_pre_hook": scaled_gradients,
}


@pytest.mark.parametrize("after", [False, True], ids=["before fuse", "after fuse"])
@pytest.mark.parametrize("name", GLOBAL_HOOKS)
def test_hooks_of_every_module(name: str, after: bool) -> None:
    plain, fused = seeded(layers), seeded(layers)
    unchanged = outcome(plain)
    if after:
        fuse(fused)
    handle = getattr(torch_module, name)(GLOBAL_HOOKS[name])
    try:
        if not after:
            fuse(fused)
        expected, found = outcome(plain), outcome(fused)
    finally:
        handle.remove()
    assert not agree(expected, unchanged) and agree(found, expected)
    assert agree(outcome(fused), unchanged)
    assert calls(fused, image()) == 2


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, called, types, args=(), kwargs=None):
        result = called(*args, **(kwargs or {}))
        return 2 * result if called in (F.conv2d, F.elu, F.leaky_relu) else result


class DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, called, types, args=(), kwargs=None):
        result = called(*args, **(kwargs or {}))
        return 2 * result if called is torch.ops.aten.convolution.default else result


@pytest.mark.parametrize("after", [False, True], ids=["before fuse", "after fuse"])
@pytest.mark.parametrize("mode", [FunctionMode, DispatchMode])
def test_modes_that_change_operations(mode: type, after: bool) -> None:
    plain, fused = seeded(layers), seeded(layers)
    unchanged = outcome(plain)
    if after:
        fuse(fused)
    with mode():
        if not after:
            fuse(fused)
        expected, found = outcome(plain), outcome(fused)
    assert not agree(expected, unchanged) and agree(found, expected)
    assert agree(outcome(fused), unchanged)
    assert calls(fused, image()) == (2 if after else 0)


def test_a_default_device_changes_nothing() -> None:
    fused = seeded(layers)
    with torch.device("cpu"):
        fuse(fused)
        assert calls(fused, image()) == 2


def test_inputs_of_a_subclass() -> None:
    plain, fused = seeded(layers), seeded(layers)
    fuse(fused)
    with torch.no_grad():
        x = image().as_subclass(Scaled)
        expected, found = plain(x), fused(x)
        assert type(expected) is type(found) is Scaled
        expected, found = (y.as_subclass(Tensor) for y in (expected, found))
        assert not torch.allclose(expected, plain(image()), 1e-3, 1e-4) and torch.equal(found, expected)


def test_parameters_lent_for_one_call() -> None:
    plain, fused = seeded(layers), seeded(layers)
    fuse(fused)
    other = {name: 0.5 * value.detach() for name, value in plain.named_parameters()}
    expected = torch.func.functional_call(plain, other, (image(),))
    torch.testing.assert_close(torch.func.functional_call(fused, other, (image(),)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jacrev", "ensemble"])
def test_transforms_of_functions(transform: str) -> None:
    plain, fused = seeded(layers), seeded(layers)
    fuse(fused)

    def transformed(model: nn.Module) -> Tensor:
        weights = {name: value.detach() for name, value in model.named_parameters()}
        call = lambda weights, x: torch.func.functional_call(model, weights, (x,))  # noqa: E731
        if transform == "grad":
            return torch.func.grad(lambda w: call(w, image()).square().sum())(weights)["2.weight"]
        if transform == "vmap":
            return torch.func.vmap(model)(image(4, 2, 3, 5, 5))
        if transform == "jacrev":
            return torch.func.jacrev(model)(image(1, 3, 3, 3))
        several = {name: torch.stack([value, 0.5 * value]) for name, value in weights.items()}
        return torch.func.vmap(call, in_dims=(0, None))(several, image())

    torch.testing.assert_close(transformed(fused), transformed(plain), rtol=1e-3, atol=1e-4)


def test_accelerate_offloads_weights() -> None:
    accelerate = pytest.importorskip("accelerate")
    expected = seeded(layers)(image())
    for after in (False, True):
        model = seeded(layers)
        if after:
            fuse(model)
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        if not after:
            fuse(model)
        assert model[2].weight.is_meta
        torch.testing.assert_close(model(image()), expected)


def test_halves_of_autocast() -> None:
    """Under autocast torch resizes in float32: the result's dtype is that of the plain model."""
    for make in (layers, lambda: nn.Sequential(conv(3, 4), nn.ELU(), nn.Upsample(scale_factor=0.5))):
        plain, fused = seeded(make), seeded(make)
        fuse(fused)
        with torch.autocast("cpu", torch.bfloat16):
            expected, found = plain(image()), fused(image())
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found.float(), expected.float(), rtol=0.05, atol=0.02)


ENDS = {
    "elu": lambda: [nn.ELU()],
    "leaky_relu": lambda: [nn.LeakyReLU(0.2)],
    "silu": lambda: [nn.SiLU()],
    "relu, nearest /2": lambda: [nn.ReLU(), nn.Upsample(scale_factor=0.5)],
    "tanh, nearest /2": lambda: [nn.Tanh(), nn.Upsample(scale_factor=0.5)],
}
WRITES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "y.add_": lambda x, y: y.add_(1),
    "relu_": lambda x, y: torch.relu_(y),
    "y[:, 0] =": lambda x, y: y.select(1, 0).fill_(0.5).new_zeros(()) + y,
    "x.add_": lambda x, y: y + 0 * x.add_(1).sum(),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("end", ENDS)
def test_in_place_operations_on_what_a_model_takes_and_gives(end: str, write: str) -> None:
    """Where torch's layers keep for the backward pass neither what is written to, nor may the fused model."""
    resizes = [] if "nearest" in end or write != "x.add_" else [nn.Upsample(scale_factor=2)]
    if write == "x.add_" and not resizes:
        pytest.skip("the plain model keeps its input too")
    plain = seeded(lambda: nn.Sequential(*resizes, conv(3, 4), *ENDS[end]())).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    fuse(fused)

    def written(model: nn.Module) -> list[Tensor]:
        first = image(2, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
        x = first * 1
        y = WRITES[write](x, model(x))
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [first, *model.parameters()])]

    assert calls(fused, image()) == 1
    assert agree(written(fused), written(plain))
