"""The part of `scaling` by threads: the same calls at 1 to N threads of one process, interleaved like competitors."""

from collections.abc import Callable

import torch

from benchmarks.timing.measure import Timing, interleaved


def counts(most: int) -> list[int]:
    """The numbers of threads up to `most`: 1 to 4, then 8 and its doubles, and `most` itself."""
    chosen = {*range(1, min(most, 4) + 1), most}
    doubled = 8
    while doubled < most:
        chosen.add(doubled)
        doubled *= 2
    return sorted(chosen)


def measure(calls: dict[str, Callable], rounds: int) -> dict[str, dict[int, Timing]]:
    """Timings of each call by number of threads; afterwards this process has as many threads as before."""
    before = torch.get_num_threads()
    competitors = {(name, n): _with_threads(call, n) for name, call in calls.items() for n in counts(before)}
    try:
        timings = interleaved(competitors, rounds=rounds)
    finally:
        torch.set_num_threads(before)
    return {name: {n: timings[name, n] for n in counts(before)} for name in calls}


def serial_share(by: dict[int, Timing]) -> float | None:
    """The part of one thread's time that further threads do not shorten; None if only one thread was timed.

    By least squares over t(n) / t(1) = s + (1 - s) / n. Source: Amdahl 1967.
    """
    pairs = [(1 - 1 / n, timing.median / by[1].median - 1 / n) for n, timing in by.items() if n > 1]
    if not pairs:
        return None
    return min(1.0, max(0.0, sum(x * y for x, y in pairs) / sum(x * x for x, _ in pairs)))


def _with_threads(call: Callable[[], object], threads: int) -> Callable[[], object]:
    def limited() -> object:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return call()

    return limited
