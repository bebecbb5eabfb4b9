"""Where a fused training step's time goes: every native call by layer, and what runs outside of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from benchmarks import native, step
from benchmarks.measure import Timing
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


@dataclass(frozen=True)
class Profile:
    """A step's wall time, its native calls in order, and seconds of PyTorch's own operators and of the remainder."""

    wall: Timing
    lines: list[Line]
    outside: dict[str, float]


def measure(setting: dict, device: str, rounds: int, tick: Callable[[int], None]) -> Profile:
    """Medians over `rounds` fused steps, after two that warm up."""
    system, batch = step.build("fused", setting, device)
    for _ in range(2):
        system.step(batch)
    walls, runs = [], []
    for number in range(rounds):
        with native.recorded() as calls:
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
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED):
            call()
    found = {
        e.key: e.self_cpu_time_total / PROFILED / 1e6 for e in profiler.key_averages() if e.key.startswith("aten::")
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))
