"""engine.fuse on every kind of convolution: kernels, strides, borders, paddings before it, transposed ones."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.fusion import fuse, inductor_pass
from engine.fusion.chains import savings
from tests.support.fuse_checks import assert_same, calls, fused_pair, image, patterns, seeded
from tests.support.fuse_models import conv

MODES = ("reflect", "replicate", "circular")
PADS = (nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d, nn.ZeroPad2d)
KINDS: dict[str, Callable[[], nn.Module]] = {
    "conv 5x5": lambda: nn.Conv2d(3, 4, 5, padding="same"),
    "conv 2x2 padding 1": lambda: nn.Conv2d(3, 4, 2, padding=1),
    "conv 4x4 stride 2": lambda: nn.Conv2d(3, 4, 4, 2, 1, bias=False),
    "conv 7x7 padding 0": lambda: nn.Conv2d(3, 4, 7, padding="valid"),
    **{f"conv 3x3 {mode}": lambda mode=mode: conv(3, 4, padding_mode=mode) for mode in MODES},
    "conv 3x3 stride 2 padding 2 reflect": lambda: nn.Conv2d(3, 4, 3, 2, 2, padding_mode="reflect"),
    "transposed conv 4x4 stride 2": lambda: nn.ConvTranspose2d(3, 4, 4, 2, 1, bias=False),
    "transposed conv 3x3 stride 2": lambda: nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1),
    "transposed conv 4x4 padding 0": lambda: nn.ConvTranspose2d(3, 4, 4),
}


@pytest.fixture
def everything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The predicted speed of these small convolutions does not matter here."""
    monkeypatch.setattr(savings, "speed_on_large_maps", lambda *args: 2.0)


@pytest.mark.usefixtures("everything_pays")
@pytest.mark.parametrize("name", KINDS)
def test_every_kind(name: str) -> None:
    model, plain, report = fused_pair(lambda: nn.Sequential(KINDS[name](), nn.LeakyReLU(0.2, True)))
    assert patterns(report) == [("0", f"{name} + leaky_relu")] and report.refused == []
    assert calls(model, image()) == 1
    for x in (image(1, 3, 9, 8), image(0, 3, 9, 8), image(3, 9, 8)):
        assert_same(model, plain, x)
    last = torch.channels_last
    assert_same(model.to(memory_format=last), plain.to(memory_format=last), image().to(memory_format=last))


@pytest.mark.usefixtures("everything_pays")
@pytest.mark.parametrize("pad", PADS)
def test_padding_before_a_convolution_is_taken_in(pad: type) -> None:
    name = {nn.ReflectionPad2d: " reflect", nn.ReplicationPad2d: " replicate", nn.CircularPad2d: " circular"}.get(
        pad, ""
    )
    model, plain, report = fused_pair(lambda: nn.Sequential(pad(1), nn.Conv2d(3, 4, 3), nn.ReLU()))
    assert patterns(report) == [("1", f"conv 3x3{name} + relu")] and report.refused == []
    model[0].padding = plain[0].padding = (2, 2, 2, 2)
    assert calls(model, image()) == 0 and torch.equal(model(image()), plain(image()))


class Padded(nn.Module):
    """Pads by functions, in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.weight = nn.Conv2d(3, 4, 3), conv(4, 4), nn.Parameter(torch.randn(4, 3, 4, 4) / 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.pad(x, [1, 1, 1, 1], "reflect")))
        x = F.relu(self.second(F.pad(x, (1, 1, 1, 1))))
        x = F.elu(F.conv_transpose2d(x, self.weight, None, 2, 1))
        return F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2, padding=1).tanh()


@pytest.mark.usefixtures("everything_pays")
def test_functions() -> None:
    model, _, report = fused_pair(Padded)
    names = ["conv 3x3 reflect + relu", "conv 3x3 padding 2 + relu", "transposed conv 4x4 stride 2 + elu"]
    assert [pattern for _, pattern in patterns(report)] == names and calls(model, image()) == 3
    assert [(pattern, reason) for _, pattern, reason in report.skipped] == [
        ("conv + tanh", "its weight is computed in forward")
    ]


@pytest.mark.usefixtures("everything_pays")
def test_pass_for_compile_takes_padding_in() -> None:
    model, seen = seeded(Padded), []

    def backend(module: torch.fx.GraphModule, example_inputs: list) -> Callable:
        inductor_pass(module.graph)
        module.recompile()
        seen.extend(getattr(node.target, "__name__", "") for node in module.graph.nodes)
        return module.forward

    with torch.no_grad():
        found = torch.compile(model, fullgraph=True, backend=backend)(image())
    torch.testing.assert_close(found, model(image()), rtol=1e-4, atol=1e-5)
    assert seen.count("run_chain") == 3 and "pad" not in seen


class Consumers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pad, self.conv = nn.ReflectionPad2d(1), nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        padded = self.pad(x)
        return F.elu(self.conv(padded)) + padded.mean()


@pytest.mark.parametrize(
    ("make", "pattern", "reason"),
    [
        (Consumers, "pad + conv 3x3 padding 0", "the padded tensor is used elsewhere"),
        (
            lambda: nn.Sequential(nn.ReflectionPad2d((0, 1, 0, 1)), nn.Conv2d(3, 3, 3), nn.ELU()),
            "pad + conv 3x3 padding 0",
            "padding (0, 1, 0, 1)",
        ),
        (
            lambda: nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.Conv2d(3, 3, 3), nn.ELU()),
            "pad + conv 3x3 padding 0",
            "padding with 0.5",
        ),
        (
            lambda: nn.Sequential(nn.ReflectionPad2d(1), conv(3, 3), nn.ELU()),
            "pad + conv 3x3",
            "the convolution after it has a padding of its own",
        ),
        (
            lambda: nn.Sequential(nn.ZeroPad2d(1), nn.ConvTranspose2d(3, 3, 3), nn.ELU()),
            "pad + transposed conv 3x3 padding 0",
            "a transposed convolution after it",
        ),
        (
            lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv(3, 3, padding_mode="reflect"), nn.ELU()),
            "upsample + conv 3x3 reflect",
            "nearest x2 is fused with a 3x3 convolution of padding 1 alone",
        ),
    ],
)
@pytest.mark.usefixtures("everything_pays")
def test_what_stays_before_a_convolution(make: Callable[[], nn.Module], pattern: str, reason: str) -> None:
    _, _, report = fused_pair(make)
    assert [entry[1:] for entry in report.skipped] == [(pattern, reason)] and len(report.replaced) == 1


@pytest.mark.usefixtures("everything_pays")
@pytest.mark.parametrize("write", [lambda x, y: x.add_(1), lambda x, y: y.mul_(2)], ids=["input", "result"])
def test_in_place_operations_outside(write: Callable[[Tensor, Tensor], object]) -> None:
    """Torch keeps the padded copy for the backward pass: what the model was given may be written to."""
    plain = seeded(lambda: nn.Sequential(nn.CircularPad2d(1), nn.Conv2d(3, 4, 3), nn.ELU()))
    plain, fused = (copy.deepcopy(plain).to(memory_format=torch.channels_last) for _ in range(2))
    fuse(fused)

    def gradients(model: nn.Module) -> tuple[Tensor, ...]:
        first = image().contiguous(memory_format=torch.channels_last).requires_grad_()
        x = first * 1
        y = model(x)
        write(x, y)
        return torch.autograd.grad(y.square().sum(), [first, *model.parameters()])

    assert calls(fused, image()) == 1
    for found, expected in zip(gradients(fused), gradients(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_sizes_that_torch_refuses() -> None:
    model = seeded(lambda: nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 4, 7), nn.ReLU()))
    plain = copy.deepcopy(model)
    assert len(fuse(model).replaced) == 1
    for shape in ((1, 3, 3, 8), (1, 4, 8, 8)):
        with pytest.raises(RuntimeError) as expected:
            plain(image(*shape))
        with pytest.raises(RuntimeError) as found:
            model(image(*shape))
        assert str(found.value) == str(expected.value)


def test_output_size_is_left() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.ConvTranspose2d(3, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x, output_size=[16, 16]))

    _, _, report = fused_pair(Sized)
    assert report.skipped == [("conv", "conv + relu", "it is called with further arguments")] and not report.replaced


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([nn.Conv2d(512, 512, 1), nn.ReLU()], "nothing to gain: predicted 0.84 times as fast"),
        ([nn.Conv2d(64, 64, 7, padding=3), nn.ReLU()], "nothing to gain: predicted 0.93 times as fast"),
        ([nn.Conv2d(64, 64, 1)], "nothing to gain: a 1x1 convolution alone is one matrix product either way"),
        ([nn.Conv2d(64, 64, 7)], "nothing to gain: a convolution alone, predicted 0.92 times as fast"),
        ([nn.ConvTranspose2d(3, 64, 4, 2, 1)], "nothing to gain: a convolution alone, of 3 channels"),
    ],
)
def test_what_is_predicted_to_be_slower_is_left(layers: list[nn.Module], reason: str) -> None:
    report = fuse(nn.Sequential(*layers))
    assert [entry.reason for entry in report.skipped] == [reason] and report.refused == report.replaced == []


def test_products_of_other_kinds_are_counted() -> None:
    model = seeded(lambda: nn.Sequential(nn.ConvTranspose2d(64, 64, 4, 2, 1), nn.ReLU()))
    report = fuse(model, example_inputs=image(1, 64, 16, 16))
    # written: 32 x 32 outputs, 64 x 64 channels, 4 taps each; computed: 6 x 6 products for 4 x 4 outputs
    assert report.products == (1024 * 4096 * 4, 64 * 36 * 4096)
