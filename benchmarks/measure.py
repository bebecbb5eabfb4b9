"""Interleaved timing: one call of every competitor per round, medians over the rounds."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one competitor: every sample, their median and their quartiles."""

    samples: list[float]

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
    """What this machine can do at most, measured once: float32 products and copies that no cache holds."""

    sgemm_flops: float
    copy_bytes_per_s: float

    def shares(self, seconds: float, flops: float | None, moved: float | None) -> dict[str, float | None]:
        """What share of each limit so much work in so many seconds is; None where the work is unknown, 0 for none."""
        return {
            "share_of_sgemm": flops and flops / seconds / self.sgemm_flops,
            "share_of_copy": moved and moved / seconds / self.copy_bytes_per_s,
        }


def interleaved(
    competitors: dict[str, Callable[[], object]],
    *,
    rounds: int,
    least_seconds: float = 0.02,
    after_round: Callable[[int], None] | None = None,
) -> dict[str, Timing]:
    """Times every competitor once per round, after one untimed call each.

    A sample is the mean of so many calls that it lasts at least `least_seconds`; the order alternates between rounds.
    """
    repeats = {}
    for name, call in competitors.items():
        call()
        seconds = _time(call, 1)
        repeats[name] = max(1, round(least_seconds / seconds + 0.5)) if seconds < least_seconds else 1
    samples: dict[str, list[float]] = {name: [] for name in competitors}
    gc.collect()
    for number in range(rounds):
        order = list(competitors) if number % 2 == 0 else list(reversed(competitors))
        for name in order:
            samples[name].append(_time(competitors[name], repeats[name]))
        if after_round:
            after_round(number + 1)
    return {name: Timing(taken) for name, taken in samples.items()}


def _time(call: Callable[[], object], repeats: int) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def sgemm_rate(size: int = 1536, rounds: int = 8) -> float:
    """FLOP/s of PyTorch's float32 matrix product, the best of a few."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(interleaved({"sgemm": lambda: a @ b}, rounds=rounds)["sgemm"].samples)


def copy_bandwidth(floats: int = 1 << 26, rounds: int = 8) -> float:
    """Bytes/s read and written by a copy that no cache holds, the best of a few."""
    a, b = torch.zeros(floats), torch.zeros(floats)
    return 8 * floats / min(interleaved({"copy": lambda: b.copy_(a)}, rounds=rounds)["copy"].samples)
