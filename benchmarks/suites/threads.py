"""The same work at 1 to N threads, in one process, the thread counts interleaved like competitors."""

from collections.abc import Callable

import torch

from benchmarks.timing.measure import Timing, interleaved


def counts(most: int) -> list[int]:
    """1 to `most`: each up to four, then doubled, and `most` itself."""
    found = {*range(1, min(most, 4) + 1), most}
    doubled = 8
    while doubled < most:
        found.add(doubled)
        doubled *= 2
    return sorted(found)


def measure(calls: dict[str, Callable], rounds: int) -> dict[str, dict[int, Timing]]:
    """Timings of each call by thread count; the number of threads is left as it was."""
    before = torch.get_num_threads()
    competitors = {(name, n): _with_threads(call, n) for name, call in calls.items() for n in counts(before)}
    try:
        timings = interleaved(competitors, rounds=rounds)
    finally:
        torch.set_num_threads(before)
    return {name: {n: timings[name, n] for n in counts(before)} for name in calls}


def serial_share(by: dict[int, Timing]) -> float | None:
    """The part of one thread's time that further threads do not shorten; None with one thread alone.

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
