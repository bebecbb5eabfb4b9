"""The refiner: a decoder whose input is the image itself, shrunk, instead of noise."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from engine.data.landmarks import POINTS as LANDMARKS
from engine.errors import InputError
from engine.networks.autoencoder import Decoder
from engine.networks.layers import LANDMARK_HEATMAP, SMALLEST, Conv, level_sizes

MODELS = {"A": (8,), "B": (8, 16), "C": (8, 16, 32)}  # figure 2 of the paper: freest to most restrictive


def check_inject(inject: Sequence[int], resolution: int) -> tuple[int, ...]:
    """The injection sizes, ascending. Raises InputError: 8 must be there, the image itself must not."""
    allowed = level_sizes(resolution)[:-1]
    sizes = tuple(sorted(set(inject)))
    if wrong := [size for size in sizes if size not in allowed]:
        raise InputError(
            f"cannot inject at {', '.join(map(str, wrong))} with resolution {resolution}; "
            f"choose from {', '.join(map(str, allowed))} (--inject 8,16, or another --model or --resolution)"
        )
    if SMALLEST not in sizes:
        raise InputError("the refiner starts from the 8x8 image; begin the list with it (--inject 8,16)")
    return sizes


def pyramid(images: Tensor, sizes: Iterable[int]) -> dict[int, Tensor]:
    """Copies of square images shrunk by nearest (every f-th pixel): size -> (B, C, size, size) channels_last."""
    side = images.shape[-1]
    return {
        size: images[:, :, :: side // size, :: side // size].contiguous(memory_format=torch.channels_last)
        for size in sizes
    }


def landmark_maps(
    landmarks: Tensor, resolution: int, size: int = SMALLEST, sigma: float = 1.0, *, fused: bool = True
) -> Tensor:
    """One Gaussian of peak 1 per landmark, at sub-pixel centres.

    landmarks: (B, 68, 2) x, y in pixels of a resolution x resolution image (0 = centre of the first pixel).
    sigma:     in pixels of the size x size result.
    returns:   (B, 68, size, size) channels_last, the dtype of landmarks. Outside landmarks leave their tail.
    """
    centres = (landmarks + 0.5) * (size / resolution) - 0.5
    # so wide a window cuts nothing: 15 sigma off, float32 holds no Gaussian any more
    return LANDMARK_HEATMAP[fused](centres, size, size, sigma=sigma, radius=math.ceil(15 * sigma), subpixel=True)


class RefinerGenerator(nn.Module):
    """G(z): conv of the 8x8 image, then the decoder; sharper copies join after each x2 whose size is in `inject`.

    landmarks: 68 heatmaps join the 8x8 image.
    Source: the refiner paper, section 2.1 and figure 2; the landmarks are proposed in its conclusion.
    """

    def __init__(
        self,
        resolution: int,
        filters: int,
        channels: int,
        *,
        inject: Sequence[int] = MODELS["B"],
        landmarks: bool = False,
        fused: bool = True,
    ):
        super().__init__()
        self.resolution = resolution
        self.inject = check_inject(inject, resolution)
        self.first = Conv(channels, filters, second_channels=LANDMARKS if landmarks else 0, fused=fused)
        joining = dict.fromkeys(self.inject[1:], channels)
        self.decoder = Decoder(resolution, filters, channels, inject=joining, fused=fused)

    def forward(
        self, pyramid: Mapping[int, Tensor], heatmaps: Tensor | None = None, grad_scale: Tensor | None = None
    ) -> Tensor:
        """pyramid: size -> (B, channels, size, size) for each injected size; heatmaps (B, 68, 8, 8) if built for them.

        returns: (B, channels, R, R), not squashed (the values are those of an image in [-1, 1]).
        """
        x = self.first(pyramid[SMALLEST], second=heatmaps, grad_scale=grad_scale)
        return self.decoder(x, {size: pyramid[size] for size in self.inject[1:]}, grad_scale)
