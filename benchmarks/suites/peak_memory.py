"""The peak memory of training steps, taken in a process that does nothing else."""

import ctypes
import gc
import sys
from pathlib import Path

import torch

from engine.data import Batch
from engine.systems.base import System

STEPS = 3


def peak_memory_of_steps(system: System, batch: Batch, compiled: bool) -> int:
    """Bytes that STEPS steps add to this process; on a GPU to its allocations.

    compiled: the networks are compiled in their first step, whose memory does not count
    """
    cuda = system.device.type == "cuda"
    if compiled:
        _compile_apart(system, batch)
    if cuda:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
    before = torch.cuda.memory_allocated() if cuda else _resident("VmRSS")
    for _ in range(STEPS):
        system.step(batch)
    return (torch.cuda.max_memory_allocated() if cuda else _resident("VmHWM")) - before


def _compile_apart(system: System, batch: Batch) -> None:
    """Compiles in one step, then removes the step's gradients and moments: compiling is not part of a step's memory."""
    system.step(batch)
    for optimiser in system.optimisers.values():
        optimiser.zero_grad(set_to_none=True)
        optimiser.state.clear()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _resident(field: str) -> int:
    line = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(field))
    return int(line.split()[1]) * 1024
