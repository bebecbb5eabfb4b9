"""Where a fused training step's time goes: every native call by layer, and what runs outside of them."""

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

PROFILED = 3  # steps under torch.profiler, which slows them: for what is outside the native calls only


@dataclass(frozen=True)
class Line:
    """One native call of the step: its layer ("" where no parameter takes part), its median seconds over the steps."""

    layer: str
    function: str
    integers: tuple[int, ...]
    work: _spec.Work | None
    seconds: float

    @property
    def shape(self) -> str:
        """In the operator's words, or the call's integers where its spec has none."""
        return self.work.shape if self.work else "x".join(map(str, self.integers))


@dataclass(frozen=True)
class Profile:
    """A step's wall time, its native calls in order, and seconds of PyTorch's own operators and of the remainder."""

    wall: Timing
    lines: list[Line]
    outside: dict[str, float]

    def to_json(self, limits: Limits) -> dict[str, object]:
        """Every call with its rates and their shares of the machine's limits."""
        calls = []
        for line in self.lines:
            call = {"layer": line.layer, "function": line.function, "integers": line.integers, "shape": line.shape}
            calls.append(call | {"seconds": line.seconds, **_rates(line, limits)})
        return {"wall": self.wall.to_json(), "calls": calls, "outside": self.outside}


def cases(only: str, quick: bool) -> dict[str, dict]:
    """The settings of the suite `step`."""
    return step.cases(only, quick)


def measure(setting: dict, device: str, rounds: int, tick: Callable[[int], None]) -> Profile:
    """Medians over `rounds` fused steps, after two that warm up."""
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
        layer = next((layers[p] for p in first.pointers if p in layers), "")
        lines.append(Line(layer, first.function, first.integers, first.work(), median(c.seconds for c in same)))
    wall = Timing(walls)
    library = library_operators(lambda: system.step(batch))
    rest = wall.median - sum(line.seconds for line in lines) - sum(library.values())
    return Profile(wall, lines, library | {"Python, autograd, dispatch (the remainder)": rest})


def layer_addresses(networks: dict[str, nn.Module]) -> dict[int, str]:
    """Address of a parameter -> the layer it belongs to, as "network.layer"."""
    return {
        parameter.data_ptr(): f"{name}.{key.rpartition('.')[0]}"
        for name, network in networks.items()
        for key, parameter in network.named_parameters()
    }


def library_operators(call: Callable[[], object]) -> dict[str, float]:
    """Seconds of one call in each of PyTorch's own operators, without what they call, the longest first."""
    with profiled() as profiler:
        for _ in range(PROFILED):
            call()
    found = {
        e.key: e.self_cpu_time_total / PROFILED / 1e6 for e in profiler.key_averages() if e.key.startswith("aten::")
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def inside(name: str, found: Profile, limits: Limits) -> Table:
    """The native calls, the longest first."""
    columns = [("layer", 32), ("pass", 25), ("shape and form", 42), ("ms", 7), ("share", 5)]
    columns += [("GFLOP/s", 7), ("matrix", 6), ("GB/s", 5), ("copy", 4)]
    wall = found.wall.median
    table = Table(f"Native calls of one fused step of {name} ({ms(wall)} ms)", columns, left=3)
    for line in sorted(found.lines, key=lambda line: -line.seconds):
        rates = _rates(line, limits)
        arithmetic = [giga(rates["flops_per_s"]), percent(rates["share_of_matrix"])]
        traffic = [giga(rates["bytes_per_s"], 1), percent(rates["share_of_copy"])]
        what = [line.layer, line.function, line.shape]
        table.add([*what, ms(line.seconds), percent(line.seconds / wall), *arithmetic, *traffic])
    return table


def outside(name: str, found: Profile) -> Table:
    """The whole step: the native calls in one row, PyTorch's operators from a thousandth of it on, and the rest."""
    table = Table(f"The whole step of {name}", [("", 50), ("ms", 9), ("share", 6)])
    wall = found.wall.median
    native_calls = {"native calls": sum(line.seconds for line in found.lines)}
    shown = {k: v for k, v in found.outside.items() if v >= wall / 1000 or not k.startswith("aten::")}
    few = {"PyTorch's other operators": sum(found.outside.values()) - sum(shown.values())}
    for label, seconds in (native_calls | shown | few).items():
        table.add([label, ms(seconds), percent(seconds / wall)])
    return table


def _rates(line: Line, limits: Limits) -> dict[str, float | None]:
    flops, moved = (line.work.flops, line.work.bytes) if line.work else (None, None)
    rates = {"flops_per_s": flops and flops / line.seconds, "bytes_per_s": moved and moved / line.seconds}
    return rates | limits.shares(line.seconds, flops, moved)


def run(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The profile suite: the native calls of a fused step, the longest first, and the rest of the step."""
    rows, tables = [], []
    for name, setting in cases(arguments.filter, arguments.quick).items():
        with tqdm(total=arguments.rounds, desc=name, leave=False, disable=None) as bar:
            found = measure(setting, arguments.device, arguments.rounds, tick(bar))
        rows.append({"suite": "profile", "name": name, **found.to_json(limits)})
        for table in (inside(name, found, limits), outside(name, found)):
            print(table)
            tables.append(table)
    return rows, tables
