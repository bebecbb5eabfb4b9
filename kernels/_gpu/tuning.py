"""Chooses which of a kernel's few tile shapes runs: measured once per device and problem, and kept on the disk.

Nothing is measured while a CUDA graph is captured, while torch.compile traces, under the interpreter, or with
KILN_AUTOTUNE=0. In these cases a choice measured before runs, or else the first candidate, which the sizes suggest.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
import triton

from .launch import INTERPRETED, is_noted, is_traced, notes_every_choice

T = TypeVar("T")
# elements of a program of an elementwise kernel; the interpreter has no threads to share them, so programs are larger
ELEMENTS = 1 << 14 if INTERPRETED else 256
ROUNDS = 7  # times that a candidate is measured
H100_PROCESSORS = 132  # streaming multiprocessors of an H100: sizes are chosen for them where there is no GPU to ask
INTERPRETED_PROCESSORS = 4  # the interpreter runs programs one after another: a few large ones take the least time
INTERPRETED_BLOCKS = 4  # an operation of the interpreter takes as long on few elements as on thousands


@cache
def processors() -> int:
    """Streaming multiprocessors of the GPU that runs, or of an H100 where none does."""
    if INTERPRETED:
        return INTERPRETED_PROCESSORS
    if not torch.cuda.is_available():
        return H100_PROCESSORS
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


def block(count: int, size: int) -> int:
    """How many of `count` pixels a block holds: `size`, or under the interpreter so many that a few blocks hold all."""
    return max(size, triton.next_power_of_2(triton.cdiv(count, INTERPRETED_BLOCKS))) if INTERPRETED else size


def run_best(kernel: str, problem: tuple, candidates: Sequence[T], run: Callable[[T], None]) -> None:
    """Calls run(candidate) with the fastest candidate for this problem; the first call of a problem measures them."""
    if notes_every_choice():
        for candidate in candidates:
            run(candidate)
        return
    if len(candidates) == 1 or INTERPRETED or not torch.cuda.is_available():
        run(candidates[0])
        return
    key = f"{kernel} {' '.join(map(str, problem))} of {len(candidates)}"
    choices = _choices()
    if choices.get(key, len(candidates)) >= len(candidates):
        if is_traced() or is_noted() or not _may_measure():
            run(candidates[0])
            return
        seconds = [_measure(run, candidate) for candidate in candidates]
        choices[key] = seconds.index(min(seconds))
        _keep(choices)
    run(candidates[choices[key]])


def _may_measure() -> bool:
    return not torch.cuda.is_current_stream_capturing() and os.environ.get("KILN_AUTOTUNE", "") != "0"


def _measure(run: Callable[[T], None], candidate: T) -> float:
    run(candidate)  # compiles
    times = []
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run(candidate)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def choices_file() -> Path:
    """Where the choices of this device and Triton are kept: in KILN_CACHE, else the platform's cache folder."""
    base = os.environ.get("KILN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kiln"
    device = torch.cuda.get_device_name().replace("/", "-").replace(" ", "-")
    return Path(base).expanduser() / "tuning" / f"{device}_triton-{triton.__version__}.json"


@cache
def _choices() -> dict[str, int]:
    try:
        choices = json.loads(choices_file().read_text())
    except (OSError, ValueError):
        return {}
    return {str(k): int(v) for k, v in choices.items()} if isinstance(choices, dict) else {}


def _keep(choices: dict[str, int]) -> None:
    """Writes the choices to their file; if that fails, the next process measures again."""
    path = choices_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
            json.dump(choices, file, indent=1)
        os.replace(file.name, path)
    except OSError:
        pass
