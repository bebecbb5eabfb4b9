"""Residual networks: the refiner of simgan and the generator of cyclegan."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.networks.layers import Conv

Padding = Literal["reflect", "zero"]
Upsample = Literal["transposed", "nearest"]


class RefinerBlock(nn.Module):
    """relu(x + conv(relu(conv(x)))), both convolutions 3x3 with n filters."""

    def __init__(self, filters: int, *, fused: bool):
        super().__init__()
        self.first = Conv(filters, filters, activation="relu", fused=fused)
        self.second = Conv(filters, filters, activation="none", fused=fused)
        # a block starts close to the identity: the signal keeps its scale up to the tanh, however many blocks there are
        self.second.start_gain = 0.1

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


class SimganRefiner(nn.Module):
    """R: conv 3x3 to n filters + ReLU, residual blocks, conv 1x1, tanh; all at the image's size.

    Source: Shrivastava et al. 2017, section 3.1 (n = 64, four blocks).
    """

    def __init__(self, filters: int, channels: int, *, blocks: int = 4, fused: bool = True):
        super().__init__()
        self.first = Conv(channels, filters, activation="relu", fused=fused)
        self.blocks = nn.Sequential(*(RefinerBlock(filters, fused=fused) for _ in range(blocks)))
        self.last = nn.Conv2d(filters, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, R, R) -> the same shape, in (-1, 1)."""
        return torch.tanh(self.last(self.blocks(self.first(images))))


def conv3x3(filters: int, padding: Padding, *, fused: bool) -> nn.Module:
    """Build a 3x3 convolution from n to n filters without activation: Kiln's operator where the padding is zero."""
    if padding == "zero":
        return Conv(filters, filters, activation="none", fused=fused)
    return nn.Conv2d(filters, filters, 3, padding=1, padding_mode="reflect")


class GeneratorBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), both convolutions 3x3, norm: instance normalisation."""

    def __init__(self, filters: int, padding: Padding, *, fused: bool):
        super().__init__()
        self.first = conv3x3(filters, padding, fused=fused)
        self.second = conv3x3(filters, padding, fused=fused)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.instance_norm(self.second(torch.relu(F.instance_norm(self.first(x)))))


class ResnetGenerator(nn.Module):
    """CycleGAN's generator: conv 7x7, convs 3x3/2 that double the width, residual blocks, as many x2, conv 7x7, tanh.

    Instance normalisation and ReLU follow all convolutions but the last; the 7x7 convolutions pad by reflection.
    blocks:   number of residual blocks; in the paper 9 for 256x256, 6 for 128x128
    halvings: number of convs 3x3/2; in the paper 2
    padding:  of the blocks: "reflect" as in the paper, or "zero", which runs on Kiln's operator
    upsample: "transposed" convolutions 3x3/2 as in the paper, or "nearest" x2 and a 3x3 convolution, Kiln's operator
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
        self.first = nn.Conv2d(channels, filters, 7, padding=3, padding_mode="reflect")
        downs = (Conv(n, 2 * n, resize="down", activation="none", fused=fused) for n in widths)
        self.down = nn.ModuleList(downs)
        self.blocks = nn.Sequential(*(GeneratorBlock(deepest, padding, fused=fused) for _ in range(blocks)))
        if upsample == "nearest":
            ups = (Conv(2 * n, n, resize="up", activation="none", fused=fused) for n in reversed(widths))
        else:
            ups = (nn.ConvTranspose2d(2 * n, n, 3, 2, padding=1, output_padding=1) for n in reversed(widths))
        self.up = nn.ModuleList(ups)
        self.last = nn.Conv2d(filters, channels, 7, padding=3, padding_mode="reflect")

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, R, R) with R a multiple of 2^halvings -> the same shape, in (-1, 1)."""
        x = torch.relu(F.instance_norm(self.first(images)))
        for layer in self.down:
            x = torch.relu(F.instance_norm(layer(x)))
        x = self.blocks(x)
        for layer in self.up:
            x = torch.relu(F.instance_norm(layer(x)))
        return torch.tanh(self.last(x))


class ImageToImage(nn.Module):
    """A trained generator as a user calls it: images in, images out."""

    needs_landmarks = False

    def __init__(self, generator: nn.Module):
        super().__init__()
        self.generator = generator

    def forward(self, images: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """images (B, C, R, R) in [-1, 1] -> the same shape and range; landmarks are not read."""
        return self.generator(images).float().clamp(-1, 1)
