"""engine.fuse folds a batch normalisation in evaluation into the convolution before it, whatever changes later."""

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo import lookup_backend

import engine
from engine.fusion import fuse, unfuse
from engine.fusion.chains import savings
from engine.fusion.chains.speed import speed
from engine.fusion.lookups import Onlooker
from tests.support.fuse_checks import FLOOR, assert_same, image, patterns, seeded
from tests.support.fuse_models import conv

SIDE = 36
CONVOLUTIONS: dict[str, Callable[[], list[nn.Module]]] = {
    "conv 3x3": lambda: [conv(3, 8)],
    "conv 3x3 reflect": lambda: [nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3, bias=False)],
    "conv 4x4 stride 2": lambda: [nn.Conv2d(3, 8, 4, 2, 1, bias=False)],
    "transposed conv 4x4 stride 2": lambda: [nn.ConvTranspose2d(3, 8, 4, 2, 1)],
    "nearest x2 + conv 3x3": lambda: [nn.Upsample(scale_factor=2), conv(3, 8, bias=False)],
}
ENDS: dict[str, Callable[[], list[nn.Module]]] = {
    "": list,
    " + relu": lambda: [nn.ReLU(True)],
    " + elu": lambda: [nn.ELU()],
    " + silu": lambda: [nn.SiLU()],
}


@pytest.fixture(autouse=True)
def everything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "speed_on_large_maps", lambda *args: 2.0)


class Calls(Onlooker):
    """Counts normalisations, torch's and the operator's."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "batch_norm" in str(function) or function is torch.ops.kiln.norm_act.default
        return function(*args, **(kwargs or {}))


def folds(model: nn.Module, x: Tensor) -> bool:
    """Whether a call of the model runs no normalisation."""
    with Calls() as mode:
        model(x)
    return not mode.count


def trained(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """With parameters and statistics that are not those of a new layer."""
    for tensor in (norm.weight, norm.running_var):
        if tensor is not None:
            nn.init.uniform_(tensor, 0.5, 1.5)
    for tensor in (norm.bias, norm.running_mean):
        if tensor is not None:
            nn.init.normal_(tensor)
    return norm


def layers(kind: str = "conv 3x3", end: str = " + relu", **options: bool) -> nn.Module:
    return nn.Sequential(*CONVOLUTIONS[kind](), trained(nn.BatchNorm2d(8, **options)), *ENDS[end](), nn.Hardtanh(-9, 9))


def fused_pair(*args: str, **options: bool) -> tuple[nn.Module, nn.Module]:
    plain, fused = (seeded(lambda: layers(*args, **options)).eval() for _ in range(2))
    assert len(fuse(fused).replaced) == 1
    return plain, fused


def maps(last: bool = False, seed: int = 0) -> Tensor:
    order = torch.channels_last if last else torch.contiguous_format
    return image(2, 3, SIDE, SIDE, seed=seed).contiguous(memory_format=order)


def assert_equal_outputs(fused: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """By the dtype rule, where nothing is recorded for a backward pass."""
    with torch.no_grad():
        exact = copy.deepcopy(unfuse(copy.deepcopy(plain))).double()(x.double())
        eager, found = plain(x), fused(x)
    assert found.dtype == eager.dtype and found.stride() == eager.stride()
    allowed = 2 * (eager.double() - exact).norm() + FLOOR * exact.norm()
    assert (found.double() - exact).norm() <= allowed


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_modes(kind: str, end: str, last: bool) -> None:
    plain, fused = fused_pair(kind, end)
    for step in range(2):
        plain.eval()
        fused.eval()
        assert_equal_outputs(fused, plain, maps(last, step))
        with torch.no_grad():
            assert folds(fused, maps(last))
        assert_same(fused, plain, maps(last, step))  # with the gradients of all parameters
        assert not folds(fused, maps(last))
        plain.train()
        fused.train()
        assert_same(fused, plain, maps(last, step))
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(fused.state_dict()[name], value, msg=name)
        with torch.no_grad():
            plain(maps(last))
            assert not folds(fused, maps(last))


def test_pattern() -> None:
    for kind in CONVOLUTIONS:
        for end in ENDS:
            (found,) = patterns(fuse(layers(kind, end)))
            assert found[1] == f"{kind} + BatchNorm2d{end}"


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}])
def test_options_of_the_normalisation(options: dict[str, bool]) -> None:
    plain, fused = fused_pair(**options)
    assert_equal_outputs(fused, plain, maps())
    with torch.no_grad():
        assert folds(fused, maps()) == ("affine" in options)
    assert_same(fused, plain, maps())


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("frozen", ["scale", "normalisation", "all"])
def test_gradients_where_the_scale_is_frozen(frozen: str, end: str) -> None:
    """Of the input, as a perceptual loss asks for, and of the convolution under frozen statistics and scales."""
    plain, fused = fused_pair("conv 3x3", end)
    for model in (plain, fused):
        {"scale": model[1].weight, "normalisation": model[1], "all": model}[frozen].requires_grad_(False)

    def outcome(model: nn.Module, kind: torch.dtype) -> list[Tensor]:
        model = copy.deepcopy(model).to(kind)
        x = maps().to(kind).requires_grad_()
        first = model(x)  # two calls before the backward pass
        y = first.mul(2) + model(x + 1)
        wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
        return [y.detach(), *torch.autograd.grad(y.square().sum(), wanted)]

    assert folds(fused, maps().requires_grad_())
    exact, eager, found = (
        outcome(m, k) for m, k in ((plain, torch.float64), (plain, torch.float32), (fused, torch.float32))
    )
    for truth, one, other in zip(exact, eager, found, strict=True):
        allowed = 2 * (one.double() - truth).norm() + FLOOR * truth.norm()
        assert (other.double() - truth).norm() <= allowed


def test_second_derivatives() -> None:
    plain, fused = fused_pair("conv 3x3", " + elu")

    def penalty(model: nn.Module) -> list[Tensor]:
        model[1].weight.requires_grad_(False)
        x = maps()[:, :, :16, :16].contiguous().requires_grad_()
        (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return [*torch.autograd.grad(first.square().sum(), [x, model[0].weight])]

    for expected, found in zip(penalty(plain), penalty(fused), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "weight": lambda model: model[0].weight.data.mul_(2),
    "one element of the weight": lambda model: model[0].weight.data[3, 1, 2].add_(1),
    "weight exchanged": lambda model: setattr(model[0], "weight", nn.Parameter(model[0].weight.detach().flip(0))),
    "bias": lambda model: model[0].bias.data.add_(1),
    "scale": lambda model: model[1].weight.data.neg_(),
    "shift": lambda model: model[1].bias.data.add_(1),
    "mean": lambda model: model[1].running_mean.add_(1),
    "variance": lambda model: model[1].running_var.mul_(4),
    "statistics exchanged": lambda model: setattr(model[1], "running_mean", torch.ones(8)),
    "a step of training": lambda model: model.train()(maps()) is model.eval(),
    "loaded": lambda model: model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()}),
    "eps": lambda model: setattr(model[1], "eps", 0.5),
    "channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "norm in training": lambda model: model[1].train(),
    "no statistics": lambda model: (setattr(model[1], "running_mean", None), setattr(model[1], "running_var", None)),
    "hook of the normalisation": lambda model: model[1].register_forward_hook(lambda module, args, y: 2 * y),
    "hook of the convolution": lambda model: model[0].register_forward_hook(lambda module, args, y: 2 * y),
    "forward of the normalisation": lambda model: setattr(model[1], "forward", torch.tanh),
    "another normalisation": lambda model: model.__setitem__(1, nn.GroupNorm(2, 8)),
    "a normalisation of another size": lambda model: model.__setitem__(1, trained(nn.BatchNorm2d(8, affine=False))),
    "double": lambda model: model.double().float(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_later_changes(name: str) -> None:
    plain, fused = fused_pair()
    assert_equal_outputs(fused, plain, maps())
    with torch.no_grad():
        before = plain(maps())
        for model in (plain, fused):
            CHANGES[name](model)
        expected = plain(maps())
        torch.testing.assert_close(fused(maps()), expected, rtol=1e-3, atol=1e-4)
        assert name in ("channels_last", "double") or not torch.allclose(expected, before, 1e-3, 1e-4)


def test_inference_mode_before_and_after() -> None:
    plain, fused = fused_pair()
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            assert folds(fused, maps())
            torch.testing.assert_close(fused(maps()), plain(maps()), rtol=1e-4, atol=1e-5)


def test_one_convolution_with_two_normalisations() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norms = conv(3, 3), nn.ModuleList(trained(nn.BatchNorm2d(3)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norms[1](self.conv(torch.relu(self.norms[0](self.conv(x))))))

    plain, fused = (seeded(Shared).eval() for _ in range(2))
    assert len(fuse(fused).replaced) == 2
    for _ in range(2):
        assert_equal_outputs(fused, plain, maps())
    copied = copy.deepcopy(fused)
    copied.conv.weight.data.zero_()
    assert_equal_outputs(fused, plain, maps())


def one_chain(kind: str) -> nn.Module:
    return seeded(lambda: nn.Sequential(*CONVOLUTIONS[kind](), trained(nn.BatchNorm2d(8)))).eval()


def norm_of(model: nn.Module) -> nn.BatchNorm2d:
    return next(part for part in model.modules() if isinstance(part, nn.BatchNorm2d))


class Products(Onlooker):
    """Keeps the arguments of the operator's calls, and the sizes of all other results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self.made: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.kiln.resize_conv_act.default:
            self.calls.append(args)
        else:
            self.made.append(result.numel())
        return result


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_no_weight_is_made(kind: str) -> None:
    """The operator gets the layer's own weight, and all that is made beside its result has a number a channel."""
    fused = one_chain(kind)
    assert len(fuse(fused).replaced) == 1
    (weight,) = (p for p in fused.parameters() if p.dim() == 4)
    x = maps(last=True)
    with torch.no_grad(), Products() as seen:
        fused(x)
    (call,) = seen.calls
    assert call[1].data_ptr() == weight.data_ptr() and call[2].shape == call[3].shape == (8,)
    assert max(seen.made) == 8 and len(seen.made) <= 5


@pytest.mark.parametrize("factor", [0.0, -3.0, math.inf, math.nan])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_scale_of_one_channel(kind: str, factor: float) -> None:
    """It stays in its channel, where numbers that are none stand at the same places."""
    plain, fused = one_chain(kind), one_chain(kind)
    fuse(fused)
    for model in (plain, fused):
        norm_of(model).weight.data[3] = factor
    with torch.no_grad():
        assert folds(fused, maps())
        expected, found = plain(maps()), fused(maps())
    assert torch.equal(found.isfinite(), expected.isfinite())
    known = expected.isfinite()
    assert known.all(3).all(2).all(0).tolist() == [c != 3 or math.isfinite(factor) for c in range(8)]
    torch.testing.assert_close(found[known], expected[known], rtol=1e-4, atol=1e-4)


class Block(nn.Module):
    """As in a ResNet."""

    def __init__(self, after: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.after = conv(3, 3), trained(nn.BatchNorm2d(3)), after

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x))) + x if self.after else torch.relu(self.norm(self.conv(x)) + x)


@pytest.mark.parametrize("after", [False, True])
def test_residual_sums(after: bool) -> None:
    plain, fused = (seeded(lambda: Block(after)).eval() for _ in range(2))
    assert len(fuse(fused).replaced) == 1
    for _ in range(2):
        with torch.no_grad():
            assert folds(fused, maps())
        assert_equal_outputs(fused, plain, maps())
        assert_same(fused, plain, maps())
        for model in (plain, fused):
            model.norm.running_var.mul_(3)
            model.conv.weight.data.neg_()


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_autocast_runs_as_written(kind: str) -> None:
    plain, fused = fused_pair(kind)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not folds(fused, maps())
        torch.testing.assert_close(fused(maps()), plain(maps()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: fuse_again(pickle.loads(pickle.dumps(model)))])
def test_copies_have_their_own_weights(copied: Callable[[nn.Module], nn.Module]) -> None:
    plain, fused = fused_pair()
    assert_equal_outputs(fused, plain, maps())
    other, expected = copied(fused), copy.deepcopy(plain)
    for model in (other, expected):
        model[0].weight.data.mul_(2)
        model[1].running_mean.add_(1)
    with torch.no_grad():
        assert folds(other, maps()) and folds(fused, maps())
    assert_equal_outputs(other, expected, maps())
    assert_equal_outputs(fused, plain, maps())


def fuse_again(model: nn.Module) -> nn.Module:
    """A model that comes back from a file is not fused."""
    assert len(fuse(model).replaced) == 1
    return model


@pytest.mark.parametrize(
    ("make", "folded"),
    [
        (lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv(3, 8, bias=False), nn.BatchNorm2d(8)), True),
        (lambda: nn.Sequential(conv(16, 16), nn.BatchNorm2d(16), nn.ReLU()), True),
        (lambda: nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU()), False),
    ],
    ids=["nearest x2", "16 channels", "3 channels"],
)
def test_compiled_code_folds_what_the_operator_takes_anyway(make: Callable[[], nn.Module], folded: bool) -> None:
    """And follows what changes after it was compiled."""
    plain, fused = (seeded(make).eval() for _ in range(2))
    for model in (plain, fused):
        torch.manual_seed(1)
        trained(norm_of(model))
    assert len(fuse(fused).replaced) == 1
    x = image(2, next(p for p in plain.parameters()).shape[1], SIDE, SIDE)
    normalisations: list[int] = []

    def backend(module: fx.GraphModule, example_inputs: list) -> Callable:
        normalisations.append(sum("batch_norm" in str(node.target) for node in module.graph.nodes))
        return lookup_backend("aot_eager")(module, example_inputs)

    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-4)
        for model in (plain, fused):
            norm_of(model).running_var.mul_(3)
    assert normalisations == [not folded]
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-4)  # a gradient of the scale is recorded
    assert normalisations == [not folded, 1]


def test_small_maps_and_wrong_sizes_run_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "speed", speed)
    plain, fused = fused_pair()
    with torch.no_grad():
        assert folds(fused, image(8, 3, 64, 64)) and not folds(fused, image(1, 3, 8, 8))
        torch.testing.assert_close(fused(image(1, 3, 8, 8)), plain(image(1, 3, 8, 8)), rtol=1e-4, atol=1e-5)
        for x in (image(0, 3, 8, 8), image(3, SIDE, SIDE), image(2, 4, SIDE, SIDE)):
            outcomes = []
            for model in (plain, fused):
                try:
                    outcomes.append(tuple(model(x).shape))
                except (RuntimeError, ValueError) as error:
                    outcomes.append(str(error))
            assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    plain, fused = (seeded(layers).eval().to(dtype) for _ in range(2))
    fuse(fused)
    with torch.no_grad():
        expected, found = plain(maps().to(dtype)), fused(maps().to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_a_result_that_is_read_twice_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(3, 8), trained(nn.BatchNorm2d(8))

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return torch.relu(self.norm(y)) + y

    plain, fused = (seeded(Twice).eval() for _ in range(2))
    assert not any("conv" in pattern and "BatchNorm2d" in pattern for _, pattern in patterns(fuse(fused)))
    assert_equal_outputs(fused, plain, maps())


def test_example_inputs_check_and_count_what_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "speed", speed)
    model = seeded(lambda: nn.Sequential(*(conv(8, 8), trained(nn.BatchNorm2d(8)), nn.ReLU()))).eval()
    report = fuse(model, example_inputs=image(8, 8, 64, 64))
    assert len(report.replaced) == 1 and "products" in report.replaced[0].reason
    assert report.products[0] == 4 * report.products[1] and report.error[0] <= report.error[2]
    assert fuse(model, example_inputs=image(1, 8, 8, 8)).skipped == [
        ("0", "conv 3x3 + BatchNorm2d + relu", "nothing to gain: slower on maps of this size")
    ]


def test_a_wrong_folded_result_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.fusion.chains import replacement

    right = replacement.fold
    monkeypatch.setattr(replacement, "fold", lambda *args: (right(*args)[0], right(*args)[1] + 1))
    model = seeded(layers).eval()
    report = engine.fuse(model, example_inputs=maps())
    assert report.replaced == [] and "the outputs differ" in report.skipped[0].reason


def test_what_is_predicted_to_be_slower_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "speed_on_large_maps", lambda weight, geometry, operations: 0.5)
    report = fuse(layers())
    assert patterns(report) == [("1", "BatchNorm2d + relu")]
    (left,) = report.skipped
    assert left.path == "0" and "folded in evaluation, predicted 0.50 times as fast" in left.reason
    assert report.refused == []
