"""The networks of dcgan and wgan: noise to an image, an image to a score.

Both networks take `layers`, which chooses what changes the size:
"paper":  4x4 convolutions of stride 2, transposed in the generator
"resize": nearest x2 before a 3x3 convolution, and a 3x3 convolution before nearest /2
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from engine.networks.global_batch import BatchNorm
from engine.networks.layers import Conv, Linear, from_rows, level_sizes, to_rows
from engine.networks.norms import GroupNorm

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
        self.norms = nn.ModuleList(BatchNorm(width, activation="relu", fused=fused) for width in inner)
        paper = layers == "paper"
        kind: dict[str, Any] = {"resize": "up"}
        if paper:
            kind = {"kernel_size": 4, "transposed": True, "bias": False}
            self.first = Conv(noise, inner[0], padding=0, activation="none", **kind, fused=fused)
            kind["stride"] = 2
        else:
            self.first = Linear(noise, SIDE * SIDE * inner[0], fused=fused)
        last = len(outer) - 1
        self.blocks = nn.ModuleList(
            Conv(a, b, activation="tanh" if level == last else "none", **kind, fused=fused)
            for level, (a, b) in enumerate(zip(inner, outer, strict=True))
        )
        if not paper:
            still_biases([self.first, *self.blocks], self.norms)

    def forward(self, noise: Tensor) -> Tensor:
        """(B, noise) -> (B, channels, R, R) in [-1, 1]."""
        paper = self.layers == "paper"
        x = self.first(noise[:, :, None, None]) if paper else from_rows(self.first(noise), SIDE)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = block(norm(x))
        return x


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
        self.norms = nn.ModuleList([nn.Identity(), *(normalisation(norm, width, fused) for width in outer[1:])])
        kind: dict[str, Any] = {"resize": "down"}
        if layers == "paper":
            # a norm has a bias of its own
            kind = {"kernel_size": 4, "stride": 2, "bias": norm == "none"}
        self.blocks = nn.ModuleList(
            Conv(a, b, activation=self._after(i), **kind, fused=fused)
            for i, (a, b) in enumerate(zip(inner, outer, strict=True))
        )
        if layers == "paper":
            self.last = Conv(outer[-1], 1, kernel_size=SIDE, padding=0, activation="none", bias=False, fused=fused)
        else:
            still_biases(self.blocks, self.norms)
            self.last = Linear(SIDE * SIDE * outer[-1], 1, fused=fused)

    def _after(self, level: int) -> str:
        """The activation of a level's convolution: none where a norm comes between the two."""
        return "leaky_relu" if isinstance(self.norms[level], nn.Identity) else "none"

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, R, R) -> scores (B,)."""
        x = images
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = norm(block(x))
        return (self.last(x) if self.layers == "paper" else self.last(to_rows(x))).flatten()


def normalisation(norm: str, width: int, fused: bool) -> nn.Module:
    """Build the normalisation `norm` ("batch", "layer" or "none") of `width` channels, with LeakyReLU after it."""
    options: dict[str, Any] = {"activation": "leaky_relu", "negative_slope": SLOPE, "fused": fused}
    if norm == "none":
        return nn.Identity()
    return BatchNorm(width, **options) if norm == "batch" else GroupNorm(1, width, **options)


def still_biases(layers: Iterable[nn.Module], norms: Iterable[nn.Module]) -> None:
    """Freeze the biases that the BatchNorm after a layer takes away: their gradients would be rounding errors."""
    for layer, norm in zip(layers, norms, strict=False):
        if isinstance(norm, nn.BatchNorm2d) and layer.bias is not None:
            layer.bias.requires_grad_(False)
