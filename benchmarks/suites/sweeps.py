"""The part of `scaling` by size: image side, channels or batch grows, the others stay, and a law is fitted.

The law is t = fixed + unit x^power: `fixed` is what a call costs however small it is, `power` how its cost grows.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.suites import operators, step
from benchmarks.timing.measure import Timing, interleaved
from engine.kernels import _spec

# the values that stay while another one grows, and the values that each goes through
BASE = {"batch": 8, "channels": 64, "side": 32}
VALUES = {"side": (8, 16, 32, 64, 128), "channels": (16, 32, 64, 128, 256), "batch": (1, 2, 4, 8, 16, 32)}
# the same of the refiner's step: options of its configuration, by axis
STEP_BASE = {"batch_size": 16, "filters": 16, "resolution": 64}
STEP_VALUES = {
    "side": ("resolution", (32, 64, 128)),
    "channels": ("filters", (8, 16, 32, 64)),
    "batch": ("batch_size", (4, 8, 16, 32)),
}
Prepare = Callable[[int], tuple[dict[str, Callable], list[str]]]
QUICK_SWEEPS = ("resize_conv_act up elu", "refiner step")
POWERS = np.arange(0.0, 3.001, 0.01)


@dataclass(frozen=True)
class Law:
    """t = fixed + unit x^power, in seconds. worst: the largest relative deviation of a median from it."""

    fixed: float
    unit: float
    power: float
    worst: float

    def __call__(self, x: float) -> float:
        return self.fixed + self.unit * x**self.power


@dataclass(frozen=True)
class Sweep:
    """One thing that grows along an axis.

    prepare: value -> fused and eager as calls, and what disagrees between them (then no time is taken)
    """

    name: str
    axis: str
    values: tuple[int, ...]
    prepare: Prepare

    @property
    def label(self) -> str:
        """The row's name."""
        return f"{self.name} by {self.axis}"


def cases(only: str, quick: bool, device: str) -> Iterator[Sweep]:
    """The sweeps whose label contains `only`: the refiner's step, then operators.

    quick: those of QUICK_SWEEPS, by batch
    """
    for sweep in _all(device):
        if only in sweep.label and (not quick or (sweep.name in QUICK_SWEEPS and sweep.axis == "batch")):
            yield sweep


def _all(device: str) -> Iterator[Sweep]:
    for axis, (option, values) in STEP_VALUES.items():
        yield Sweep("refiner step", axis, values, lambda value, o=option: calls_of_step(STEP_BASE | {o: value}, device))
    for operator, spec in _spec.specs().items():
        for kind, sized in spec.sweeps.items():
            for axis, values in VALUES.items():
                yield Sweep(f"{operator} {kind}".rstrip(), axis, values, _grown(spec, sized, axis, device))


def _grown(spec: _spec.Spec, sized: Callable[..., _spec.Sample], axis: str, device: str) -> Prepare:
    return lambda value: calls_of(operators.Case(spec, sized(**BASE | {axis: value})), device)


def measure(
    sweep: Sweep, rounds: int, after_point: Callable[[], object]
) -> tuple[dict[str, dict[int, Timing]], list[str]]:
    """Timings of fused and eager by value, or what disagrees at the first value where something does."""
    timings: dict[str, dict[int, Timing]] = {}
    for value in sweep.values:
        calls, failed = sweep.prepare(value)
        if failed:
            return {}, [f"{sweep.axis} {value}: {text}" for text in failed]
        for name, timing in interleaved(calls, rounds=rounds).items():
            timings.setdefault(name, {})[value] = timing
        after_point()
    return timings, []


def fit(by: dict[int, Timing]) -> Law:
    """The law nearest to the medians: least squares of relative deviations, `fixed` and `unit` not below zero.

    by: timings by value
    """
    x, t = np.array(list(by), float), np.array([timing.median for timing in by.values()])
    best: tuple[float, Law] | None = None
    for power in POWERS:
        grown = x**power
        for columns in ((np.ones_like(x), grown), (grown,)):  # the second form for a fixed part that would be negative
            solved = np.linalg.lstsq(np.stack(columns, 1) / t[:, None], np.ones_like(t), rcond=None)[0]
            fixed, unit = solved if len(solved) == 2 else (0.0, solved[0])
            if min(fixed, unit) < 0:
                continue
            deviation = (fixed + unit * grown) / t - 1
            if best is None or float(deviation @ deviation) < best[0] - 1e-12:
                law = Law(float(fixed), float(unit), float(power), float(np.abs(deviation).max()))
                best = float(deviation @ deviation), law
    assert best is not None, "a power without a fixed part always has a fit"
    return best[1]


def row(sweep: Sweep, timings: dict[str, dict[int, Timing]], failed: list[str]) -> dict:
    """The result of one sweep."""
    head = {"suite": "scaling", "name": sweep.label, "axis": sweep.axis}
    if failed:
        return head | {"failed": failed}
    as_json = {name: {value: timing.to_json() for value, timing in by.items()} for name, by in timings.items()}
    return head | {"timings": as_json, "law": {name: asdict(fit(by)) for name, by in timings.items()}}


def calls_of_step(setting: dict, device: str) -> tuple[dict[str, Callable], list[str]]:
    """The refiner's step, fused and eager, as calls, and the losses that disagree."""
    built = {name: step.build(name, setting, device) for name in ("fused", "eager channels_last")}
    failed = step.disagreements(built, step.build("eager channels_last", setting, device))
    return {
        name.split()[0]: lambda system=system, batch=batch: system.step(batch)
        for name, (system, batch) in built.items()
    }, failed


def calls_of(case: operators.Case, device: str) -> tuple[dict[str, Callable], list[str]]:
    """Forward and backward of an operator, fused and eager, as calls, and the results that disagree."""
    failed = operators.disagreements(case, device, {"eager": case.reference})
    inputs = case.tensors("fp32", device)
    functions = {"fused": case.fused, "eager": case.reference}
    return {name: operators.both_passes(function, inputs, case.sample) for name, function in functions.items()}, failed
