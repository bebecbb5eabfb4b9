"""Measures how sharp images are, against photos of the same size: 1 is as sharp as they are, less is softer.

The measure is the mean variance of the Laplacian of each image's grey values (Pech-Pacheco et al. 2000), as a ratio.
"""

import torch.nn.functional as F
from torch import Tensor

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def laplacian_variance(images: Tensor) -> Tensor:
    """The variance of the Laplacian inside each image, (N,) float64; images (N, C, R, R) uint8, C 1 or 3."""
    values = images.double()
    if values.shape[1] == 3:
        values = (values * values.new_tensor(_GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    edges = F.conv2d(values, values.new_tensor(_LAPLACIAN).view(1, 1, 3, 3))
    return edges.flatten(1).var(1, correction=0)


def sharpness(results: Tensor, photos: Tensor) -> float | None:
    """The ratio of the mean Laplacian variances of sets (N, C, R, R) and (M, C, R, R) uint8; None for flat photos."""
    of_photos = float(laplacian_variance(photos).mean())
    return float(laplacian_variance(results).mean()) / of_photos if of_photos else None
