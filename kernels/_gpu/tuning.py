"""Chooses which of a kernel's few tile shapes runs: measured once per device and problem, and kept on the disk.

Nothing is measured while a CUDA graph is captured, while torch.compile traces, under the interpreter, or with
KILN_AUTOTUNE=0. In these cases a choice measured before runs, or else the first candidate, which the sizes suggest.
"""

import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
import triton

from .._cache_folder import cache_folder
from .launch import INTERPRETED, is_noted, is_traced, noted_choices

T = TypeVar("T")
# elements of a program of an elementwise kernel; the interpreter has no threads to share them, so programs are larger
ELEMENTS = 1 << 14 if INTERPRETED else 256
ROUNDS = 7  # times that a candidate is measured
SLEEP_CYCLES_PER_S = 2e9  # no slower than the clock of any GPU: what sleeps longer costs nothing
LEAST_SLEEP = 5e-4  # seconds, in which the events are recorded
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
    if noted_choices() != "likely":
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
    """Milliseconds that the GPU takes for a candidate: the median of ROUNDS."""
    run(candidate)  # compiles
    return statistics.median(gpu_milliseconds(lambda: run(candidate), ROUNDS))


def gpu_milliseconds(call: Callable[[], object], rounds: int) -> list[float]:
    """What the GPU takes for each of so many calls, without the time that Python takes to start them.

    An idle GPU waits for each launch, and the wait counts. So the GPU first sleeps for as long as it takes to start all
    calls; then it runs them one after another. `call` must not wait for the GPU.
    """
    started = time.perf_counter()
    call()
    seconds = time.perf_counter() - started  # to start one
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    torch.cuda.synchronize()
    torch.cuda._sleep(int(SLEEP_CYCLES_PER_S * (2 * rounds * seconds + LEAST_SLEEP)))
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def choices_file() -> Path:
    """Where the choices of this device and Triton are kept. Raises OSError where there is no cache folder."""
    device = torch.cuda.get_device_name().replace("/", "-").replace(" ", "-")
    return cache_folder() / "tuning" / f"{device}_triton-{triton.__version__}.json"


@cache
def _choices() -> dict[str, int]:
    return _kept_choices()


def _kept_choices() -> dict[str, int]:
    try:
        choices = json.loads(choices_file().read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in choices.items() if type(v) is int and v >= 0} if isinstance(choices, dict) else {}


def _keep(choices: dict[str, int]) -> None:
    """Adds the choices to their file; warns once where that fails, because each process measures again then."""
    choices = _kept_choices() | choices  # other processes measure too
    try:
        path = choices_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
            json.dump(choices, file, indent=1)
        os.replace(file.name, path)
    except OSError as error:
        _warn_once(
            f"the choices of tiles cannot be kept ({error.filename}: {error.strerror}), so every process measures them "
            "again; set KILN_CACHE to a folder that can be written"
        )


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)
