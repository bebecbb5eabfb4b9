"""The suite `step`: the refiner's fused one-pass training step against three baselines, in time and peak memory.

eager:   the step as it is usually written, in both layouts
compile: the same in channels_last, networks and losses through torch.compile
strong:  the step as far as library parts take it (strong.py)

--autotune adds "compile max-autotune" on a GPU. There fused, strong and the autotuned step run as one CUDA graph
(engine.training.cuda_graph), eager and compile as written.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable

import torch
from tqdm import tqdm

from benchmarks.arguments import Arguments
from benchmarks.suites import own_process
from benchmarks.suites.peak_memory import peak_memory_of_steps
from benchmarks.suites.strong import StrongRefiner
from benchmarks.timing import native_calls
from benchmarks.timing.measure import PRECISIONS, Limits, Timing, interleaved
from benchmarks.timing.rows import BASELINES, cells, comparison, guarded, row, shares, tick, within
from benchmarks.timing.table import Table, percent
from engine.data import Batch
from engine.host.tf32 import tf32_allowed
from engine.systems import registry
from engine.systems.base import System
from engine.systems.refiner import RefinerConfig
from engine.training.cuda_graph import WARM_UP, GraphedStep

SETTINGS = {
    "refiner 64x64, 64 filters, batch 25": {"filters": 64, "batch_size": 25},
    "refiner 64x64, 16 filters, batch 16": {"filters": 16, "batch_size": 16},
}
QUICK = "refiner 64x64, 16 filters, batch 16"
# with these, k (BEGAN's balance) is not zero from the second step on
BALANCE = {"gamma": 0.9, "lambda_k": 0.5}
CHECKED = 3  # steps whose losses are compared
COMPETITORS = ("fused", "eager channels_last", "eager contiguous", "compile", "strong")
# a further competitor with --autotune
AUTOTUNED = "compile max-autotune"
GRAPHED = ("fused", "strong", AUTOTUNED)


def cases(only: str, quick: bool = False) -> dict[str, dict]:
    """The settings whose name contains `only`; quick: only the small one."""
    return {name: setting for name, setting in SETTINGS.items() if only in name and (not quick or name == QUICK)}


def measure(
    setting: dict,
    device: str,
    rounds: int,
    tick: Callable[[int], None],
    competitors: tuple[str, ...] = COMPETITORS,
    precision: str = "fp32",
) -> tuple[dict[str, Timing], list[str]]:
    """Seconds per step of every competitor, and the losses that disagree (then no timings)."""
    with tf32_allowed(PRECISIONS[precision].tf32):
        steps, failed = prepared(setting, device, competitors, precision)
        if failed:
            return {}, failed
        allocations = device if device == "cpu" else None  # on a GPU a CUDA graph keeps the memory of its tensors
        return interleaved(steps, rounds=rounds, after_round=tick, allocations=allocations), []


def prepared(
    setting: dict, device: str, competitors: tuple[str, ...] = COMPETITORS, precision: str = "fp32"
) -> tuple[dict[str, Callable], list[str]]:
    """A step of every competitor as a call, or the losses that disagree."""
    with tf32_allowed(PRECISIONS[precision].tf32):
        built = {name: build(name, setting, device, precision) for name in competitors}
        failed = disagreements(built, build("eager channels_last", setting, device, precision), precision)
        if failed:
            return {}, failed
        return {name: stepper(name, system, batch) for name, (system, batch) in built.items()}, []


def stepper(name: str, system: System, batch: Batch) -> Callable[[], object]:
    """One step as a competitor runs it: on a GPU those of GRAPHED as one CUDA graph."""
    if system.device.type != "cuda" or name not in GRAPHED:
        return functools.partial(system.step, batch)
    graphed = GraphedStep(system)
    for _ in range(WARM_UP + 1):  # recorded before anything is timed
        graphed(batch)
    return functools.partial(graphed, batch)


def peak_memory(name: str, setting: dict, device: str, precision: str = "fp32") -> int:
    """Bytes that three steps add to the peak: of allocations on a GPU, else of a fresh process's resident size."""
    if device == "cuda":
        with tf32_allowed(PRECISIONS[precision].tf32):
            return _peak(name, *build(name, setting, device, precision))
    threads = str(torch.get_num_threads())
    return int(own_process.answer("benchmarks.suites.step", name, json.dumps(setting), device, precision, threads))


def build(name: str, setting: dict, device: str, precision: str = "fp32") -> tuple[System, Batch]:
    """A competitor's system, untrained, and the batch of its steps, the same images for every competitor."""
    fused = name == "fused"
    config = RefinerConfig(fused=fused, eager=not fused, precision=precision)
    config = dataclasses.replace(config, inject=(8, 16), **BALANCE, **setting)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(config.batch_size, 3, config.resolution, config.resolution, generator=generator) * 2 - 1
    layout = torch.contiguous_format if name == "eager contiguous" else torch.channels_last
    images = images.to(device).contiguous(memory_format=layout)
    batch = Batch(images=images, landmarks=None, indices=torch.arange(config.batch_size))
    if name == "strong":
        return StrongRefiner(config, device), batch
    system = registry.build(config, device)
    if layout == torch.channels_last and not fused:
        for network in system.networks().values():
            network.to(memory_format=torch.channels_last)
    if name.startswith("compile"):
        mode = "max-autotune-no-cudagraphs" if name == AUTOTUNED else "default"  # `stepper` graphs the whole step
        system.autoencoder_loss = torch.compile(system.autoencoder_loss, dynamic=False, mode=mode)
        system._refine = torch.compile(system._refine, dynamic=False, mode=mode)
    return system, batch


def flops(setting: dict, device: str) -> float | None:
    """FLOPs of one fused step in the forms that it takes, without fully connected layers; on the CPU without losses."""
    system, batch = build("fused", setting, device)
    if device == "cuda":
        launches = native_calls.launched(functools.partial(system.step, batch))
        return sum(launch.cost.flops for launch in launches)
    with native_calls.recorded() as calls:
        system.step(batch)
    return native_calls.flops([call for call in calls if native_calls.work(call)])


def disagreements(
    built: dict[str, tuple[System, Batch]], eager: tuple[System, Batch], precision: str = "fp32"
) -> list[str]:
    """The losses of each system that differ from those of the eager one over CHECKED steps."""
    tolerance = PRECISIONS[precision].losses
    system, batch = eager
    expected = [{name: float(loss) for name, loss in system.step(batch).items()} for _ in range(CHECKED)]
    failed = []
    for competitor, (system, batch) in built.items():
        for step, losses in enumerate(expected):
            for loss, value in system.step(batch).items():
                a, b = float(value), losses[loss]
                if not abs(a - b) <= tolerance * max(abs(b), 1e-3):  # written so that NaN fails
                    failed.append(f"step {step}: {loss} is {a:.6g} {competitor} and {b:.6g} eager")
    return failed


def main(name: str, setting: str, device: str, precision: str, threads: str) -> None:
    """The process that peak_memory starts."""
    torch.set_num_threads(int(threads))
    with tf32_allowed(PRECISIONS[precision].tf32):
        print(_peak(name, *build(name, json.loads(setting), device, precision)))


def _peak(name: str, system: System, batch: Batch) -> int:
    return peak_memory_of_steps(system, batch, name.startswith("compile"))


def run(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The suite `step`, with peak memory."""
    precision = arguments.precision or "fp32"
    rows, table = [], comparison(f"Training steps, {precision}")
    columns = [("", 45), ("fused MiB", 10), *((f"{name} MiB", 12) for name in BASELINES), ("of eager", 9)]
    memory = Table("Peak training memory: what three steps add to a process", columns)
    chosen = cases(arguments.filter, arguments.quick)
    competitors = (*COMPETITORS, *([AUTOTUNED] if arguments.autotune else []))
    competitors = tuple(name for name in competitors if not name.startswith("compile") or arguments.can_compile)
    if chosen:
        tqdm.write(table.head())
    for name, setting in within(arguments, list(chosen.items()), lambda case: case[0], rows, "step"):
        with tqdm(total=arguments.rounds, desc=name, leave=False, disable=None) as bar:
            more = (setting, arguments.device, arguments.rounds, tick(bar), competitors, precision)
            timings, failed = guarded(arguments, measure, *more)
        entry = row("step", name, timings, failed)
        if not failed:
            entry = shares(entry, limits, flops(setting, arguments.device), None)
        tqdm.write(table.add(cells(entry)))
        if not failed:
            # the memory of compile costs another minute: it compiles again in a process of its own
            measured = tuple(name for name in competitors if not (arguments.quick and name.startswith("compile")))
            entry["memory"] = _peaks(setting, arguments.device, measured, precision)
            mib = ["-" if v is None else f"{v / 2**20:.0f}" for v in entry["memory"].values()]
            memory.add([name, *mib, percent(entry["memory"]["fused"] / entry["memory"]["eager"])])
        rows.append(entry)
    if memory.rows:
        print(memory)
    return rows, [table, memory]


def _peaks(setting: dict, device: str, competitors: tuple[str, ...], precision: str) -> dict[str, int | None]:
    """Peak memory of fused and of each baseline in its better layout; None for one that was not measured."""
    peaks = {n: peak_memory(n, setting, device, precision) for n in competitors}
    return {n: min((v for k, v in peaks.items() if k.split()[0] == n), default=None) for n in ("fused", *BASELINES)}


if __name__ == "__main__":
    main(*sys.argv[1:])
