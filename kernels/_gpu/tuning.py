"""Which of a kernel's few tile shapes runs: measured once per device and problem, and kept on the disk.

Nothing is measured while a CUDA graph is captured, while torch.compile traces, under the interpreter, or with
KILN_AUTOTUNE=0: there the first candidate runs, the one that the sizes suggest, unless a measured choice is known.
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
# elements of a program where each is made by itself; the interpreter has no threads to share them
ELEMENTS = 1 << 14 if INTERPRETED else 256
ROUNDS = 7
# streaming multiprocessors of an H100: what sizes are chosen for where there is no GPU to ask
H100_PROCESSORS = 132
INTERPRETED_PROCESSORS = 4  # the interpreter runs programs one after another: few large ones are soonest done


@cache
def processors() -> int:
    """Streaming multiprocessors of the GPU that runs, or of an H100 where none does."""
    if INTERPRETED:
        return INTERPRETED_PROCESSORS
    if not torch.cuda.is_available():
        return H100_PROCESSORS
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


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
    known = _choices()
    if known.get(key, len(candidates)) >= len(candidates):
        if is_traced() or is_noted() or not _may_measure():
            run(candidates[0])
            return
        seconds = [_measure(run, candidate) for candidate in candidates]
        known[key] = seconds.index(min(seconds))
        _keep(known)
    run(candidates[known[key]])


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
        found = json.loads(choices_file().read_text())
    except (OSError, ValueError):
        return {}
    return {str(k): int(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _keep(choices: dict[str, int]) -> None:
    """A cache that cannot be written costs a measurement in the next process, nothing else."""
    path = choices_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
            json.dump(choices, file, indent=1)
        os.replace(file.name, path)
    except OSError:
        pass
