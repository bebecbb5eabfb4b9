"""How times are taken: one call of every competitor per round, medians over the rounds. Also limits and memory."""

import contextlib
import gc
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch

from engine.host.allocator import keep_freed_memory
from engine.host.tf32 import tf32_allowed
from engine.training.cuda_graph import recording, waiting_raises

WARM_UP = 5  # samples
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # of PyTorch


@dataclass(frozen=True)
class Timing:
    """Seconds of one competitor: every sample, their median and their quartiles.

    allocated: bytes that PyTorch's allocations of one call reach at most; None where they were not measured.
    """

    samples: list[float]
    allocated: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        first, _, third = statistics.quantiles(self.samples, n=4)
        return first, third

    def to_json(self) -> dict[str, object]:
        """The samples with their summary."""
        return {**asdict(self), "median": self.median, "quartiles": list(self.quartiles)}


@dataclass(frozen=True)
class Limits:
    """The most that this machine can do, measured once: matrix products, and copies and fills that no cache holds."""

    matrix_flops: float
    copy_bytes_per_s: float
    fill_bytes_per_s: float

    def shares(self, seconds: float, flops: float | None, moved: float | None) -> dict[str, float | None]:
        """The share of each limit that this work in these seconds is; None where the work is unknown, 0 for no work.

        flops: products, as FLOPs; moved: bytes.
        """
        return {
            "share_of_matrix": flops and flops / seconds / self.matrix_flops,
            "share_of_copy": moved and moved / seconds / self.copy_bytes_per_s,
        }


def interleaved(
    competitors: dict[str, Callable[[], object]],
    *,
    rounds: int,
    least_seconds: float = 0.02,
    in_all: float = 0.0,
    after_round: Callable[[int], None] | None = None,
    allocations: str | None = None,
) -> dict[str, Timing]:
    """Times every competitor once per round, after untimed calls as long as five samples.

    A sample is the mean of as many calls as last at least `least_seconds`, of which a Replay makes several at once; the
    order alternates between rounds.

    rounds:      how many at the least; more follow until `in_all` seconds are sampled
    after_round: called with the number of each of the first `rounds` rounds, from 1
    allocations: the device whose allocations are measured too, after the times; None for no device
    """
    repeats = {}
    for name, call in competitors.items():
        call()
        seconds = _time(call, 1) * _calls(call)
        repeats[name] = max(1, round(least_seconds / seconds + 0.5)) if seconds < least_seconds else 1
        _warm_up(call, WARM_UP * least_seconds - seconds)
    samples: dict[str, list[float]] = {name: [] for name in competitors}
    gc.collect()
    started = time.perf_counter()
    for number in itertools.count():
        if number >= rounds and time.perf_counter() - started >= in_all:
            break
        order = list(competitors) if number % 2 == 0 else list(reversed(competitors))
        for name in order:
            samples[name].append(_time(competitors[name], repeats[name]))
        if after_round and number < rounds:
            after_round(number + 1)
    peaks = {name: allocation_peak(call, allocations) if allocations else None for name, call in competitors.items()}
    return {name: Timing(seconds, peaks[name]) for name, seconds in samples.items()}


def steady_memory() -> bool:
    """Keeps this process's freed memory, and its large tensors in huge pages where Linux gives them when asked.

    Without this, each process decides anew which blocks it gives back and where a tensor's small pages fall in the
    caches, and speed-ups of work that fits a cache differ by a tenth between two processes. Call this before the first
    tensor is made. Returns whether the C library accepts the first of the two settings.
    """
    before = os.environ.get(HUGE_PAGES)
    os.environ[HUGE_PAGES] = "1"
    torch.empty(1)  # PyTorch reads the variable with its first tensor
    if before is None:
        del os.environ[HUGE_PAGES]  # child processes, which measure peak memory, run without huge pages
    else:
        os.environ[HUGE_PAGES] = before
    return keep_freed_memory()


def _warm_up(call: Callable[[], object], seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        call()


def _time(call: Callable[[], object], repeats: int) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / (repeats * _calls(call))


def _calls(call: Callable[[], object]) -> int:
    """How many calls are made where this one is."""
    return call.times if isinstance(call, Replay) else 1


@dataclass(frozen=True)
class Precision:
    """How a suite computes, and how far a baseline may be from eager.

    dtype:    of the operators' tensors
    tf32:     whether float32 products may be TF32
    baseline: norm-wise relative difference of a tensor that is allowed
    losses:   relative difference of a step's loss that is allowed
    """

    dtype: torch.dtype
    tf32: bool
    baseline: float
    losses: float


PRECISIONS = {
    "fp32": Precision(torch.float32, False, 1e-4, 1e-4),
    "tf32": Precision(torch.float32, True, 5e-3, 5e-3),
    "bf16": Precision(torch.bfloat16, False, 2e-2, 2e-2),
}


def measure_limits(device: str, precision: str) -> Limits:
    """The limits of the device in a precision of PRECISIONS."""
    dtype = PRECISIONS[precision].dtype
    with tf32_allowed(PRECISIONS[precision].tf32):
        return Limits(matrix_rate(device, dtype), copy_bandwidth(device), fill_bandwidth(device))


def matrix_rate(device: str = "cpu", dtype: torch.dtype = torch.float32, rounds: int = 8) -> float:
    """FLOP/s of PyTorch's matrix product, the best of a few; on the CPU of its convolution where that is faster.

    The two come from different libraries; the matrix product's leaves half of some processors unused.
    """
    size, batch = _product(device)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    calls, flops = {"product": lambda: a @ b}, {"product": 2.0 * size**3}
    if device == "cpu":
        channels, side = 256, 16
        x = torch.randn(batch, channels, side, side).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3).to(dtype, memory_format=torch.channels_last)
        calls["convolution"] = lambda: torch.conv2d(x, weight, padding=1)
        # products with the padding are not computed
        flops["convolution"] = 2.0 * batch * channels**2 * (3 * side - 2) ** 2
    with torch.no_grad():
        timings = interleaved(calls, rounds=rounds)
    return max(flops[name] / min(timing.samples) for name, timing in timings.items())


def copy_bandwidth(device: str = "cpu", rounds: int = 8) -> float:
    """Bytes/s read and written by a copy that no cache holds, the best of a few."""
    a, b = (torch.zeros(_floats(device), device=device) for _ in range(2))
    return 8 * a.numel() / min(interleaved({"copy": lambda: b.copy_(a)}, rounds=rounds)["copy"].samples)


def fill_bandwidth(device: str = "cpu", rounds: int = 8) -> float:
    """Bytes/s written by filling a tensor with zeros that no cache holds, the best of a few."""
    a = torch.empty(_floats(device), device=device)
    return 4 * a.numel() / min(interleaved({"fill": a.zero_}, rounds=rounds)["fill"].samples)


def _product(device: str) -> tuple[int, int]:
    """The side of the matrices, and the images of the convolution."""
    return (1536 if device == "cpu" else 8192), 25


def _floats(device: str) -> int:
    return 1 << (26 if device == "cpu" else 28)


def allocation_peak(call: Callable[[], object], device: str = "cpu") -> int:
    """The peak of PyTorch's allocations in one call, in bytes beyond what was allocated before it.

    On the CPU it is taken from the profiler's record of each allocation, without what native kernels hold as they run.
    """
    call()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profiled(profile_memory=True) as profiler:
        result = call()
    del result
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held, default=0)


@contextlib.contextmanager
def profiled(**options: bool) -> Iterator[torch.profiler.profile]:
    """torch.profiler on the CPU, without its messages on standard error, which would break up a table."""
    sys.stderr.flush()
    standard_error = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], **options) as profiler:
            yield profiler
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)


class Replay:
    """A call as a CUDA graph that runs it `times` times, so that kernels are timed and not how Python starts them.

    The graph reads the call's tensors at their addresses: they live as long as the Replay, which keeps the call.
    """

    def __init__(self, call: Callable[[], object], graph: torch.cuda.CUDAGraph, times: int):
        self._call, self._graph, self.times = call, graph, times

    def __call__(self) -> None:
        """Start the graph."""
        self._graph.replay()


def captured(call: Callable[[], object], times: int = 1) -> Replay:
    """Records `times` calls as one CUDA graph, after three that compile and tune.

    Raises RuntimeError, before anything is recorded, for a call that waits for the GPU.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            call()
        torch.cuda.synchronize()
        with waiting_raises():
            call()
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with recording(graph):
        for _ in range(times):
            call()
    return Replay(call, graph, times)
