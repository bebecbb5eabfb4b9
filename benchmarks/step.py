"""Whole training steps: the fused one-pass step against the textbook step in eager PyTorch, time and peak memory."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import Timing, interleaved
from engine import systems
from engine.config import TrainConfig
from engine.data import Batch
from engine.systems.base import System

SETTINGS = {
    "refiner 64x64, 64 filters, batch 25": {"filters": 64, "batch_size": 25},
    "refiner 64x64, 16 filters, batch 16": {"filters": 16, "batch_size": 16},
}
TOLERANCE = 1e-4  # relative difference of the losses over CHECKED steps
CHECKED = 3
COMPETITORS = ("fused", "eager channels_last", "eager contiguous")


def measure(
    setting: dict, device: str, rounds: int, tick: Callable[[int], None]
) -> tuple[dict[str, Timing], list[str]]:
    """Seconds per step of every competitor, and the losses that disagree (then no timings)."""
    failed = _disagreements(setting, device)
    if failed:
        return {}, failed
    steps = {name: _stepper(name, setting, device) for name in COMPETITORS}
    return interleaved(steps, rounds=rounds, after_round=tick), []


def peak_memory(name: str, setting: dict, device: str) -> int:
    """Bytes that three steps add to a fresh process: peak resident size (or CUDA allocations) less that before."""
    command = [sys.executable, "-m", "benchmarks.step", name, json.dumps(setting), device, str(torch.get_num_threads())]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    return int(done.stdout.split()[-1])


def _system(name: str, setting: dict, device: str) -> tuple[System, Batch]:
    fused = name == "fused"
    config = dataclasses.replace(TrainConfig(fused=fused, eager=not fused), inject=(8, 16), **setting)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(config.batch_size, 3, config.resolution, config.resolution, generator=generator) * 2 - 1
    layout = torch.contiguous_format if name == "eager contiguous" else torch.channels_last
    images = images.to(device).contiguous(memory_format=layout)
    batch = Batch(images=images, landmarks=None, indices=torch.arange(config.batch_size))
    system = systems.build(config, device)
    if layout == torch.channels_last and not fused:
        for network in system.networks().values():
            network.to(memory_format=torch.channels_last)
    return system, batch


def _stepper(name: str, setting: dict, device: str) -> Callable[[], object]:
    system, batch = _system(name, setting, device)
    return lambda: system.step(batch)


def _disagreements(setting: dict, device: str) -> list[str]:
    (fused, batch), (eager, _) = (_system(name, setting, device) for name in COMPETITORS[:2])
    failed = []
    for step in range(CHECKED):
        ours, theirs = fused.step(batch), eager.step(batch)
        for loss in ours:
            a, b = float(ours[loss]), float(theirs[loss])
            if abs(a - b) > TOLERANCE * max(abs(b), 1e-3):
                failed.append(f"step {step}: {loss} is {a:.6g} fused and {b:.6g} eager")
    return failed


def main(name: str, setting: str, device: str, threads: str) -> None:
    """The process that peak_memory starts."""
    torch.set_num_threads(int(threads))
    system, batch = _system(name, json.loads(setting), device)
    cuda = device.startswith("cuda")
    if not cuda:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = torch.cuda.memory_allocated() if cuda else _resident("VmRSS")
    for _ in range(3):
        system.step(batch)
    print((torch.cuda.max_memory_allocated() if cuda else _resident("VmHWM")) - before)


def _resident(field: str) -> int:
    line = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
