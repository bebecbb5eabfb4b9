"""Discriminators of simgan and cyclegan, which judge every patch of an image from the pixels around it."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import InputError
from engine.networks.layers import Conv
from engine.networks.norms import InstanceNorm

REAL, REFINED = 0, 1  # classes of a LocalDiscriminator


class LocalDiscriminator(nn.Module):
    """SimGAN's discriminator: two logits for every patch, without activation.

    conv 3x3/2 1.5n, conv 3x3/2 n, max pool 3x3/1, conv 3x3 n/2, conv 1x1 n/2, all with ReLU, and conv 1x1 to 2. With
    n = 64 these are the 96, 64, 32, 32 and 2 of the paper. A patch sees 23x23 pixels; patches are four pixels apart.
    Source: Shrivastava et al. 2017, section 3.1.
    """

    def __init__(self, filters: int, channels: int, *, fused: bool = True):
        super().__init__()
        narrow = max(1, filters // 2)
        self.first = Conv(channels, filters + narrow, resize="down", activation="relu", fused=fused)
        self.second = Conv(filters + narrow, filters, resize="down", activation="relu", fused=fused)
        self.third = Conv(filters, narrow, activation="relu", fused=fused)
        self.mix = Conv(narrow, narrow, kernel_size=1, activation="relu", fused=fused)
        self.last = Conv(narrow, 2, kernel_size=1, activation="none", fused=fused)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, R, R) -> logits (B, 2, R/4, R/4); class 0 is REAL, class 1 REFINED."""
        x = F.max_pool2d(self.second(self.first(images)), 3, stride=1, padding=1)
        return self.last(self.mix(self.third(x)))


def patch_loss(logits: Tensor, wanted: int) -> Tensor:
    """Mean over patches of -log of the probability of class `wanted`, by softmax over the two classes of each patch.

    logits:  (B, 2, h, w) of any dtype
    returns: () float32
    """
    return -F.log_softmax(logits.float(), dim=1)[:, wanted].mean()


def patch_accuracy(logits: Tensor, wanted: int) -> Tensor:
    """The share of patches whose larger logit is that of class `wanted`, () float32; logits (B, 2, h, w)."""
    return (logits.detach().argmax(1) == wanted).float().mean()


class PatchDiscriminator(nn.Module):
    """PatchGAN: `layers` convs 4x4/2 from n to at most 8n filters, a wider conv 4x4/1, and conv 4x4/1 to one score.

    All but the first and the last conv have instance normalisation; all but the last have LeakyReLU 0.2. With three
    layers a patch sees 70x70 pixels.
    Source: CycleGAN (Zhu et al. 2017), appendix; Isola et al. 2017.
    """

    def __init__(self, filters: int, channels: int, *, layers: int = 3, fused: bool = True):
        super().__init__()
        widths = [filters * min(2**level, 8) for level in range(layers + 1)]
        strides = [2] * layers + [1]
        inputs, activations = [channels, *widths[:-1]], ["leaky_relu", *["none"] * layers]
        sizes = zip(inputs, widths, strides, activations, strict=True)
        self.blocks = nn.ModuleList(
            Conv(a, b, kernel_size=4, stride=stride, activation=activation, fused=fused)
            for a, b, stride, activation in sizes
        )
        options: dict[str, Any] = {"activation": "leaky_relu", "negative_slope": 0.2, "fused": fused}
        self.norms = nn.ModuleList(InstanceNorm(width, **options) for width in widths[1:])
        self.last = Conv(widths[-1], 1, kernel_size=4, activation="none", fused=fused)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, R, R) -> scores (B, 1, H, H) with H = R / 2^layers - 2."""
        x = self.blocks[0](images)
        for block, norm in zip(self.blocks[1:], self.norms, strict=True):
            x = norm(block(x))
        return self.last(x)


def check_patch_layers(layers: int, resolution: int) -> None:
    """Raise InputError where a PatchDiscriminator of `layers` has no patch, or a single pixel to normalise over."""
    most = resolution.bit_length() - 3
    if not 1 <= layers <= most:
        raise InputError(f"--patch-layers {layers} does not fit {resolution}x{resolution} images; choose 1 to {most}")


@contextlib.contextmanager
def frozen(discriminators: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block no gradients of these networks' parameters are computed; gradients still pass through them."""
    learning = [p for network in discriminators for p in network.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
