"""G and D of ggb: a U-Net that also makes smaller images on its way up, and a critic of patches."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from engine.networks.global_batch import BatchNorm
from engine.networks.layers import Conv, LandmarkConv
from engine.networks.moving import EXTRA, START_GAIN, Halves, between_points, corrected, moved
from engine.networks.norms import InstanceNorm

NEGATIVE_SLOPE = 0.2  # of LeakyReLU below 0, and the default of the operators
WIDEST = 8  # a layer has at most so many times the filters of the first
KERNEL: dict[str, Any] = {"kernel_size": 4, "stride": 2, "padding": 1}


def guided_sizes(resolution: int, levels: int) -> tuple[int, ...]:
    """The sizes of the `levels` guided decoder features, ascending: the last of R/8, R/4 and R/2, at least 4 pixels.

    A feature of 4x4 is the decoder's first. Source: section 3.2 of the paper (32, 64 and 128 of 256).
    """
    sizes = (resolution // 8, resolution // 4, resolution // 2)
    return tuple(size for size in sizes[len(sizes) - levels :] if size >= 4)


class Scaling(nn.Module):
    """A conv 4x4 stride 2, normalisation and activation. A conv before a normalisation has no bias.

    norm: "batch", "instance" with an affine map, or "none"
    """

    transposed, activation = False, "leaky_relu"

    def __init__(self, in_channels: int, out_channels: int, norm: str, *, second_channels: int = 0, fused: bool = True):
        super().__init__()
        alone = norm == "none"
        self.conv = Conv(
            in_channels,
            out_channels,
            **KERNEL,
            transposed=self.transposed,
            second_channels=second_channels,
            activation=self.activation if alone else "none",
            bias=alone,
            fused=fused,
        )
        options: dict[str, Any] = {"activation": self.activation, "negative_slope": NEGATIVE_SLOPE, "fused": fused}
        self.norm: nn.Module = nn.Identity()
        if norm == "batch":
            self.norm = BatchNorm(out_channels, **options)
        elif norm == "instance":
            self.norm = InstanceNorm(out_channels, affine=True, **options)

    def forward(self, x: Tensor, second: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W), and further channels (B, second_channels, H, W) -> (B, out_channels, ...)."""
        return self.norm(self.conv(x, second))


class Down(Scaling):
    """Halve the size: conv 4x4 stride 2, normalisation, LeakyReLU."""


class Up(Scaling):
    """Double the size: transposed conv 4x4 stride 2, normalisation, ReLU."""

    transposed, activation = True, "relu"


class Guided(NamedTuple):
    """What the last layer takes: a feature and its skip (B, c, R/2, R/2), and the shifts that its own are added to."""

    feature: Tensor
    skip: Tensor
    start: Tensor | None


class GuidedUNet(nn.Module):
    """G(x, c): convs of stride 2 down to 2x2 and transposed convs up again, 7 and 7 at 256x256.

    A guided decoder feature also gives an image of its own size, by a 3x3 conv and tanh, before the encoder's feature
    joins it.
    points: number of heatmaps beside the image in the first layer
    sizes:  sides of the guided features, from guided_sizes
    sigma:  of the heatmaps' Gaussians, in pixels
    norm:   of all layers but the first, the innermost and the last: "batch", "instance" or "none"
    correct: the final image moves the pixels of x and paints over the rest (engine.networks.moving)
    source_points: with correct: G also takes the points of x, and sees x moved so that they lie on the target's
    Source: sections 2.1 and 3.2 of the paper. Widths (n, 2n, 4n, 8n, 8n, ...) and normalisation are those of pix2pix,
    from which the paper takes the U-Net.
    """

    def __init__(
        self,
        resolution: int,
        filters: int,
        channels: int,
        *,
        points: int,
        sizes: Sequence[int],
        sigma: float = 1.0,
        norm: str = "batch",
        correct: bool = False,
        source_points: bool = False,
        fused: bool = True,
    ):
        super().__init__()
        self.sizes, self.correct, self.source_points = tuple(sizes), correct, source_points
        depth = int(math.log2(resolution)) - 1
        widths = [filters * min(2**level, WIDEST) for level in range(depth)]
        self.first = LandmarkConv(
            channels, points, widths[0], **KERNEL, sigma=sigma, activation="leaky_relu", fused=fused
        )
        norms = [norm] * (depth - 2) + ["none"]
        downs = zip(widths[:-1], widths[1:], norms, strict=True)
        self.down = nn.ModuleList(Down(i, o, kind, fused=fused) for i, o, kind in downs)
        # the innermost feature has no skip; the encoder's feature of the same size joins every later one
        further = [0, *widths[-2:0:-1]]
        ups = zip(widths[:0:-1], further, widths[-2::-1], strict=True)
        self.up = nn.ModuleList(Up(i, o, norm, second_channels=second, fused=fused) for i, second, o in ups)
        made = {"activation": "none" if correct else "tanh", "second_channels": widths[0], "transposed": True}
        self.last = Conv(widths[0], channels + EXTRA * correct, **KERNEL, **made, fused=fused)
        if correct:
            self.last.start_gain = START_GAIN
        width_at = {4 << level: width for level, width in enumerate(widths[-2::-1])}
        self.to_image = nn.ModuleDict(
            {str(size): Conv(width_at[size], channels, activation="tanh", fused=fused) for size in self.sizes}
        )

    def guide(
        self, x: Tensor, points: Tensor, own: Tensor | None = None, *, images: bool = True
    ) -> tuple[dict[int, Tensor], Guided]:
        """Run the layers before the last.

        x:       (B, channels, R, R) in [-1, 1]
        points:  (B, K, 2) float32 x, y in pixels of R, NaN where missing
        own:     those of x, which only a G with source_points takes
        images:  whether the guided images are made
        returns: size -> image (B, channels, size, size) of each guided size, and what `finish` takes
        """
        start = between_points(own, points, x.shape[-1]) if self.source_points else None
        skips = [self.first(x if start is None else moved(x, start), points)]
        for down in self.down:
            skips.append(down(skips[-1]))
        feature, skip, level_images = skips.pop(), None, {}
        for up in self.up:
            feature = up(feature, skip)
            size = feature.shape[-1]
            if images and size in self.sizes:
                level_images[size] = self.to_image[str(size)](feature)
            skip = skips.pop()
        return level_images, Guided(feature, skip, start)

    def finish(self, x: Tensor, guided: Guided) -> Tensor:
        """Run the last layer on what `guide` returned for x: (B, channels, R, R) in [-1, 1]."""
        return self.halves(x, guided).result if self.correct else self.last(guided.feature, guided.skip)

    def halves(self, x: Tensor, guided: Guided) -> Halves:
        """The final image as `finish` makes it, and what it is mixed of; with `correct` alone."""
        return corrected(x, self.last(guided.feature, guided.skip), guided.start)

    def forward(self, x: Tensor, points: Tensor, own: Tensor | None = None) -> tuple[Tensor, dict[int, Tensor]]:
        """x (B, channels, R, R), points and own (B, K, 2), as in `guide` -> G(x, c), size -> image of a guided size."""
        level_images, guided = self.guide(x, points, own)
        return self.finish(x, guided), level_images

    def guided_parameters(self) -> list[nn.Parameter]:
        """What the losses of the levels train: all layers but the last, and the convs of the guided images."""
        return [p for part in (self.first, self.down, self.up, self.to_image) for p in part.parameters()]

    def image_parameters(self) -> list[nn.Parameter]:
        """What the loss of the final image trains: all layers but the convs of the guided images."""
        return [p for part in (self.first, self.down, self.up, self.last) for p in part.parameters()]


class PatchCritic(nn.Module):
    """D: 5 convs 4x4 stride 2 to a map of logits; for small images fewer, so that at least 2x2 patches are left.

    norm: of all layers but the first and the last: "batch", "instance" or "none"
    Source: section 2.1 of the paper; widths and normalisation are those of pix2pix's discriminator.
    """

    def __init__(self, resolution: int, filters: int, channels: int, *, norm: str = "batch", fused: bool = True):
        super().__init__()
        depth = min(5, int(math.log2(resolution)) - 1)
        widths = [filters * min(2**level, WIDEST) for level in range(depth - 1)]
        norms = ["none"] + [norm] * (depth - 2)
        downs = zip([channels, *widths[:-1]], widths, norms, strict=True)
        self.down = nn.ModuleList(Down(i, o, kind, fused=fused) for i, o, kind in downs)
        self.last = Conv(widths[-1], 1, **KERNEL, activation="none", fused=fused)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, R, R) -> (B, 1, H, W) logits of being real."""
        for down in self.down:
            images = down(images)
        return self.last(images)
