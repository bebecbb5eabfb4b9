"""Shows discriminators every image in another light and place, real and generated alike: for small data sets.

A discriminator that sees the same thousand photos again and again learns them by heart. Augmenting the photos alone
would teach the generator the augmentation; what changes both, and lets gradients through, does not.
Source: Zhao et al. 2020, Differentiable Augmentation: colour, translation and cutout.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from engine import distributed

# at strength 1: brightness, saturation and contrast change by up to half, twice and half; images move by up to an
# eighth of the side, and a square of half a side is grey
_BRIGHTNESS, _SATURATION, _CONTRAST, _SHIFT, _CUTOUT = 0.5, 1.0, 0.5, 1 / 8, 1 / 2


def seen_differently(images: Tensor, strength: float) -> Tensor:
    """Change images (B, C, R, R) in [-1, 1] at random; the result has the same shape, and gradients of any order.

    strength: 0 to 1, a factor on all changes
    """
    chances = distributed.drawn(lambda rows: torch.rand(rows, 7, device=images.device), len(images)) * 2 - 1
    return _cut(_shifted(_coloured(images, strength, chances), strength, chances), strength, chances)


def _coloured(images: Tensor, strength: float, chances: Tensor) -> Tensor:
    brightness, saturation, contrast = (chances[:, i].to(images.dtype).view(-1, 1, 1, 1) * strength for i in range(3))
    images = images + _BRIGHTNESS * brightness
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (1 + _SATURATION * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (1 + _CONTRAST * contrast)


def _shifted(images: Tensor, strength: float, chances: Tensor) -> Tensor:
    """Move by whole pixels; what comes in from outside is 0. Taking rows by their numbers has derivatives twice."""
    side = images.shape[-1]
    places = torch.arange(side, device=images.device)
    most = _SHIFT * strength * side
    down, right = ((chances[:, i] * most).round().long() for i in (3, 4))
    # row 0 and the last one of the padded image are zeros
    rows, columns = ((places + shift[:, None] + 1).clamp(0, side + 1) for shift in (down, right))
    padded = F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    numbers = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[numbers, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cut(images: Tensor, strength: float, chances: Tensor) -> Tensor:
    side = images.shape[-1]
    places = torch.arange(side, device=images.device)
    half = _CUTOUT * strength * side / 2
    row, column = ((chances[:, i] + 1) / 2 * side for i in (5, 6))
    inside = ((places - row[:, None]).abs() < half)[:, :, None] & ((places - column[:, None]).abs() < half)[:, None, :]
    return images * (~inside)[:, None].to(images.dtype)
