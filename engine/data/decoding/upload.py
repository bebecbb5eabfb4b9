"""What a batch is made from, on its way to the device: one copy a batch, which the host never waits for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.data.shuffling import Draw

_INTEGERS, _BYTES = 3, 25  # a sample is its index, x and y as int64, and one byte for the mirroring


@dataclass(frozen=True, slots=True)
class DeviceDraw:
    """A draw on the device: indices (B,) int64, offsets (B, 2) int64, mirror (B,) bool."""

    indices: Tensor
    offsets: Tensor
    mirror: Tensor


def send(draw: Draw, device: torch.device) -> DeviceDraw:
    """Any draw, copied as it is; on a GPU the host waits for it."""
    return DeviceDraw(*(torch.from_numpy(part).to(device) for part in (draw.indices, draw.offsets, draw.mirror)))


@dataclass
class _Slot:
    """Host memory that a copy to the device may still be reading until `copied` has passed."""

    memory: Tensor
    copied: "torch.cuda.Event"
    used: bool = False


class Uploads:
    """Sends draws of one size to a GPU through a ring of pinned buffers.

    The host waits only when all buffers are still being copied: when it is `slots` batches ahead of the device.
    pinned, event: what a test without a GPU replaces.
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
        """draw: of batch_size samples. The result belongs to the current stream."""
        slot = self._ring[self._next]
        self._next = (self._next + 1) % len(self._ring)
        if slot.used:
            slot.copied.synchronize()
        size, split = self._batch_size, 8 * _INTEGERS * self._batch_size
        memory = slot.memory.numpy()
        integers = memory[:split].view(np.int64)
        integers[:size] = draw.indices
        integers[size:] = draw.offsets.reshape(-1)
        memory[split:] = draw.mirror
        there = torch.empty_like(slot.memory, device=self._device).copy_(slot.memory, non_blocking=True)
        slot.copied.record()
        slot.used = True
        integers = there[:split].view(torch.int64)
        return DeviceDraw(integers[:size], integers[size:].view(size, 2), there[split:].view(torch.bool))
