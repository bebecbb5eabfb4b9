"""The same work at 1 to N threads, in one process, the thread counts interleaved like competitors."""

from collections.abc import Callable, Iterator

import torch

from benchmarks import operators, step
from benchmarks.measure import Timing, interleaved
from engine import ops
from engine.kernels import _spec


def thread_counts(most: int) -> list[int]:
    """1 to `most`: each up to four, then doubled, and `most` itself."""
    counts = {*range(1, min(most, 4) + 1), most}
    doubled = 8
    while doubled < most:
        counts.add(doubled)
        doubled *= 2
    return sorted(counts)


def cases(
    only: str, quick: bool, device: str
) -> Iterator[tuple[str, Callable[[], tuple[dict[str, Callable], list[str]]]]]:
    """Name and how to get fused and eager as calls, with what disagrees between them: steps, then some operators."""
    for name, setting in step.settings(only, quick).items():
        yield name, lambda setting=setting: _step(setting, device)
    for spec, sample in operators.cases(only, quick=True):
        yield f"{spec.operator} {sample.name}", lambda spec=spec, sample=sample: _operator(spec, sample, device)


def measure(calls: dict[str, Callable], rounds: int) -> dict[str, dict[int, Timing]]:
    """Timings of each call by thread count; the number of threads is left as it was."""
    before = torch.get_num_threads()
    counts = thread_counts(before)
    competitors = {(name, n): _with_threads(call, n) for name, call in calls.items() for n in counts}
    try:
        timings = interleaved(competitors, rounds=rounds)
    finally:
        torch.set_num_threads(before)
    return {name: {n: timings[name, n] for n in counts} for name in calls}


def _with_threads(call: Callable[[], object], threads: int) -> Callable[[], object]:
    def limited() -> object:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return call()

    return limited


def _step(setting: dict, device: str) -> tuple[dict[str, Callable], list[str]]:
    built = {name: step.build(name, setting, device) for name in ("fused", "eager channels_last")}
    failed = step.disagreements(built, step.build("eager channels_last", setting, device))
    return {
        name.split()[0]: lambda system=system, batch=batch: system.step(batch)
        for name, (system, batch) in built.items()
    }, failed


def _operator(spec: _spec.Spec, sample: _spec.Sample, device: str) -> tuple[dict[str, Callable], list[str]]:
    operator = ops.OPERATORS[spec.operator]
    failed = operators.disagreements(spec, sample, device, {"eager": operator.reference})
    made = _spec.tensors(sample, torch.float32, device)
    functions = {"fused": operator.function, "eager": operator.reference}
    return {name: operators.both_passes(function, made, sample) for name, function in functions.items()}, failed
