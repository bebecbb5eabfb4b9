"""Every suite of the benchmark: what it measures, where it runs, what --quick leaves of it and what its rows hold.

This is the one list that `python -m benchmarks --help`, `all`, the checks of the options, the reader of saved results
and the page read. Another suite is a file with `run` and `cases`, and an entry here.
"""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Suite:
    """One suite of `python -m benchmarks`.

    name:       on the command line, and in every row that it saves
    measures:   what is measured, for --help
    quick:      what --quick leaves of it, for --help
    run:        (arguments, limits) -> rows for --json, tables for --markdown; prints the tables as it goes
    cases:      (text, quick) -> its cases whose name contains the text
    holds:      what each saved row has, unless it failed or was not run
    all_on:     devices on which the suite `all` includes this one
    devices:    where it can run
    stopwatch:  whether it measures times. One that does not needs no limits of the machine and no GPU for --precision,
                does not mind other work on the machine, and has no page
    heading:    of its bars of speed-ups on the page; "" where it has none
    precisions: whether --precision chooses its arithmetic; else it is measured in fp32
    """

    name: str
    measures: str
    quick: str
    run: Callable[[Any, Any], tuple[list[dict], list]]
    cases: Callable[[str, bool], Iterable]
    holds: tuple[str, ...] = ()
    all_on: tuple[str, ...] = ("cpu",)
    devices: tuple[str, ...] = ("cpu", "cuda")
    stopwatch: bool = True
    heading: str = ""
    precisions: bool = False


def _suite(module: str, name: str, **facts: Any) -> Suite:
    """A suite whose `run` and `cases` are those of a module, which is imported when one of them is called.

    The suites lie above this file, and only `compiled` and `predict` are to load Triton's compiler.
    """

    def imported(function: str) -> Callable:
        return lambda *given: getattr(importlib.import_module(module), function)(*given)

    return Suite(name, run=imported("run"), cases=imported("cases"), **facts)


ALL = "all"
SPEED = ("speedup", "timings")
BOTH, CPU = ("cpu", "cuda"), ("cpu",)
SUITES = {
    suite.name: suite
    for suite in (
        _suite(
            "benchmarks.suites.operators",
            "ops",
            measures="operators, forward and backward",
            quick="a few shapes",
            holds=SPEED,
            precisions=True,
            all_on=BOTH,
            heading="Operators, forward + backward",
        ),
        _suite(
            "benchmarks.suites.step",
            "step",
            measures="training steps of the refiner, and their memory",
            quick="the small step",
            holds=SPEED,
            precisions=True,
            all_on=BOTH,
            heading="Training steps of the refiner",
        ),
        _suite(
            "benchmarks.suites.systems",
            "systems",
            measures="training steps of every system, at its quick preset and at its paper's width, and their memory",
            quick="the quick presets at 32x32 pixels, without torch.compile",
            holds=SPEED,
            heading="Training steps of every system",
        ),
        _suite(
            "benchmarks.suites.latency",
            "latency",
            measures="one image through a trained refiner",
            quick="the small refiner, without torch.compile",
            holds=SPEED,
            heading="One image through a trained refiner",
        ),
        _suite(
            "benchmarks.suites.loading",
            "loading",
            measures="the loaders of pictures, beside torch's DataLoader",
            quick="the small pictures",
            holds=SPEED,
            devices=CPU,
            heading="Loading pictures",
        ),
        _suite(
            "benchmarks.suites.scaling",
            "scaling",
            measures="steps and operators by threads, image side, channels, batch and processes",
            quick="one operator and the small step, by threads and batch",
            holds=("timings",),
            devices=CPU,
        ),
        _suite(
            "benchmarks.suites.profile",
            "profile",
            measures="where the time of a fused training step goes",
            quick="the small step",
            holds=("wall", "calls", "outside"),
            devices=CPU,
        ),
        _suite(
            "benchmarks.suites.fuse",
            "fuse",
            measures="models of other libraries and of published code, rewritten by engine.fuse",
            quick="two models, without torch.compile",
            holds=SPEED,
            devices=CPU,
            heading="Models of other libraries, by engine.fuse",
        ),
        _suite(
            "benchmarks.prediction.compiled_report",
            "compiled",
            measures="every GPU kernel compiled ahead of time: registers, spills, matrix instructions",
            quick="what the tests compile",
            precisions=True,
            all_on=(),
            stopwatch=False,
        ),
        _suite(
            "benchmarks.prediction.forecast",
            "predict",
            measures="what a roofline says GPU kernels take; with --device cuda also what they take",
            quick="a few shapes, and the small step",
            precisions=True,
            all_on=(),
            stopwatch=False,
        ),
    )
}
# as --help and an unknown suite's error list them
NAMES = (*(s.name for s in SUITES.values() if s.all_on), ALL, *(s.name for s in SUITES.values() if not s.all_on))
MEASURED = tuple(s.name for s in SUITES.values() if s.stopwatch)


def chosen(name: str, device: str) -> list[Suite]:
    """The suites that `python -m benchmarks NAME --device DEVICE` runs."""
    return [s for s in SUITES.values() if device in s.all_on] if name == ALL else [SUITES[name]]
