"""The networks of reenact: a U-Net and a patch discriminator, both on an image and 68 landmarks.

Source: Kassapis, Verdenius and Ondrag. Where the paper is silent, widths, norms and dropout are those of the authors'
code. The sizes are such that every level halves evenly.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.data.landmarks import POINTS
from engine.networks.global_batch import BatchNorm, dropout, dropout2d
from engine.networks.layers import Conv, LandmarkConv, level_sizes
from engine.networks.moving import EXTRA, START_GAIN, Halves, between_points, corrected, moved
from engine.networks.norms import InstanceNorm

SLOPE = 0.2  # of LeakyReLU below 0
# factor on the start values of the weights of heatmaps: twenty heatmaps overlap at the mouth and would drown the image
HEATMAP_SCALE = 0.2
# probabilities of dropout: between levels, in the residual block, in D
SPATIAL_DROPOUT, DROPOUT, PATCH_DROPOUT = 0.1, 0.5, 0.375


def depth(resolution: int, most: int) -> int:
    """How often an image can be halved until its side is 4 pixels, and at most `most` times."""
    return min(most, len(level_sizes(resolution)))


class Level(nn.Module):
    """3x3 convolution, instance normalisation (`norm`), LeakyReLU and, in training, dropout of whole channels.

    Without the norm, one operator does the resize, the convolution and the activation.
    """

    def __init__(self, in_channels: int, out_channels: int, *, resize: str, norm: bool, dropout: float, fused: bool):
        super().__init__()
        activation = "none" if norm else "leaky_relu"
        self.conv = Conv(in_channels, out_channels, resize=resize, activation=activation, fused=fused)
        self.norm, self.dropout = normalisation(norm, out_channels, fused), dropout

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(B, in_channels, ...) -> (B, out_channels, ...), to which a level up adds `skip`."""
        if skip is not None and self.norm is not None and not self.dropout:
            return self.norm(self.conv(x), residual=skip)
        x = self.conv(x) if self.norm is None else self.norm(self.conv(x))
        x = dropout2d(x, self.dropout, self.training) if self.dropout else x
        return x if skip is None else x + skip


class Residual(nn.Module):
    """x + conv(LeakyReLU(conv(x))), with instance normalisation (`norm`) after each conv, dropout between the two."""

    def __init__(self, channels: int, *, norm: bool, dropout: float, fused: bool):
        super().__init__()
        self.first = Conv(channels, channels, activation="none" if norm else "leaky_relu", fused=fused)
        self.second = Conv(channels, channels, activation="none", fused=fused)
        self.norm, self.dropout = normalisation(norm, channels, fused), dropout
        self.last_norm = normalisation(norm, channels, fused, activation="none")

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) if self.norm is None else self.norm(self.first(x))
        if self.dropout:
            y = dropout(y, self.dropout, self.training)
        if self.last_norm is None:
            return self.second(y, residual=x)
        return self.last_norm(self.second(y), residual=x)


def normalisation(norm: bool, channels: int, fused: bool, activation: str = "leaky_relu") -> InstanceNorm | None:
    """Build the instance normalisation with the activation after it, then the residual's sum; None without `norm`."""
    if not norm:
        return None
    style: dict[str, Any] = {"activation": activation, "negative_slope": SLOPE, "residual_place": "after"}
    return InstanceNorm(channels, **style, fused=fused)


class ReenactmentGenerator(nn.Module):
    """G(I; e): a 5x5 convolution of image and heatmaps, 4 levels down, a residual block, 4 levels up, 7x7 and tanh.

    Each level down halves the side and doubles the channels (n at the image's size). The input of a level down is added
    to the result of the level up that has the same size. Images below 64 pixels have fewer levels, so that 4 pixels a
    side are left.
    norm:    instance normalisation after every convolution but the last; it removes what is the same all over an image,
             such as its brightness, and its contrast
    dropout: with the probabilities SPATIAL_DROPOUT and DROPOUT
    widest:  the most channels of a level; 0: no limit
    correct: the last layer also makes a shift of every pixel and a share; the result is that share of the image, taken
             at the shifted places, and the rest of the painted image (as first-order motion models do: Siarohin et al.
             2019). Texture is then moved, not painted again. The paper's G paints everything
    source_points: with correct: G also takes the source's landmarks, and sees the source moved so that they lie on the
             target's; its shifts are added to those that do that. The paper's G finds the source's pose in its image
    """

    def __init__(
        self,
        resolution: int,
        filters: int,
        channels: int,
        *,
        norm: bool = True,
        dropout: bool = False,
        widest: int = 0,
        correct: bool = False,
        source_points: bool = False,
        fused: bool = True,
    ):
        super().__init__()
        options = {"norm": norm, "dropout": SPATIAL_DROPOUT if dropout else 0.0, "fused": fused}
        widths = [filters << level for level in range(depth(resolution, 4) + 1)]
        widths = [min(width, widest) if widest else width for width in widths]
        first = {"kernel_size": 5, "padding": 2, "activation": "none" if norm else "leaky_relu"}
        self.first = LandmarkConv(channels, POINTS, filters, **first, fused=fused)
        self.first.heatmap_scale = HEATMAP_SCALE
        self.norm = normalisation(norm, filters, fused)
        self.down = nn.ModuleList(Level(a, b, resize="down", **options) for a, b in itertools.pairwise(widths))
        self.middle = Residual(widths[-1], norm=norm, dropout=DROPOUT if dropout else 0.0, fused=fused)
        self.up = nn.ModuleList(Level(b, a, resize="up", **options) for b, a in itertools.pairwise(widths[::-1]))
        self.correct, self.source_points = correct, source_points
        if correct:
            self.last = Conv(filters, channels + EXTRA, kernel_size=7, activation="none", fused=fused)
            self.last.start_gain = START_GAIN
        else:
            self.last = Conv(filters, channels, kernel_size=7, activation="tanh", fused=fused)
        if norm:
            # a norm takes the bias of a convolution away again: its gradient would be a rounding error
            for layer in self.modules():
                if isinstance(layer, (Conv, LandmarkConv)) and layer is not self.last:
                    layer.bias.requires_grad_(False)

    def forward(self, images: Tensor, landmarks: Tensor, source_landmarks: Tensor | None = None) -> Tensor:
        """images (B, C, R, R) in [-1, 1], landmarks (B, 68, 2) in pixels of R -> the faces with these landmarks.

        source_landmarks: those of the images, which only a G with source_points takes
        """
        if self.correct:
            return self.halves(images, landmarks, source_landmarks).result
        return self._made(images, landmarks)

    def halves(self, images: Tensor, landmarks: Tensor, source_landmarks: Tensor | None = None) -> Halves:
        """The faces as `forward` makes them, and what they are mixed of; with `correct` alone."""
        if not self.source_points:
            return corrected(images, self._made(images, landmarks))
        start = between_points(source_landmarks, landmarks, images.shape[-1])
        return corrected(images, self._made(moved(images, start), landmarks), start)

    def _made(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """What the last layer makes."""
        x = self.first(images, landmarks)
        x = x if self.norm is None else self.norm(x)
        skips = []
        for level in self.down:
            skips.append(x)
            x = level(x)
        x = self.middle(x)
        for level in self.up:
            x = level(x, skips.pop())
        return self.last(x)


class PatchDiscriminator(nn.Module):
    """D(I; e): logits of overlapping patches; 3 convolutions 4x4/2 to n, 2n, 4n channels, then 4x4/1 to 8n and to 1.

    All layers but the first and the last have batch normalisation. 16-pixel images have 2 convolutions 4x4/2.
    """

    def __init__(self, resolution: int, filters: int, channels: int, *, dropout: bool = False, fused: bool = True):
        super().__init__()
        self.dropout = PATCH_DROPOUT if dropout else 0.0
        levels = depth(resolution, 3)
        widths = [filters << level for level in range(levels + 1)]
        first = {"kernel_size": 4, "stride": 2, "padding": 1, "activation": "leaky_relu"}
        self.first = LandmarkConv(channels, POINTS, filters, **first, fused=fused)
        self.first.heatmap_scale = HEATMAP_SCALE
        strides = [2] * (levels - 1) + [1]
        self.convolutions = nn.ModuleList(
            Conv(a, b, kernel_size=4, stride=stride, activation="none", bias=False, fused=fused)
            for a, b, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        options: dict[str, Any] = {"activation": "leaky_relu", "negative_slope": SLOPE, "fused": fused}
        self.norms = nn.ModuleList(BatchNorm(width, **options) for width in widths[1:])
        self.last = Conv(widths[-1], 1, kernel_size=4, activation="none", fused=fused)

    def forward(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """images (B, C, R, R), landmarks (B, 68, 2) in pixels -> (B, patches) logits of being real."""
        x = self.first(images, landmarks)
        for conv, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(conv(x))
            if self.dropout:
                x = dropout(x, self.dropout, self.training)
        return self.last(x).flatten(1)


def log_mean_sigmoid(logits: Tensor) -> Tensor:
    """Compute log D, D the mean over patches of sigmoid(logits): (B, patches) -> (B,), at least float32.

    With -logits the result is log(1 - D). It is never infinite. Source: section 2 of the paper.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.logsumexp(F.logsigmoid(logits), 1) - math.log(logits.shape[1])
