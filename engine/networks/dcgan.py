"""The networks of dcgan and wgan: noise to an image, an image to a score.

Both networks take `layers`, which chooses what changes the size:
"paper":  4x4 convolutions of stride 2 from torch, transposed in the generator
"resize": nearest x2 before a 3x3 convolution, and a 3x3 convolution before nearest /2, one operator each (layers.Conv)
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.networks.global_batch import BatchNorm
from engine.networks.layers import Conv, Linear, from_rows, level_sizes, to_rows

SIDE = 4  # side of the coarsest maps
SLOPE = 0.2  # of LeakyReLU below 0


def widths(resolution: int, filters: int) -> list[int]:
    """The channels of the maps of R/2, R/4, ..., 4 pixels: n, doubled with every halving."""
    return [filters << level for level, _ in enumerate(level_sizes(resolution))]


class DcganGenerator(nn.Module):
    """G(z): noise to maps of 4x4, then BatchNorm, ReLU and x2 up to the image's size, and tanh.

    Source: Radford et al. 2016, figure 1, with n filters in the last maps before the image (pytorch/examples: 64).
    """

    def __init__(
        self, resolution: int, filters: int, channels: int, *, noise: int, layers: str = "paper", fused: bool = True
    ):
        super().__init__()
        self.layers = layers
        inner = widths(resolution, filters)[::-1]
        outer = [*inner[1:], channels]
        self.norms = nn.ModuleList(BatchNorm(width) for width in inner)
        if layers == "paper":
            self.first = nn.ConvTranspose2d(noise, inner[0], SIDE, bias=False)
            self.blocks = nn.ModuleList(
                nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=False) for a, b in zip(inner, outer, strict=True)
            )
        else:
            self.first = Linear(noise, SIDE * SIDE * inner[0], fused=fused)
            last = len(outer) - 1
            self.blocks = nn.ModuleList(
                Conv(a, b, resize="up", activation="tanh" if level == last else "none", fused=fused)
                for level, (a, b) in enumerate(zip(inner, outer, strict=True))
            )
            still_biases([self.first, *self.blocks], self.norms)

    def forward(self, noise: Tensor) -> Tensor:
        """(B, noise) -> (B, channels, R, R) in [-1, 1]."""
        paper = self.layers == "paper"
        x = self.first(noise[:, :, None, None]) if paper else from_rows(self.first(noise), SIDE)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = block(F.relu(norm(x)))
        return torch.tanh(x) if paper else x


class DcganCritic(nn.Module):
    """D(v): /2 until the maps are 4x4, LeakyReLU 0.2 after each /2, then one number, without sigmoid.

    norm: after each /2 but the first: "batch" (BatchNorm), "layer" (over all maps of one image, so that scores do not
          depend on other images) or "none"
    Source: Radford et al. 2016, section 3; Arjovsky et al. 2017 for the score without sigmoid.
    """

    def __init__(
        self,
        resolution: int,
        filters: int,
        channels: int,
        *,
        norm: str = "batch",
        layers: str = "paper",
        fused: bool = True,
    ):
        super().__init__()
        self.layers = layers
        outer = widths(resolution, filters)
        inner = [channels, *outer[:-1]]
        self.norms = nn.ModuleList([nn.Identity(), *(normalisation(norm, width) for width in outer[1:])])
        if layers == "paper":
            bias = norm == "none"  # a norm has a bias of its own
            self.blocks = nn.ModuleList(
                nn.Conv2d(a, b, 4, stride=2, padding=1, bias=bias) for a, b in zip(inner, outer, strict=True)
            )
            self.last = nn.Conv2d(outer[-1], 1, SIDE, bias=False)
        else:
            self.blocks = nn.ModuleList(
                Conv(a, b, resize="down", activation=self._fusible(i), fused=fused)
                for i, (a, b) in enumerate(zip(inner, outer, strict=True))
            )
            still_biases(self.blocks, self.norms)
            self.last = Linear(SIDE * SIDE * outer[-1], 1, fused=fused)

    def _fusible(self, level: int) -> str:
        """The activation that a level's operator can do: none where a norm comes between the two."""
        return "leaky_relu" if isinstance(self.norms[level], nn.Identity) else "none"

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, R, R) -> scores (B,)."""
        x = images
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = norm(block(x))
            if getattr(block, "activation", "none") == "none":
                x = F.leaky_relu(x, SLOPE)
        return (self.last(x) if self.layers == "paper" else self.last(to_rows(x))).flatten()


def normalisation(norm: str, width: int) -> nn.Module:
    """Build the normalisation `norm` ("batch", "layer" or "none") of `width` channels."""
    if norm == "none":
        return nn.Identity()
    return BatchNorm(width) if norm == "batch" else nn.GroupNorm(1, width)


def still_biases(layers: Iterable[nn.Module], norms: Iterable[nn.Module]) -> None:
    """Freeze the biases that the BatchNorm after a layer takes away: their gradients would be rounding errors."""
    for layer, norm in zip(layers, norms, strict=False):
        if isinstance(norm, nn.BatchNorm2d) and layer.bias is not None:
            layer.bias.requires_grad_(False)
