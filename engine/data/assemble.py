"""The last step, shared by both loaders: cut windows from stored uint8 squares, mirror, scale to [-1, 1]."""

from functools import cache

import torch
from torch import Tensor

from engine.data.landmarks import MIRROR_ORDER


def assemble_images(store: Tensor, rows: Tensor, offsets: Tensor, mirror: Tensor, resolution: int) -> Tensor:
    """store: (M, S, S, C) uint8; rows: (B,) int64 into it; offsets: (B, 2) int64, x then y; mirror: (B,) bool.

    returns: (B, C, R, R) float32 in [-1, 1], channels_last, a fresh tensor. Value v of 0..255 becomes v / 127.5 - 1.
    """
    count, side, _, channels = store.shape
    steps = torch.arange(resolution, device=store.device)
    down = offsets[:, 1:] + steps
    across = offsets[:, :1] + torch.where(mirror[:, None], resolution - 1 - steps, steps)
    pixels = (rows[:, None, None] * side + down[:, :, None]) * side + across[:, None, :]
    flat = store.reshape(count * side * side, channels).index_select(0, pixels.reshape(-1))
    images = flat.to(torch.float32).div_(127.5).sub_(1).reshape(len(rows), resolution, resolution, channels)
    return images.permute(0, 3, 1, 2)


def assemble_landmarks(stored: Tensor, offsets: Tensor, mirror: Tensor, resolution: int) -> Tensor:
    """stored: (B, 68, 2) float32 in pixels of the stored squares. returns: (B, 68, 2) in pixels of the windows.

    Mirroring maps x to R - 1 - x and swaps the left and right points.
    """
    points = stored - offsets[:, None, :]
    mirrored = points.index_select(1, _mirror_order(stored.device))
    mirrored = torch.stack([resolution - 1 - mirrored[..., 0], mirrored[..., 1]], dim=-1)
    return torch.where(mirror[:, None, None], mirrored, points)


@cache
def _mirror_order(device: torch.device) -> Tensor:
    """MIRROR_ORDER there, uploaded once: a copy from pageable memory makes the host wait."""
    return torch.from_numpy(MIRROR_ORDER.copy()).to(device)
