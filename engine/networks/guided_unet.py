"""G and D of ggb: a U-Net that also makes smaller images on its way up, and a critic of patches."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.networks.global_batch import BatchNorm
from engine.networks.layers import Conv, LandmarkConv

NEGATIVE_SLOPE = 0.2  # of LeakyReLU below 0, and the default of the operators
WIDEST = 8  # a layer has at most so many times the filters of the first
KERNEL = {"kernel_size": 4, "stride": 2, "padding": 1}


def guided_sizes(resolution: int, levels: int) -> tuple[int, ...]:
    """The sizes of the `levels` guided decoder features, ascending: the last of R/8, R/4 and R/2, at least 4 pixels.

    A feature of 4x4 is the decoder's first. Source: section 3.2 of the paper (32, 64 and 128 of 256).
    """
    sizes = (resolution // 8, resolution // 4, resolution // 2)
    return tuple(size for size in sizes[len(sizes) - levels :] if size >= 4)


def normalisation(kind: str, channels: int) -> nn.Module:
    """Build the normalisation `kind` ("batch", "instance" with an affine map, or "none")."""
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return BatchNorm(channels)
    return nn.InstanceNorm2d(channels, affine=True)


class Down(nn.Module):
    """Halve the size: conv 4x4 stride 2, normalisation, LeakyReLU. A conv before a normalisation has no bias."""

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, **KERNEL, bias=norm == "none")
        self.norm = normalisation(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/2, W/2)."""
        return F.leaky_relu(self.norm(self.conv(x)), NEGATIVE_SLOPE)


class Up(nn.Module):
    """Double the size: transposed conv 4x4 stride 2, normalisation, ReLU. A conv before a normalisation has no bias."""

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, **KERNEL, bias=norm == "none")
        self.norm = normalisation(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, 2H, 2W)."""
        return F.relu(self.norm(self.conv(x)))


class GuidedUNet(nn.Module):
    """G(x, c): convs of stride 2 down to 2x2 and transposed convs up again, 7 and 7 at 256x256.

    A guided decoder feature also gives an image of its own size, by a 3x3 conv and tanh, before the encoder's feature
    joins it.
    points: number of heatmaps beside the image in the first layer
    sizes:  sides of the guided features, from guided_sizes
    sigma:  of the heatmaps' Gaussians, in pixels
    norm:   of all layers but the first, the innermost and the last: "batch", "instance" or "none"
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
        # the innermost feature has no skip; the encoder's feature of the same size joins every later one
        inputs = [widths[-1], *(2 * width for width in widths[-2:0:-1])]
        self.up = nn.ModuleList(Up(i, o, norm) for i, o in zip(inputs, widths[-2::-1], strict=True))
        self.last = nn.ConvTranspose2d(2 * widths[0], channels, **KERNEL)
        width_at = {4 << level: width for level, width in enumerate(widths[-2::-1])}
        self.to_image = nn.ModuleDict(
            {str(size): Conv(width_at[size], channels, activation="tanh", fused=fused) for size in self.sizes}
        )

    def guide(self, x: Tensor, points: Tensor, *, images: bool = True) -> tuple[dict[int, Tensor], Tensor]:
        """Run the layers before the last.

        x:       (B, channels, R, R) in [-1, 1]
        points:  (B, K, 2) float32 x, y in pixels of R, NaN where missing
        images:  whether the guided images are made
        returns: size -> image (B, channels, size, size) of each guided size, and the feature that `finish` takes
        """
        skips = [self.first(x, points)]
        for down in self.down:
            skips.append(down(skips[-1]))
        feature, level_images = skips.pop(), {}
        for up in self.up:
            feature = up(feature)
            size = feature.shape[-1]
            if images and size in self.sizes:
                level_images[size] = self.to_image[str(size)](feature)
            feature = torch.cat([feature, skips.pop()], 1)
        return level_images, feature

    def finish(self, feature: Tensor) -> Tensor:
        """Run the last layer on the feature that `guide` returns: (B, channels, R, R) in [-1, 1]."""
        return torch.tanh(self.last(feature))

    def forward(self, x: Tensor, points: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """x (B, channels, R, R), points (B, K, 2) -> G(x, c), and size -> image of each guided size, as in `guide`."""
        level_images, feature = self.guide(x, points)
        return self.finish(feature), level_images

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
