"""Computes the sliced Wasserstein distance between two sets of images (Karras et al. 2018, section 5).

Each image becomes a Laplacian pyramid, from side R down to 16. On every level 7x7 patches are drawn from both sets,
normalised to mean 0 and standard deviation 1 per channel (each set by itself), and compared by the one-dimensional
Wasserstein distance along random directions. A low value says that the sets look alike at that scale; images are not
compared one by one. A seed always draws the same places and directions, so equal sets give exactly 0.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 7  # side of a patch
SMALLEST = 16  # side of the last level of the pyramid
_PATCHES_PER_IMAGE, _PATCHES = 128, 1 << 18
_DIRECTIONS, _REPEATS = 128, 4
_BATCH = 64


def _blur(images: Tensor, gain: float = 1.0) -> Tensor:
    """5x5 binomial filter with mirrored borders."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=images.dtype) / 16
    kernel = (gain * taps[:, None] * taps).expand(images.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=images.shape[1])


def laplacian_pyramid(images: Tensor, smallest: int = SMALLEST) -> list[Tensor]:
    """The Laplacian pyramid of images (N, C, R, R) float: band-pass levels of side R, R/2, ... and a low-pass rest.

    smallest: side of the rest. Enlarging the rest with `enlarge`, adding the next level, and so on gives the images.
    """
    levels, current = [], images
    while current.shape[-1] > smallest:
        low = _blur(current)[:, :, ::2, ::2]
        levels.append(current - enlarge(low))
        current = low
    return [*levels, current]


def enlarge(low: Tensor) -> Tensor:
    """Images (N, C, H, W) at twice the size: zeros between the pixels, then `_blur` with four times the gain."""
    n, c, h, w = low.shape
    spread = low.new_zeros(n, c, 2 * h, 2 * w)
    spread[:, :, ::2, ::2] = low
    return _blur(spread, gain=4.0)


def patches(level: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` patches of each image at random places: (N, C, H, W) -> (N * count, C, 7, 7)."""
    n, _, h, w = level.shape
    top = torch.randint(h - PATCH + 1, (n, count), generator=generator)
    left = torch.randint(w - PATCH + 1, (n, count), generator=generator)
    steps = torch.arange(PATCH)
    rows = (top[..., None] + steps)[:, :, :, None]
    columns = (left[..., None] + steps)[:, :, None, :]
    images = torch.arange(n)[:, None, None, None]
    # advanced indices around a slice: the channel axis comes last
    return level.permute(0, 2, 3, 1)[images, rows, columns].flatten(0, 1).permute(0, 3, 1, 2)


def _normalised(descriptors: Tensor) -> Tensor:
    """Patches (M, C, 7, 7) as rows (M, C * 49), with mean 0 and standard deviation 1 per channel."""
    mean = descriptors.mean(dim=(0, 2, 3), keepdim=True)
    deviation = descriptors.std(dim=(0, 2, 3), keepdim=True, correction=0)
    return ((descriptors - mean) / deviation.clamp_min(1e-8)).flatten(1)


def sliced_wasserstein(a: Tensor, b: Tensor, *, seed: int = 0) -> float:
    """The mean over random unit directions u of the Wasserstein-1 distance of u.a and u.b.

    a, b: (M, D), of the same shape; else a ValueError is raised
    """
    if a.shape != b.shape:
        raise ValueError(f"sets of equal size are needed, got {tuple(a.shape)} and {tuple(b.shape)}")
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(_REPEATS):
        directions = torch.randn(a.shape[1], _DIRECTIONS, generator=generator, dtype=a.dtype)
        directions /= directions.norm(dim=0, keepdim=True)
        # NumPy sorts along rows with vector instructions, ten times faster than torch
        of_a, of_b = (np.sort((directions.T @ points.T).numpy(), axis=1) for points in (a, b))
        distances.append(np.abs(of_a - of_b).mean(dtype=np.float64))
    return float(np.mean(distances))


def distance(a: Tensor, b: Tensor, *, seed: int = 0) -> dict[str, float]:
    """The distance x 1000 on every level of the pyramid, by the level's side ("64", "32", "16"), and their "mean".

    a, b: (N, C, R, R) uint8 with R >= 16, of the same shape; else a ValueError is raised
    """
    if a.shape != b.shape:
        raise ValueError(f"sets of equal size are needed, got {tuple(a.shape)} and {tuple(b.shape)}")
    distances = {}
    descriptors = [_descriptors(images, seed) for images in (a, b)]
    for side, of_a, of_b in zip(descriptors[0], descriptors[0].values(), descriptors[1].values(), strict=True):
        distances[str(side)] = 1000 * sliced_wasserstein(_normalised(of_a), _normalised(of_b), seed=seed)
    return distances | {"mean": sum(distances.values()) / len(distances)}


def _descriptors(images: Tensor, seed: int) -> dict[int, Tensor]:
    """Side of a level -> patches (M, C, 7, 7) float32 of images (N, C, R, R); at most 2^18 on a level."""
    count = max(1, min(_PATCHES_PER_IMAGE, _PATCHES // len(images)))
    generator = torch.Generator().manual_seed(seed)
    by_side: dict[int, list[Tensor]] = {}
    for batch in images.split(_BATCH):
        for level in laplacian_pyramid(batch.to(torch.float32)):
            by_side.setdefault(level.shape[-1], []).append(patches(level, count, generator))
    return {side: torch.cat(parts) for side, parts in by_side.items()}
