"""The suite `profile`: where a fused training step's time goes, by native call and layer, and outside of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from torch import nn
from tqdm import tqdm

from benchmarks.arguments import Arguments
from benchmarks.suites import step
from benchmarks.timing import native_calls
from benchmarks.timing.measure import Limits, Timing, profiled
from benchmarks.timing.rows import tick
from benchmarks.timing.table import Table, giga, ms, percent
from engine.kernels import _spec

PROFILED = 3  # steps under torch.profiler. It slows them, so they only tell what runs outside the native calls


@dataclass(frozen=True)
class Line:
    """One native call of a step.

    layer:   whose parameter takes part; "" if none does
    seconds: median over the steps
    """

    layer: str
    function: str
    integers: tuple[int, ...]
    work: _spec.Work | None
    seconds: float

    @property
    def shape(self) -> str:
        """The shape as the operator's spec writes it; the call's integers if the spec says nothing."""
        return self.work.shape if self.work else "x".join(map(str, self.integers))


@dataclass(frozen=True)
class Profile:
    """A step's wall-clock time, its native calls in order, and seconds of PyTorch's operators and of the remainder."""

    wall: Timing
    lines: list[Line]
    outside: dict[str, float]

    def to_json(self, limits: Limits) -> dict[str, object]:
        """The row's content: every call with its rates and their shares of the machine's limits."""
        calls = []
        for line in self.lines:
            call = {"layer": line.layer, "function": line.function, "integers": line.integers, "shape": line.shape}
            calls.append(call | {"seconds": line.seconds, **_rates(line, limits)})
        return {"wall": self.wall.to_json(), "calls": calls, "outside": self.outside}


def cases(only: str, quick: bool) -> dict[str, dict]:
    """The settings of the suite `step`."""
    return step.cases(only, quick)


def measure(setting: dict, device: str, rounds: int, tick: Callable[[int], None]) -> Profile:
    """Medians over `rounds` fused steps, after two untimed ones."""
    system, batch = step.build("fused", setting, device)
    for _ in range(2):
        system.step(batch)
    walls, runs = [], []
    for number in range(rounds):
        with native_calls.recorded() as calls:
            start = time.perf_counter()
            system.step(batch)
            walls.append(time.perf_counter() - start)
        runs.append(calls)
        tick(number + 1)
    layers = layer_addresses(system.networks())
    lines = []
    for same in zip(*runs, strict=True):
        first = same[0]
        layer = next((layers[p] for p in first.pointers.values() if p in layers), "")
        seconds, integers = median(call.seconds for call in same), tuple(first.integers.values())
        lines.append(Line(layer, first.function, integers, native_calls.work(first), seconds))
    wall = Timing(walls)
    library = library_operators(lambda: system.step(batch))
    rest = wall.median - sum(line.seconds for line in lines) - sum(library.values())
    return Profile(wall, lines, library | {"Python, autograd, dispatch (the remainder)": rest})


def layer_addresses(networks: dict[str, nn.Module]) -> dict[int, str]:
    """The layer that a parameter belongs to, as "network.layer", by the parameter's address."""
    return {
        parameter.data_ptr(): f"{name}.{key.rpartition('.')[0]}"
        for name, network in networks.items()
        for key, parameter in network.named_parameters()
    }


def library_operators(call: Callable[[], object]) -> dict[str, float]:
    """Seconds of one call in each of PyTorch's operators, without the operators that it calls, the longest first."""
    with profiled() as profiler:
        for _ in range(PROFILED):
            call()
    seconds = {
        e.key: e.self_cpu_time_total / PROFILED / 1e6 for e in profiler.key_averages() if e.key.startswith("aten::")
    }
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def inside(name: str, of_step: Profile, limits: Limits) -> Table:
    """The native calls, the longest first."""
    columns = [("layer", 32), ("pass", 25), ("shape and form", 42), ("ms", 7), ("share", 5)]
    columns += [("GFLOP/s", 7), ("matrix", 6), ("GB/s", 5), ("copy", 4)]
    wall = of_step.wall.median
    table = Table(f"Native calls of one fused step of {name} ({ms(wall)} ms)", columns, left=3)
    for line in sorted(of_step.lines, key=lambda line: -line.seconds):
        rates = _rates(line, limits)
        arithmetic = [giga(rates["flops_per_s"]), percent(rates["share_of_matrix"])]
        traffic = [giga(rates["bytes_per_s"], 1), percent(rates["share_of_copy"])]
        what = [line.layer, line.function, line.shape]
        table.add([*what, ms(line.seconds), percent(line.seconds / wall), *arithmetic, *traffic])
    return table


def outside(name: str, of_step: Profile) -> Table:
    """The whole step: native calls in one row, each PyTorch operator that takes a thousandth or more, and the rest."""
    table = Table(f"The whole step of {name}", [("", 50), ("ms", 9), ("share", 6)])
    wall = of_step.wall.median
    native = {"native calls": sum(line.seconds for line in of_step.lines)}
    shown = {k: v for k, v in of_step.outside.items() if v >= wall / 1000 or not k.startswith("aten::")}
    small = {"PyTorch's other operators": sum(of_step.outside.values()) - sum(shown.values())}
    for label, seconds in (native | shown | small).items():
        table.add([label, ms(seconds), percent(seconds / wall)])
    return table


def _rates(line: Line, limits: Limits) -> dict[str, float | None]:
    flops, moved = (line.work.flops, line.work.bytes) if line.work else (None, None)
    rates = {"flops_per_s": flops and flops / line.seconds, "bytes_per_s": moved and moved / line.seconds}
    return rates | limits.shares(line.seconds, flops, moved)


def run(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The suite `profile`: the native calls of a fused step, the longest first, and the rest of the step."""
    rows, tables = [], []
    for name, setting in cases(arguments.filter, arguments.quick).items():
        with tqdm(total=arguments.rounds, desc=name, leave=False, disable=None) as bar:
            of_step = measure(setting, arguments.device, arguments.rounds, tick(bar))
        rows.append({"suite": "profile", "name": name, **of_step.to_json(limits)})
        for table in (inside(name, of_step, limits), outside(name, of_step)):
            print(table)
            tables.append(table)
    return rows, tables
