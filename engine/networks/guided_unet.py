"""G and D of the Generative Guiding Blocks: a U-Net with smaller images on its way up, and a critic of patches."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.networks.global_batch import BatchNorm
from engine.networks.layers import Conv, LandmarkConv

NEGATIVE_SLOPE = 0.2  # of LeakyReLU, and of the operators' by default
WIDEST = 8  # filters, in units of the first layer's
KERNEL = {"kernel_size": 4, "stride": 2, "padding": 1}


def guided_sizes(resolution: int, levels: int) -> tuple[int, ...]:
    """Sizes of the `levels` guided decoder features, ascending: up to R/8, R/4, R/2, none below the decoder's first, 4.

    Source: section 3.2 (32, 64 and 128 of 256).
    """
    sizes = (resolution // 8, resolution // 4, resolution // 2)
    return tuple(size for size in sizes[len(sizes) - levels :] if size >= 4)


def normalisation(kind: str, channels: int) -> nn.Module:
    """kind: "batch", "instance" (affine) or "none"."""
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return BatchNorm(channels)
    return nn.InstanceNorm2d(channels, affine=True)


class Down(nn.Module):
    """Half the size: conv 4x4 stride 2 (with a bias where no normalisation takes it away), normalisation, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, **KERNEL, bias=norm == "none")
        self.norm = normalisation(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/2, W/2)."""
        return F.leaky_relu(self.norm(self.conv(x)), NEGATIVE_SLOPE)


class Up(nn.Module):
    """Twice the size: transposed conv 4x4 stride 2 (bias as in Down), normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, **KERNEL, bias=norm == "none")
        self.norm = normalisation(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, 2H, 2W)."""
        return F.relu(self.norm(self.conv(x)))


class GuidedUNet(nn.Module):
    """G(x, c): convs of stride 2 down to 2x2 and transposed convs up again, 7 and 7 at 256x256.

    A guided decoder feature, before the encoder's is joined to it, also gives an image of its own size by a 3x3 conv
    and tanh.

    points: heatmaps beside the image in the first layer, sigma their width in pixels.
    sizes:  of the guided features, from guided_sizes.
    norm:   of all layers but the first, the innermost and the last: "batch", "instance" or "none".
    Source: sections 2.1 and 3.2 of the paper; widths (n, 2n, 4n, 8n, 8n, ...) and normalisation of pix2pix, which it
    takes the U-Net from.
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
        fused: bool = True,
    ):
        super().__init__()
        self.sizes = tuple(sizes)
        depth = int(math.log2(resolution)) - 1
        widths = [filters * min(2**level, WIDEST) for level in range(depth)]
        self.first = LandmarkConv(
            channels, points, widths[0], **KERNEL, sigma=sigma, activation="leaky_relu", fused=fused
        )
        norms = [norm] * (depth - 2) + ["none"]
        self.down = nn.ModuleList(map(Down, widths[:-1], widths[1:], norms))
        # the innermost feature has no skip; every later one is joined by the encoder's of its size
        inputs = [widths[-1], *(2 * width for width in widths[-2:0:-1])]
        self.up = nn.ModuleList(Up(i, o, norm) for i, o in zip(inputs, widths[-2::-1], strict=True))
        self.last = nn.ConvTranspose2d(2 * widths[0], channels, **KERNEL)
        width_at = {4 << level: width for level, width in enumerate(widths[-2::-1])}
        self.to_image = nn.ModuleDict(
            {str(size): Conv(width_at[size], channels, activation="tanh", fused=fused) for size in self.sizes}
        )

    def guide(self, x: Tensor, points: Tensor, *, images: bool = True) -> tuple[dict[int, Tensor], Tensor]:
        """The layers before the last: the image of each guided size, and what `finish` takes.

        x (B, channels, R, R) in [-1, 1]; points (B, K, 2) float32 in pixels of R, NaN where missing. images: whether
        the guided images are wanted, else there are none.
        """
        kept = [self.first(x, points)]
        for down in self.down:
            kept.append(down(kept[-1]))
        feature, level_images = kept.pop(), {}
        for up in self.up:
            feature = up(feature)
            size = feature.shape[-1]
            if images and size in self.sizes:
                level_images[size] = self.to_image[str(size)](feature)
            feature = torch.cat([feature, kept.pop()], 1)
        return level_images, feature

    def finish(self, feature: Tensor) -> Tensor:
        """The last layer: (B, channels, R, R) in [-1, 1]."""
        return torch.tanh(self.last(feature))

    def forward(self, x: Tensor, points: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """G(x, c) and the image of each guided size, (B, channels, size, size)."""
        level_images, feature = self.guide(x, points)
        return self.finish(feature), level_images

    def guided_parameters(self) -> list[nn.Parameter]:
        """What the level losses train: the layers up to the last guided feature, and the images' convs."""
        return [p for part in (self.first, self.down, self.up, self.to_image) for p in part.parameters()]

    def image_parameters(self) -> list[nn.Parameter]:
        """What the final image depends on: all but the convs of the guided images."""
        return [p for part in (self.first, self.down, self.up, self.last) for p in part.parameters()]


class PatchCritic(nn.Module):
    """D: convs 4x4 stride 2 to a map of logits: 5, of which small images take fewer so that at least 2x2 patches stay.

    Source: section 2.1; widths and normalisation (not of the first and last) of pix2pix's discriminator.
    """

    def __init__(self, resolution: int, filters: int, channels: int, *, norm: str = "batch"):
        super().__init__()
        depth = min(5, int(math.log2(resolution)) - 1)
        widths = [filters * min(2**level, WIDEST) for level in range(depth - 1)]
        norms = ["none"] + [norm] * (depth - 2)
        self.down = nn.ModuleList(map(Down, [channels, *widths[:-1]], widths, norms))
        self.last = nn.Conv2d(widths[-1], 1, **KERNEL)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, R, R) -> (B, 1, H, W) logits of being real."""
        for down in self.down:
            images = down(images)
        return self.last(images)
