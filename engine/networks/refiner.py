"""The generator of refiner: a decoder whose input is the shrunken image itself, not noise."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.data.landmarks import POINTS as LANDMARKS
from engine.errors import InputError
from engine.networks.autoencoder import Decoder
from engine.networks.layers import LANDMARK_HEATMAP, SMALLEST, Conv, level_sizes

_SMALL_START = 1e-4  # of the last layer of a correction: training starts near the enlarged copy
# name -> sizes at which G sees the image: from the freest to the most restrictive (figure 2 of the paper)
MODELS = {"A": (8,), "B": (8, 16), "C": (8, 16, 32)}


def check_inject(inject: Sequence[int], resolution: int) -> tuple[int, ...]:
    """Sort the injection sizes. Raises InputError unless 8 is one of them and all are levels below the image's size."""
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
    """Shrink square images by nearest, taking every f-th pixel: size -> (B, C, size, size) channels_last."""
    side = images.shape[-1]
    return {
        size: images[:, :, :: side // size, :: side // size].contiguous(memory_format=torch.channels_last)
        for size in sizes
    }


def cubic(small: int, side: int) -> Tensor:
    """The matrix (side, small) float32 that enlarges a column of pixels by cubic interpolation.

    Row r is the weights of the pixel at r * small / side: pixel i of the small column stays at i * side / small, where
    `pyramid` took it from. Beyond the last pixel the column goes on as it ends. Source: Keys 1981, with a = -1/2.
    """
    places = torch.arange(side, dtype=torch.float64) * small / side
    below = places.floor().long()
    matrix = torch.zeros(side, small, dtype=torch.float64)
    for neighbour in range(-1, 3):
        away = (places - below - neighbour).abs()
        near = 1.5 * away**3 - 2.5 * away**2 + 1
        far = -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2
        weight = torch.where(away <= 1, near, torch.where(away < 2, far, torch.zeros_like(away)))
        matrix[torch.arange(side), (below + neighbour).clamp(0, small - 1)] += weight
    return matrix.float()


def enlarge(small: Tensor, matrix: Tensor) -> Tensor:
    """Enlarge shrunken copies by cubic interpolation; every pixel stays where `pyramid` took it from.

    small:   (B, C, s, s)
    matrix:  (side, s), what `cubic` gives
    returns: (B, C, side, side) channels_last, in the dtype of `small`
    """
    matrix = matrix.to(small.dtype)
    return (matrix @ small @ matrix.T).contiguous(memory_format=torch.channels_last)


def landmark_maps(
    landmarks: Tensor, resolution: int, size: int = SMALLEST, sigma: float = 1.0, *, fused: bool = True
) -> Tensor:
    """Draw one Gaussian of peak 1 per landmark, at sub-pixel centres.

    landmarks: (B, 68, 2) x, y in pixels of a resolution x resolution image (0 = centre of the first pixel); of one
               outside the image, the tail of the Gaussian is drawn
    sigma:     in pixels of the size x size result
    returns:   (B, 68, size, size) channels_last, in the dtype of landmarks
    """
    centres = (landmarks + 0.5) * (size / resolution) - 0.5
    # a window of 15 sigma cuts nothing off: beyond it a Gaussian is 0 in float32
    return LANDMARK_HEATMAP[fused](centres, size, size, sigma=sigma, radius=math.ceil(15 * sigma), subpixel=True)


class RefinerGenerator(nn.Module):
    """G(z): conv of the 8x8 image, then the decoder; a sharper copy joins after each x2 whose size is in `inject`.

    inject:    sizes at which G sees the image, 8 among them
    widths, depths: filters and convolutions of each level, as in Decoder
    landmarks: whether 68 heatmaps join the 8x8 image
    correct:   the decoder's image is added to the sharpest copy, enlarged; the paper's G makes the image anew
    Source: the refiner paper, section 2.1 and figure 2; the landmarks are proposed in its conclusion.
    """

    enlarging: Tensor  # with `correct`, the matrix that `enlarge` takes

    def __init__(
        self,
        resolution: int,
        filters: int,
        channels: int,
        *,
        inject: Sequence[int] = MODELS["B"],
        widths: Sequence[int] = (),
        depths: Sequence[int] = (),
        landmarks: bool = False,
        correct: bool = False,
        fused: bool = True,
    ):
        super().__init__()
        self.resolution, self.correct = resolution, correct
        self.inject = check_inject(inject, resolution)
        shape: dict[str, Any] = {"widths": widths, "depths": depths, "inject": dict.fromkeys(self.inject[1:], channels)}
        entry = widths[0] if widths else filters
        self.first = Conv(channels, entry, second_channels=LANDMARKS if landmarks else 0, fused=fused)
        self.decoder = Decoder(resolution, filters, channels, **shape, fused=fused)
        if correct:
            self.decoder.last.start_gain = _SMALL_START
            self.register_buffer("enlarging", cubic(self.inject[-1], resolution), persistent=False)

    def forward(
        self, pyramid: Mapping[int, Tensor], heatmaps: Tensor | None = None, grad_scale: Tensor | None = None
    ) -> Tensor:
        """Make images of their shrunken copies.

        pyramid:    size -> (B, channels, size, size) for each size of `inject`
        heatmaps:   (B, 68, 8, 8) when G was built with landmarks
        grad_scale: (B,) as in Conv
        returns:    (B, channels, R, R), images in [-1, 1] that no activation squashes
        """
        x = self.first(pyramid[SMALLEST], second=heatmaps, grad_scale=grad_scale)
        made = self.decoder(x, {size: pyramid[size] for size in self.inject[1:]}, grad_scale)
        if not self.correct:
            return made
        return made + enlarge(pyramid[self.inject[-1]], self.enlarging).to(made.dtype)
