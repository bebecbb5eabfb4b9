"""Residual networks: the refiner of simgan and the generator of cyclegan."""

from typing import Any, Literal

from torch import Tensor, nn

from engine.networks.layers import Conv
from engine.networks.norms import InstanceNorm

Padding = Literal["reflect", "zero"]
PADDING_MODES = {"reflect": "reflect", "zero": "zeros"}  # as the operator names them
Upsample = Literal["transposed", "nearest"]


class RefinerBlock(nn.Module):
    """relu(x + conv(relu(conv(x)))), both convolutions 3x3 with n filters."""

    def __init__(self, filters: int, padding: Padding, *, fused: bool):
        super().__init__()
        kind: dict[str, Any] = {"padding_mode": PADDING_MODES[padding], "activation": "relu", "fused": fused}
        self.first = Conv(filters, filters, **kind)
        self.second = Conv(filters, filters, **kind)
        # a block starts close to the identity: the signal keeps its scale up to the tanh, however many blocks there are
        self.second.start_gain = 0.1

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x), residual=x)


class SimganRefiner(nn.Module):
    """R: conv 3x3 to n filters + ReLU, residual blocks, conv 1x1, tanh; all at the image's size.

    padding: of the 3x3 convolutions: zeros, or the reflected image
    Source: Shrivastava et al. 2017, section 3.1 (n = 64, four blocks).
    """

    def __init__(self, filters: int, channels: int, *, blocks: int = 4, padding: Padding = "zero", fused: bool = True):
        super().__init__()
        self.first = Conv(channels, filters, padding_mode=PADDING_MODES[padding], activation="relu", fused=fused)
        self.blocks = nn.Sequential(*(RefinerBlock(filters, padding, fused=fused) for _ in range(blocks)))
        self.last = Conv(filters, channels, kernel_size=1, activation="tanh", fused=fused)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, R, R) -> the same shape, in (-1, 1)."""
        return self.last(self.blocks(self.first(images)))


class GeneratorBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), both convolutions 3x3, norm: instance normalisation."""

    def __init__(self, filters: int, padding: Padding, *, fused: bool):
        super().__init__()
        kind: dict[str, Any] = {"padding_mode": PADDING_MODES[padding], "activation": "none", "fused": fused}
        self.first = Conv(filters, filters, **kind)
        self.second = Conv(filters, filters, **kind)
        self.norms = nn.ModuleList(InstanceNorm(filters, activation=a, fused=fused) for a in ("relu", "none"))

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[1](self.second(self.norms[0](self.first(x))), residual=x)


class ResnetGenerator(nn.Module):
    """CycleGAN's generator: conv 7x7, convs 3x3/2 that double the width, residual blocks, as many x2, conv 7x7, tanh.

    Instance normalisation and ReLU follow all convolutions but the last; the 7x7 convolutions pad by reflection.
    blocks:   number of residual blocks; in the paper 9 for 256x256, 6 for 128x128
    halvings: number of convs 3x3/2; in the paper 2
    padding:  of the blocks: "reflect" as in the paper, or "zero"
    upsample: "transposed" convolutions 3x3/2 as in the paper, or "nearest" x2 and a 3x3 convolution
    Source: Zhu et al. 2017, appendix (after Johnson et al. 2016).
    """

    def __init__(
        self,
        filters: int,
        channels: int,
        *,
        blocks: int = 9,
        halvings: int = 2,
        padding: Padding = "reflect",
        upsample: Upsample = "transposed",
        fused: bool = True,
    ):
        super().__init__()
        widths = [filters << level for level in range(halvings)]
        deepest = filters << halvings
        outer: dict[str, Any] = {"kernel_size": 7, "padding_mode": "reflect", "fused": fused}
        up: dict[str, Any] = {"stride": 2, "transposed": True, "output_padding": 1}
        up = {"resize": "up"} if upsample == "nearest" else up
        self.first = Conv(channels, filters, activation="none", **outer)
        downs = (Conv(n, 2 * n, resize="down", activation="none", fused=fused) for n in widths)
        self.down = nn.ModuleList(downs)
        self.blocks = nn.Sequential(*(GeneratorBlock(deepest, padding, fused=fused) for _ in range(blocks)))
        self.up = nn.ModuleList(Conv(2 * n, n, activation="none", **up, fused=fused) for n in reversed(widths))
        self.last = Conv(filters, channels, activation="tanh", **outer)
        # of the first convolution, of those down and of those up
        normalised = [filters, *(2 * n for n in widths), *reversed(widths)]
        self.norms = nn.ModuleList(InstanceNorm(n, activation="relu", fused=fused) for n in normalised)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, R, R) with R a multiple of 2^halvings -> the same shape, in (-1, 1)."""
        norms = iter(self.norms)
        x = next(norms)(self.first(images))
        for layer in self.down:
            x = next(norms)(layer(x))
        x = self.blocks(x)
        for layer in self.up:
            x = next(norms)(layer(x))
        return self.last(x)


class ImageToImage(nn.Module):
    """A trained generator as a user calls it: images in, images out."""

    needs_landmarks = False

    def __init__(self, generator: nn.Module):
        super().__init__()
        self.generator = generator

    def forward(self, images: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """images (B, C, R, R) in [-1, 1] -> the same shape and range; landmarks are not read."""
        return self.generator(images).float().clamp(-1, 1)
