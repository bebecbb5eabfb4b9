"""engine.fuse takes residual sums into the operator before them: results, gradients, statistics, writes."""

import copy
import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from engine.fusion import FuseReport, fuse
from engine.fusion.chains import normalisation, savings
from engine.fusion.lookups import Onlooker
from tests.support.fuse_checks import assert_same, image, patterns, seeded
from tests.support.fuse_models import SumsInARow, conv

NORMS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4, affine=True),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
}
# what a sum may follow
LAYERS: dict[str, Callable[[], nn.Module]] = {"BatchNorm2d": NORMS["BatchNorm2d"], "conv 3x3": lambda: conv(4, 4)}


def added_in_place(y: Tensor, x: Tensor) -> Tensor:
    y += x
    return y


SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "y + x": operator.add,
    "x + y": lambda y, x: x + y,
    "y += x": added_in_place,
    "torch.add": torch.add,
    "y.add": lambda y, x: y.add(x),
    "y.add_": lambda y, x: y.add_(x),
}


@pytest.fixture(autouse=True)
def everything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "speed_on_large_maps", lambda *args: 2.0)
    monkeypatch.setattr(normalisation, "LEAST_NUMBERS", dict.fromkeys(normalisation.LEAST_NUMBERS, (0, 0)))


class Sums(Onlooker):
    """Counts calls of norm_act and resize_conv_act with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        place = {torch.ops.kiln.norm_act.default: 3, torch.ops.kiln.resize_conv_act.default: 5}.get(function)
        self.count += place is not None and args[place] is not None
        return function(*args, **(kwargs or {}))


def sums(model: nn.Module, x: Tensor) -> int:
    with Sums() as mode:
        model(x)
    return mode.count


class Block(nn.Module):
    """A block of ResNet whose shortcut is computed last.

    add: adds the shortcut; end: the layer after the sum; before: the layer before it
    """

    def __init__(self, norm: str, add: str, end: nn.Module, before: nn.Module | None = None, shortcut: bool = True):
        super().__init__()
        self.conv1, self.norm1, self.relu = conv(4, 4, bias=False), NORMS[norm](), nn.ReLU(True)
        self.conv2, self.norm2 = conv(4, 4, bias=False), NORMS[norm]()
        self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), NORMS[norm]()) if shortcut else None
        self.add, self.end, self.before = SUMS[add], end, before or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        if not isinstance(self.before, nn.Identity):
            y = self.before(y)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.end(self.add(y, shortcut))


def maps(last: bool = False, seed: int = 0) -> Tensor:
    order = torch.channels_last if last else torch.contiguous_format
    return image(2, 4, 32, 32, seed=seed).contiguous(memory_format=order)


def pair(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module, FuseReport]:
    plain, fused = seeded(make), seeded(make)
    return plain, fused, fuse(fused)


def assert_same_in_all_modes(fused: nn.Module, plain: nn.Module, last: bool) -> None:
    for training in (True, False, True):
        fused.train(training)
        plain.train(training)
        assert_same(fused, plain, maps(last))
        with torch.no_grad():
            expected, found = plain(maps(last)), fused(maps(last))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert found.stride() == expected.stride()
        for (name, value), other in zip(plain.state_dict().items(), fused.state_dict().values(), strict=True):
            torch.testing.assert_close(other, value, msg=name)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("add", SUMS)
@pytest.mark.parametrize("norm", NORMS)
def test_blocks(norm: str, add: str, last: bool) -> None:
    plain, fused, report = pair(lambda: nn.Sequential(conv(4, 4), Block(norm, add, nn.ReLU(True)), nn.Hardtanh(-9, 9)))
    assert report.refused == []
    assert any(pattern.endswith(f"{norm} + residual + relu") for _, pattern in patterns(report))
    assert sums(fused, maps(last)) == 1
    plain(maps(last))
    assert_same_in_all_modes(fused, plain, last)


@pytest.mark.parametrize("norm", NORMS)
def test_without_an_activation_and_after_one(norm: str) -> None:
    ends = [(nn.Hardtanh(-9, 9), None, "residual"), (nn.Hardtanh(-9, 9), nn.ELU(), "elu + residual")]
    for end, before, pattern in ends:
        plain, fused, report = pair(lambda end=end, before=before: Block(norm, "x + y", end, before, shortcut=False))
        assert any(found.endswith(f"{norm} + {pattern}") for _, found in patterns(report))
        assert sums(fused, maps()) == 1
        plain(maps())
        assert_same_in_all_modes(fused, plain, last=False)


class ConvBlock(nn.Module):
    """end(conv(elu(conv(x))) + shortcut(x)). up: the second convolution follows nearest x2, and so does the shortcut"""

    def __init__(self, add: str, end: nn.Module, up: bool = False):
        super().__init__()
        self.first, self.second, self.shortcut = conv(4, 4), conv(4, 4), nn.Conv2d(4, 4, 1)
        self.add, self.end, self.up = SUMS[add], end, up

    def forward(self, x: Tensor) -> Tensor:
        y, shortcut = nn.functional.elu(self.first(x)), self.shortcut(x)
        if self.up:
            y, shortcut = (nn.functional.interpolate(t, scale_factor=2) for t in (y, shortcut))
        return self.end(self.add(self.second(y), shortcut))


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("add", SUMS)
@pytest.mark.parametrize("end", [nn.ReLU(True), nn.LeakyReLU(0.1), nn.SiLU(), nn.Hardtanh(-9, 9)], ids=str)
def test_sums_after_convolutions(end: nn.Module, add: str, last: bool) -> None:
    for up in (False, True):
        plain, fused, report = pair(lambda up=up: nn.Sequential(ConvBlock(add, end, up), nn.Hardtanh(-9, 9)))
        activation = {nn.ReLU: " + relu", nn.LeakyReLU: " + leaky_relu", nn.SiLU: " + silu"}.get(type(end), "")
        expected = "nearest x2 + " * up + f"conv 3x3 + residual{activation}"
        assert ("0.second", expected) in patterns(report)
        assert sums(fused, maps(last)) == 1
        assert_same_in_all_modes(fused, plain, last)


def test_autocast_adds_in_the_dtype_of_the_sum() -> None:
    plain, fused, _ = pair(lambda: ConvBlock("x + y", nn.ReLU()))
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = plain(maps()), fused(maps())
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


class Cyclegan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3, bias=False), nn.InstanceNorm2d(4)]
        self.body = nn.Sequential(*layers, nn.ReLU(True), *copy.deepcopy(layers))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_body_in_a_sequential(last: bool) -> None:
    plain, fused, report = pair(lambda: nn.Sequential(Cyclegan(), Cyclegan()))
    assert [pattern for _, pattern in patterns(report)].count("InstanceNorm2d + residual") == 2
    assert sums(fused, maps(last)) == 2
    assert_same_in_all_modes(fused, plain, last)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_a_sum_adds_the_result_of_another(last: bool) -> None:
    plain, fused, report = pair(SumsInARow)
    assert [pattern for _, pattern in patterns(report)] == [
        f"{norm} + residual + relu" for norm in ("BatchNorm2d", "InstanceNorm2d")
    ]
    assert sums(fused, maps(last)) == 2
    plain(maps(last))
    assert_same_in_all_modes(fused, plain, last)


class Other(nn.Module):
    """Adds something that is no image of the same kind."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = LAYERS[layer]()

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(self.layer(x) + torch.neg(residual))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "residual", [image(2, 4, 1, 1), image(4, 1, 1), image(2, 4, 32, 32).double(), image(2, 4, 32, 32).half()]
)
def test_residuals_of_another_kind_are_added_as_written(residual: Tensor, layer: str) -> None:
    plain, fused, report = pair(lambda: Other(layer))
    assert patterns(report) == [("layer", f"{layer} + residual + relu")]
    expected, found = plain(maps(), residual), fused(maps(), residual)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Writes(nn.Module):
    """Writes into what a sum reads, or into the sum."""

    def __init__(self, layer: str, place: str) -> None:
        super().__init__()
        self.layer, self.place = LAYERS[layer](), place

    def forward(self, x: Tensor) -> Tensor:
        y, residual = x * 2, x * 3
        if self.place == "sum into the residual":
            residual += self.layer(y)
            return torch.relu(residual)
        z = self.layer(y)
        if self.place == "input":
            y.add_(1)
        z = torch.relu(z + residual)
        if self.place == "residual":
            residual.mul_(2)
        elif self.place == "view of the residual":
            residual.view(-1).mul_(2)
        elif self.place == "result":
            z = z + 0
            z.mul_(2)
        return z + residual + y


REASONS = {
    "sum into the residual": "it is added in place to the residual",
    "residual": "the residual is changed in place",
    "view of the residual": "the residual is changed in place",
    "result": "",
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("place", [*REASONS, "input"])
def test_writes_in_the_forward(place: str, layer: str) -> None:
    plain, fused, report = pair(lambda: Writes(layer, place))
    if layer == "BatchNorm2d" or place != "input":
        reasons = [entry.reason for entry in report.skipped if not entry.reason.startswith("nothing to gain")]
        assert reasons == ([REASONS[place]] if REASONS.get(place) else [])
    with torch.no_grad():
        torch.testing.assert_close(fused(maps()), plain(maps()), rtol=1e-4, atol=1e-5)
    if place == "input":
        return  # torch itself keeps the input of either layer
    x, other = maps().requires_grad_(), maps().requires_grad_()
    expected = torch.autograd.grad(plain(x).square().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(fused(other).square().sum(), other), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("write", [lambda x, y: x.add_(1), lambda x, y: y.mul_(2)], ids=["residual", "result"])
def test_in_place_operations_outside(write: Callable[[Tensor, Tensor], object], layer: str) -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = LAYERS[layer]()

        def forward(self, x: Tensor, residual: Tensor) -> Tensor:
            return nn.functional.elu(self.layer(x) + residual)

    plain, fused, _ = pair(Added)

    def gradient(model: nn.Module) -> Tensor:
        first = maps().requires_grad_()
        residual = first * 1
        y = model(first * 2, residual)
        write(residual, y)
        return torch.autograd.grad(y.square().sum(), first)[0]

    torch.testing.assert_close(gradient(fused), gradient(plain), rtol=1e-3, atol=1e-4)


def test_a_normalisation_that_is_called_again_before_the_sum() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4, momentum=0.5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return torch.relu(y + torch.sigmoid(self.norm(2 * x + 1)))

    plain, fused, report = pair(Twice)
    assert report.refused[0].reason == "the normalisation is called again before the sum"
    with torch.no_grad():  # torch itself keeps the statistics, which the second call moves
        torch.testing.assert_close(fused(maps()), plain(maps()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())


def test_compiles_to_one_graph() -> None:
    plain, fused, _ = pair(lambda: Block("BatchNorm2d", "y += x", nn.ReLU(True)))
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(maps()), plain(maps()), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())
