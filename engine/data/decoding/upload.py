"""What a batch is made from, on its way to the device: one copy for each batch, which the host does not wait for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.data.shuffling import Draw

_INTEGERS, _BYTES = 4, 33  # of an image: its index, word, x and y as int64; with one byte more for the mirroring


@dataclass(frozen=True, slots=True)
class DeviceDraw:
    """A draw on the device: indices (B,) int64, offsets (B, 2) int64, mirror (B,) bool, words (B,) int64."""

    indices: Tensor
    offsets: Tensor
    mirror: Tensor
    words: Tensor


def send(draw: Draw, device: torch.device) -> DeviceDraw:
    """A draw of any size, copied as it is; where the device is a GPU, the host waits for the copy."""
    parts = (draw.indices, draw.offsets, draw.mirror, draw.words.view(np.int64))
    return DeviceDraw(*(torch.from_numpy(part).to(device) for part in parts))


@dataclass
class _Slot:
    """Pinned host memory. A copy to the device may still be reading it until the event `copied` has passed."""

    memory: Tensor
    copied: "torch.cuda.Event"
    used: bool = False


class Uploads:
    """Sends draws of one size to a GPU through a ring of pinned buffers.

    The host waits only when all buffers are still being copied: when it is `slots` batches ahead of the device.
    batch_size:    images of a draw.
    slots:         buffers in the ring.
    pinned, event: page-locked memory and CUDA events; a test without a GPU replaces both.
    """

    def __init__(
        self,
        batch_size: int,
        device: torch.device,
        slots: int = 4,
        pinned: bool = True,
        event: Callable[..., "torch.cuda.Event"] = torch.cuda.Event,
    ) -> None:
        self._batch_size, self._device, self._next = batch_size, device, 0
        self._ring = [
            _Slot(torch.empty(_BYTES * batch_size, dtype=torch.uint8, pin_memory=pinned), event(blocking=True))
            for _ in range(slots)
        ]

    def __call__(self, draw: Draw) -> DeviceDraw:
        """The draw of batch_size images, on the device; for use on the CUDA stream that is current at the call."""
        slot = self._ring[self._next]
        self._next = (self._next + 1) % len(self._ring)
        if slot.used:
            slot.copied.synchronize()
        size, split = self._batch_size, 8 * _INTEGERS * self._batch_size
        memory = slot.memory.numpy()
        integers = memory[:split].view(np.int64)
        integers[:size] = draw.indices
        integers[size : 2 * size] = draw.words.view(np.int64)
        integers[2 * size :] = draw.offsets.reshape(-1)
        memory[split:] = draw.mirror
        uploaded = torch.empty_like(slot.memory, device=self._device).copy_(slot.memory, non_blocking=True)
        slot.copied.record()
        slot.used = True
        integers = uploaded[:split].view(torch.int64)
        offsets, mirror = integers[2 * size :].view(size, 2), uploaded[split:].view(torch.bool)
        return DeviceDraw(integers[:size], offsets, mirror, integers[size : 2 * size])
