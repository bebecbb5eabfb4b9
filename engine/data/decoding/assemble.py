"""The last step to a batch, the same for both loaders: cut windows from stored squares, mirror, scale to [-1, 1]."""

from functools import cache

import torch
from torch import Tensor

from engine import ops
from engine.data.landmarks import MIRROR_ORDERS

IMAGE_BATCH = ops.pick("image_batch")


def assemble_images(
    store: Tensor, rows: Tensor, offsets: Tensor, mirror: Tensor, resolution: int, *, fused: bool = True
) -> Tensor:
    """The images of a batch, by engine.ops.image_batch.

    store:      (M, S, S, C) uint8 squares. rows: (B,) int64, the square of each image.
    offsets:    (B, 2) int64, x and y of each image's window. mirror: (B,) bool.
    resolution: side R of the windows.
    fused:      False takes the operator's reference, with the same result.
    returns:    (B, C, R, R) float32 in [-1, 1], channels_last.
    """
    return IMAGE_BATCH[fused](store, rows, offsets, mirror, resolution)


def assemble_landmarks(
    stored: Tensor, offsets: Tensor, mirror: Tensor, resolution: int, *, swap: bool = True
) -> Tensor:
    """The landmarks of a batch. Mirroring maps x to R - 1 - x and, with swap, exchanges left and right points.

    stored:  (B, K, 2) float32 in pixels of the stored squares. offsets and mirror: as for the images.
    returns: (B, K, 2) float32 in pixels of the windows.
    """
    points = stored - offsets[:, None, :]
    mirrored = points.index_select(1, _mirror_order(stored.shape[1], stored.device)) if swap else points
    mirrored = torch.stack([resolution - 1 - mirrored[..., 0], mirrored[..., 1]], dim=-1)
    return torch.where(mirror[:, None, None], mirrored, points)


@cache
def _mirror_order(points: int, device: torch.device) -> Tensor:
    """MIRROR_ORDERS[points] on the device, uploaded once: a copy from pageable memory makes the host wait."""
    return torch.from_numpy(MIRROR_ORDERS[points].copy()).to(device)
