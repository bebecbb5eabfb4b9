"""Between the values of a file, 0 to 255, and those of a network, -1 to 1: value v of a file becomes v / 127.5 - 1.

Loaders do the same in one operator (engine.ops.image_batch), with the same result.
"""

import numpy as np
import torch
from torch import Tensor

from engine.errors import InputError


def from_uint8(pixels: Tensor) -> Tensor:
    """Any shape, uint8 -> the same shape and device, float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Any shape in [-1, 1], any float dtype -> the same shape and device, uint8; rounded, then clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def network_input(pixels: np.ndarray, device: torch.device) -> Tensor:
    """(B, C, R, R) uint8 on the host -> (B, C, R, R) float32 in [-1, 1] on the device, channels_last as a loader's."""
    return from_uint8(torch.from_numpy(pixels).to(device)).contiguous(memory_format=torch.channels_last)


def result_pixels(images: Tensor) -> np.ndarray:
    """(B, C, R, R) of a trained model, in [-1, 1] -> (B, C, R, R) uint8 on the host. Raises InputError for NaN."""
    return to_uint8(finite(images)).cpu().numpy()


def picture_pixels(images: Tensor) -> np.ndarray:
    """(B, C, H, W) in [-1, 1], C = 1 or 3 -> (B, H, W, 3) uint8 on the host, as Pillow takes it; grey is repeated."""
    return to_uint8(images).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()


def finite(images: Tensor) -> Tensor:
    """The images of a trained model, unchanged. Raises InputError where they hold NaN or an infinite value."""
    if not torch.isfinite(images).all():
        raise InputError("the model gives NaN: its training has diverged; use an earlier checkpoint of the run")
    return images
