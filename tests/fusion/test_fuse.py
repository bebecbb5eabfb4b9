"""engine.fuse: which chains it replaces and which it refuses; results agree with those of the same modules unfused."""

import functools
import types
from collections.abc import Callable
from random import random as draw

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.fusion import fuse
from tests.support.fuse_checks import HALF, UP, calls, fused_pair, image, patterns, seeded
from tests.support.fuse_models import (
    Attributes,
    Branching,
    Dense,
    Flattening,
    Functional,
    Residual,
    Shared,
    SuperResolution,
    UNet,
    Written,
    conv,
    dcgan,
)

FUNCTIONAL = [
    ("convs.0", f"{UP} + elu"),
    ("convs.1", f"{UP} + relu"),
    ("convs.2", "conv 3x3 + tanh"),
    ("convs.3", f"conv 3x3 + leaky_relu + {HALF}"),
    ("convs.4", f"conv 3x3 + leaky_relu + {HALF}"),
    ("convs.5", "conv 3x3 + relu"),
    ("convs.6", "conv 3x3 + sigmoid"),
    ("weight", "conv 3x3 stride 2 + relu"),
]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (Attributes, [("first", f"{UP} + elu"), ("second", "conv 3x3 + tanh")]),
        (Functional, FUNCTIONAL),
        (lambda: nn.Sequential(nn.UpsamplingNearest2d(scale_factor=2), conv(3, 4)), [("1", UP)]),
        (lambda: nn.Sequential(conv(3, 9), nn.Dropout(0.0), nn.ELU()), []),
        (
            lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Sequential(conv(3, 9), nn.ELU())),
            [("1.0", f"{UP} + elu")],
        ),
        (
            lambda: nn.Sequential(conv(3, 4, stride=2), nn.BatchNorm2d(4), nn.ELU(), conv(4, 4, stride=2), nn.ELU()),
            [("0", "conv 3x3 stride 2 + BatchNorm2d + elu"), ("3", "conv 3x3 stride 2 + elu")],
        ),
        (
            lambda: nn.Sequential(conv(3, 4), nn.Upsample(scale_factor=0.5), nn.ReLU()),
            [("0", f"conv 3x3 + relu + {HALF}")],
        ),
        (SuperResolution, None),
        (lambda: Shared(True), [("conv", "conv 3x3 + elu"), ("conv", "conv 3x3 + tanh")]),
        (Flattening, [("first", "conv 3x3 + elu"), ("second", "conv 3x3 + elu")]),
    ],
)
def test_chains_are_replaced_and_results_stay(
    make: Callable[[], nn.Module], expected: list[tuple[str, str]] | None
) -> None:
    model, _, report = fused_pair(make)
    assert report.refused == []
    if expected is None:
        expected = [("up1", f"{UP} + leaky_relu"), ("up2", f"{UP} + leaky_relu"), ("hr", "conv 3x3 + leaky_relu")]
        expected += [(f"body.{i}.{name}", "conv 3x3 + leaky_relu") for i in (0, 1) for name in ("conv1", "conv2")]
    assert patterns(report) == expected
    # in training a normalisation is not folded, and the convolution before it would gain nothing
    assert calls(model, image()) == sum("conv" in pattern and "Norm" not in pattern for _, pattern in expected)


def test_dcgan() -> None:
    model, _, report = fused_pair(dcgan, image(3, 5))
    expected = [("4", f"{UP} + BatchNorm2d + leaky_relu"), ("8", f"{UP} + leaky_relu"), ("10.0", "conv 3x3 + tanh")]
    assert patterns(report) == expected and report.refused == []
    model.eval()
    assert calls(model, image(3, 5)) == 3


def test_unet_with_skips() -> None:
    model, _, report = fused_pair(UNet)
    grown = [(f"grow.{i}.1", f"{UP} + elu") for i in (0, 1)]
    blocks = [f"{name}.{i}" for name in ("down.0", "down.1", "inner", "up.0", "up.1") for i in (0, 2)]
    assert sorted(patterns(report)) == sorted(grown + [(path, "conv 3x3 + relu") for path in blocks])
    assert calls(model, image()) == 12 and report.refused == []


def test_second_consumer_of_the_intermediate_keeps_it() -> None:
    _, _, report = fused_pair(Residual)
    assert patterns(report) == [("second", "conv 3x3 + residual + elu")]
    assert report.refused == [("first", "conv 3x3 + relu", "the result before it is used elsewhere")]


class Consumers(nn.Module):
    """Reads twice the enlarged tensor, or the result of the activation before it is halved."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.conv, self.which = conv(3, 3), which

    def forward(self, x: Tensor) -> Tensor:
        if self.which == "up":
            x = F.interpolate(x, scale_factor=2)
            return F.elu(self.conv(x)) + x
        y = F.elu(self.conv(x))
        z = F.interpolate(y, scale_factor=0.5)
        return F.interpolate(z, scale_factor=2) + y


@pytest.mark.parametrize(
    ("which", "skipped"),
    [
        ("up", ("conv", "upsample + conv 3x3", "the enlarged tensor is used elsewhere")),
        ("down", ("conv", f"conv 3x3 + elu + {HALF}", "the result before it is used elsewhere")),
    ],
)
def test_chain_ends_where_a_tensor_is_read_twice(which: str, skipped: tuple[str, str, str]) -> None:
    _, _, report = fused_pair(lambda: Consumers(which))
    assert patterns(report) == [("conv", "conv 3x3 + elu")]
    assert report.skipped == [skipped]


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda module, args, output: output)
    return module


@pytest.mark.parametrize(
    ("make", "pattern", "reason"),
    [
        (lambda: [nn.Conv2d(3, 3, 3, padding=(1, 2)), nn.ELU()], "conv + elu", "padding (1, 2)"),
        (lambda: [nn.Conv2d(3, 3, 4, padding="same"), nn.ELU()], "conv + elu", "padding same"),
        (lambda: [nn.Conv2d(3, 3, 8), nn.ELU()], "conv + elu", "kernel size 8x8"),
        (lambda: [nn.Conv2d(3, 3, (3, 5)), nn.ELU()], "conv + elu", "kernel size 3x5"),
        (lambda: [nn.ConvTranspose2d(3, 3, 4, 3), nn.ELU()], "conv + elu", "stride 3"),
        (lambda: [nn.ConvTranspose2d(3, 3, 4, groups=3), nn.ELU()], "conv + elu", "groups 3"),
        (lambda: [nn.Conv2d(3, 3, 3, padding=2, dilation=2), nn.ELU()], "conv + elu", "dilation 2"),
        (lambda: [conv(3, 3, groups=3), nn.ELU()], "conv + elu", "groups 3"),
        (lambda: [conv(3, 3, stride=3), nn.ELU()], "conv + elu", "stride 3"),
        (lambda: [conv(3, 3), nn.ELU(0.5)], "conv 3x3 + elu", "ELU with alpha 0.5"),
        (lambda: [conv(3, 3), nn.LeakyReLU(-0.1)], "conv 3x3 + leaky_relu", "LeakyReLU with slope -0.1"),
        (lambda: [conv(3, 3), nn.GELU()], "conv 3x3 + GELU", "activation GELU is not supported"),
        (lambda: [conv(3, 3, stride=2), nn.PReLU()], "conv 3x3 stride 2 + PReLU", "activation PReLU is not supported"),
        (lambda: [hooked(conv(3, 3)), nn.ELU()], "conv + elu", "Conv2d has hooks"),
        (lambda: [conv(3, 3), hooked(nn.ELU())], "conv 3x3 + elu", "ELU has hooks"),
        (
            lambda: [hooked(nn.Upsample(scale_factor=2)), conv(3, 3)],
            "upsample + conv 3x3",
            "Upsample has hooks",
        ),
        (lambda: [nn.Upsample(scale_factor=3), conv(3, 3)], "upsample + conv 3x3", "scale factor 3.0"),
        (lambda: [nn.Upsample(size=16), conv(3, 3)], "upsample + conv 3x3", "resized to a given size"),
        (
            lambda: [nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), conv(3, 3)],
            "upsample + conv 3x3",
            "mode bilinear",
        ),
        (lambda: [conv(3, 3), nn.ELU(), nn.Hardtanh(inplace=True)], "conv 3x3 + elu", "its result is changed in place"),
        (
            lambda: [nn.utils.parametrizations.weight_norm(conv(3, 3)), nn.ELU()],
            "conv + elu",
            "its weight is parametrised",
        ),
        (lambda: [nn.utils.spectral_norm(conv(3, 3)), nn.ELU()], "conv + elu", "its weight is parametrised"),
    ],
)
def test_what_would_change_a_result_is_refused(make: Callable[[], list], pattern: str, reason: str) -> None:
    model = seeded(lambda: nn.Sequential(*make()))
    before = model.eval()(image())
    report = fuse(model)
    assert report.replaced == []
    path, reported, why = report.skipped[-1]
    assert (path, reported) == ("1" if isinstance(model[1], nn.Conv2d) else "0", pattern)
    assert why.startswith(reason)
    assert torch.equal(model(image()), before)
    with pytest.raises(ValueError, match="strict mode"):
        fuse(model, strict=True)


def test_lazy_modules_are_left_until_they_have_weights() -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.LazyConv2d(4, 3, padding=1))
    assert fuse(model).skipped == [("1", "upsample + conv", "LazyConv2d is not a plain Conv2d")]
    model(image())
    assert patterns(fuse(model)) == [("1", UP)]


def test_unsupported_activation_leaves_the_rest_of_the_chain() -> None:
    model, _, report = fused_pair(lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv(3, 4), nn.GELU()))
    assert patterns(report) == [("1", UP)]
    assert report.skipped == [("1", f"{UP} + GELU", "activation GELU is not supported")]
    with pytest.raises(ValueError, match="activation GELU is not supported"):
        fuse(model, strict=True)
    assert type(model) is nn.Sequential


def test_shared_convolution_with_one_call_that_cannot_be_fused() -> None:
    model, _, report = fused_pair(lambda: Shared(False))
    reason = "the module is shared and another call of it cannot be fused"
    assert report.replaced == [] and report.refused == [("conv", "conv 3x3 + elu", reason)]
    assert type(model) is Shared


def test_untraceable_forward_is_left_and_descended_into() -> None:
    model, _, report = fused_pair(Branching)
    assert patterns(report) == [("block.0", "conv 3x3 + elu")]
    assert report.skipped == [("", "forward", "its forward branches on values of tensors")]
    assert type(model) is Branching


class Training(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x)) if self.training else self.conv(x)


class NoGrad(Training):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return F.elu(self.conv(x))


class Decorated(Training):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x))


class Counting(Training):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.elu(self.conv(x))


class Remembering(Training):
    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return F.elu(self.conv(x))


class Noisy(Training):
    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x)) + torch.randn(1)


class Constant(Training):
    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x)) + torch.ones(1)


class Switched(Training):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x)) if self.alpha > 0.5 else self.conv(x)


class Guessing(Training):
    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x)) * draw()


def gradients_off(forward: Callable) -> Callable:
    @functools.wraps(forward)
    def without(self: nn.Module, x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        return forward(self, x)

    return without


class WithoutGradients(Training):
    forward = gradients_off(lambda self, x: F.elu(self.conv(x)))


class PartlyWithoutGradients(Training):
    @torch.no_grad()
    def prepared(self, x: Tensor) -> Tensor:
        return x * 2

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(self.prepared(x)))


class Configured(Training):
    def __init__(self) -> None:
        super().__init__()
        self.options = types.SimpleNamespace(act=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x)) if self.options.act else self.conv(x)


class Checking(Training):
    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x)) if isinstance(x, Tensor) else x


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (NoGrad, "its forward enters a context"),
        (Decorated, "its forward is decorated or not written in Python"),
        (Counting, "its forward stores attributes"),
        (Remembering, "its forward makes tensors or changes the module's state"),
        (Noisy, "its forward makes tensors or changes the module's state"),
        (Constant, "its forward makes tensors or changes the module's state"),
        (Switched, "its forward branches on values of tensors"),
        (Guessing, "its forward uses draw"),
        (WithoutGradients, "its forward is decorated or not written in Python"),
        (PartlyWithoutGradients, "its forward is decorated or made inside a function"),
        (Configured, "its forward reads the attribute options, a SimpleNamespace"),
        (Checking, "its forward asks what an input is"),
    ],
)
def test_forward_that_a_graph_cannot_stand_for(kind: type, reason: str) -> None:
    model = seeded(kind)
    attributes = set(vars(model))
    assert fuse(model).skipped == [("", "forward", reason)]
    assert type(model) is kind and set(vars(model)) == attributes and not getattr(model, "seen", None)


class BranchingWritten(Written):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() < 1e9 else x


@pytest.mark.parametrize("kind", [Written, BranchingWritten])
def test_block_whose_result_is_written_to(kind: type) -> None:
    """The operator keeps the result of ELU for the backward pass: a parent's `y += x` must not change it."""
    _, _, report = fused_pair(lambda: kind(nn.Sequential(conv(3, 3), nn.ELU(), nn.Identity())))
    skipped = [entry for entry in report.skipped if entry.path]
    assert report.replaced == []
    assert skipped == [("block.0", "conv 3x3 + elu", "its result is changed in place afterwards")]


class InputWritten(Training):
    """The input of the chain is changed after it was enlarged."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        y = F.elu(self.conv(F.interpolate(x, scale_factor=2)))
        x += 1
        return F.interpolate(x, scale_factor=2) + y


def test_chain_whose_input_is_written_to() -> None:
    _, _, report = fused_pair(InputWritten)
    assert report.skipped == [("conv", f"{UP} + elu", "its input is changed in place")]


def test_block_whose_last_convolution_is_written_to() -> None:
    _, _, report = fused_pair(lambda: Written(Dense()))
    assert patterns(report) == [(f"block.{name}", "conv 3x3 + leaky_relu") for name in ("conv1", "conv2")]
    assert report.refused == []
