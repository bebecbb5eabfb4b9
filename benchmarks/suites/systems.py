"""The suite `systems`: a training step of every system, fused against PyTorch, at two sizes, in time and peak memory.

The first table has every system but the refiner, which has a suite of its own (step.py), at its quick preset. The
second has every system at the width and with the layers of its paper (PAPERS).

eager:   the plain PyTorch form, in both layouts
compile: the same in channels_last with every network through torch.compile
bf16:    eager and compile under autocast, beside fused in float32, on a CPU that multiplies numbers in bfloat16

A row says which competitor is left out and why: torch.compile has no second derivatives, and it may fail, or take
longer than COMPILE_SECONDS. On a CPU a process of its own tries that first, whose compiled code the measuring process
then finds in Inductor's cache; such processes tell the peak memory of each competitor too. On a GPU the fused step is
one CUDA graph, as it is in training.
"""

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from benchmarks.arguments import Arguments
from benchmarks.suites import own_process
from benchmarks.suites.peak_memory import peak_memory_of_steps
from benchmarks.suites.step import stepper
from benchmarks.timing.measure import Limits, Timing, interleaved
from benchmarks.timing.rows import BF16, guarded, row, tick, within
from benchmarks.timing.table import Table, ms, percent
from engine.config import TrainConfig
from engine.data import Batch
from engine.host.tf32 import tf32_allowed
from engine.systems.base import System
from engine.systems.registry import SYSTEMS, build, config_class, config_from_json
from engine.verification.training_steps import (
    ATTEMPTS,
    KINK_TOLERANCE,
    LOSS_TOLERANCE,
    differences_on,
    saved_state,
    training_batch,
)

LEFT_OUT = ("refiner",)
# system, what differs from its preset `paper` (a size whose step fits the time of two cores), words for its name
PAPERS = (
    ("refiner", {"inject": (8, 16)}, ""),
    ("began", {}, ""),
    ("dcgan", {}, ""),
    ("wgan", {}, ""),
    # as the option's text recommends: no BatchNorm in the critic, Adam
    ("wgan", {"gradient_penalty": 10.0, "critic_norm": "layer", "optimiser": "adam", "lr": 1e-4}, "gradient penalty"),
    ("simgan", {"batch_size": 16}, ""),
    ("cyclegan", {"resolution": 128}, "published layers"),
    ("ggb", {"resolution": 128, "batch_size": 4}, ""),
    ("reenact", {}, ""),
)
GRADIENT_TOLERANCE = 1e-3  # relative: a single element whose sign rounding decides changes a gradient by this much
COMPILE_SECONDS = 900.0
EAGER = ("eager channels_last", "eager contiguous")
COMPILE = "compile"
TITLES = {
    "quick": "Training steps of every system, quick preset, fp32",
    "paper": "Training steps of every system, at its paper's width, fp32",
}


def cases(only: str, quick: bool) -> dict[str, TrainConfig]:
    """The steps whose label contains `only`: quick presets, then papers. quick: quick presets alone, 32x32, batch 4."""
    return presets(only, quick) | ({} if quick else papers(only))


def presets(only: str, quick: bool) -> dict[str, TrainConfig]:
    """The systems at their quick presets whose label contains `only`; quick: at 32x32, batch 4."""
    configs = []
    for name in SYSTEMS:
        if name not in LEFT_OUT:
            kind = config_class(name)
            config = kind(**kind.PRESETS["quick"])
            configs.append(dataclasses.replace(config, resolution=32, batch_size=4) if quick else config)
    return {label: config for config in configs if only in (label := _label(config))}


def papers(only: str) -> dict[str, TrainConfig]:
    """The steps of PAPERS whose label contains `only`."""
    configs = {}
    for name, options, words in PAPERS:
        kind = config_class(name)
        config = kind(**kind.PRESETS["paper"] | {"preset": "paper"} | options)
        configs[", ".join(filter(None, (_label(config), words)))] = config
    return {label: config for label, config in configs.items() if only in label}


def _label(config: TrainConfig) -> str:
    size = f"{config.resolution}x{config.resolution}, {config.filters} filters, batch {config.batch_size}"
    return f"{config.system} {size}"


def names(compiled: bool, bf16: bool) -> tuple[str, ...]:
    """The competitors. compiled: with torch.compile; bf16: with the forms in bfloat16."""
    baselines = (*EAGER, *[COMPILE] * compiled)
    return ("fused", *baselines, *[BF16 + name for name in baselines] * bf16)


def measure(
    config: TrainConfig, device: str, rounds: int, tick: Callable[[int], None], competitors: Sequence[str]
) -> tuple[dict[str, Timing], list[str]]:
    """Seconds per step of every competitor, and the losses that disagree (then no timings)."""
    if failed := disagreements(config, device):
        return {}, failed
    torch._dynamo.reset()  # what was compiled for another system takes memory and counts against a limit
    steps = {name: stepper(name, *prepared(name, config, device)) for name in competitors}
    return interleaved(steps, rounds=rounds, after_round=tick), []


def apart(config: TrainConfig, device: str, competitors: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
    """What processes of their own tell: peak memory by competitor (on the CPU), and who is left out, with the reason.

    An eager form in bfloat16 needs no such process.
    """
    memory, left_out = {}, {}
    for name in competitors:
        if COMPILE in name and getattr(config, "gradient_penalty", 0):
            left_out[name] = "torch.compile has no second derivatives"
        elif device == "cpu" and COMPILE in name:
            try:
                memory[name] = peak_memory(name, config, device)
            except own_process.Failed as error:
                left_out[name] = str(error)
        elif device == "cpu" and not name.startswith(BF16):
            memory[name] = peak_memory(name, config, device)
    return memory, left_out


def disagreements(config: TrainConfig, device: str) -> list[str]:
    """The losses and gradients of a step that differ between fused and eager, on each of ATTEMPTS batches of images.

    What differs by more than its tolerance may differ by twice as much as eager does from itself in its other layout
    on the same images: where rounding decides signs, that is how far two right answers are apart. How many signs it
    decides differs from batch to batch, and one on which all agree is enough, unless a difference is larger than signs
    explain. The learning rate is next to nothing: some systems take several optimiser steps in a training step, and an
    optimiser's first step is as large for a gradient that is only rounding as for any other.
    """
    small = dataclasses.replace(config, lr=1e-7)
    fused, eager, other = (prepared(name, small, device)[0] for name in ("fused", *EAGER))
    state = saved_state(eager)
    for number in range(1, ATTEMPTS + 1):
        losses, gradients = differences_on(fused, eager, state, number)
        found = losses | gradients
        allowed = dict.fromkeys(losses, LOSS_TOLERANCE) | dict.fromkeys(gradients, GRADIENT_TOLERANCE)
        # written so that NaN fails
        failed = [name for name, value in found.items() if not value <= allowed[name]]
        if failed:
            of_losses, of_gradients = differences_on(other, eager, state, number)
            of_eager = of_losses | of_gradients
            failed = [name for name in failed if not found[name] <= 2 * of_eager[name]]
        if not failed:
            return []
        if not all(found[name] <= KINK_TOLERANCE for name in failed):
            break
    return [f"{name} differs by {found[name]:.1e}, eager's two layouts by {of_eager[name]:.1e}" for name in failed]


def prepared(name: str, config: TrainConfig, device: str) -> tuple[System, Batch]:
    """A competitor's system, untrained, and the batch of its steps, the same images for every competitor."""
    fused, precision = name == "fused", "bf16" if name.startswith(BF16) else config.precision
    with contextlib.redirect_stdout(io.StringIO()):  # some systems print when they are built
        system = build(dataclasses.replace(config, fused=fused, precision=precision), device)
    layout = torch.contiguous_format if name.endswith("contiguous") else torch.channels_last
    for network in () if fused else system.networks().values():
        network.to(memory_format=layout)
        if COMPILE in name:
            network.compile(dynamic=False)
    return system, _laid_out(training_batch(config, 1, torch.device(device)), layout)


def _laid_out(batch: Batch, layout: torch.memory_format) -> Batch:
    more = tuple(_laid_out(part, layout) for part in batch.more)
    return dataclasses.replace(batch, images=batch.images.contiguous(memory_format=layout), more=more)


def peak_memory(name: str, config: TrainConfig, device: str) -> int:
    """Bytes that three steps add to a process of their own. Raises own_process.Failed with why there are none."""
    words = (name, json.dumps(config.to_json()), device, str(torch.get_num_threads()))
    seconds = COMPILE_SECONDS if COMPILE in name else None
    return int(own_process.answer("benchmarks.suites.systems", *words, seconds=seconds))


def main(name: str, config: str, device: str, threads: str) -> None:
    """The process that peak_memory starts."""
    torch.set_num_threads(int(threads))
    try:
        print(peak_memory_of_steps(*prepared(name, config_from_json(json.loads(config)), device), COMPILE in name))
    except Exception as error:
        raise own_process.ended_by(error) from error


def run(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The suite `systems`."""
    rows: list[dict] = []
    tables = {preset: comparison(title) for preset, title in TITLES.items()}
    columns = [("", 54), *((f"{name} MiB", 12) for name in ("fused", "eager", COMPILE)), ("of eager", 9)]
    memory = Table("Peak training memory: what three steps add to a process", columns)
    chosen = cases(arguments.filter, arguments.quick)
    competitors = names(arguments.can_compile and not arguments.quick, arguments.bf16_beside)
    for name, config in within(arguments, list(chosen.items()), lambda case: case[0], rows, "systems"):
        table = tables[config.preset]
        if not table.rows:
            tqdm.write(table.head())
        entry = _entry(name, config, competitors, arguments)
        rows.append(entry)
        tqdm.write(table.add(cells(entry)))
        for line in [f"{who} left out: {why}" for who, why in entry.get("left_out", {}).items()]:
            tqdm.write(table.note(f"{name}: {line}"))
        if "memory" in entry:
            memory.add([name, *memory_cells(entry["memory"])])
    if memory.rows:
        print(memory)
    return rows, [*tables.values(), memory]


def _entry(name: str, config: TrainConfig, competitors: tuple[str, ...], arguments: Arguments) -> dict:
    """The row of one step."""
    peaks, left_out = apart(config, arguments.device, competitors)
    running = [competitor for competitor in competitors if competitor not in left_out]
    with tqdm(total=arguments.rounds, desc=name, leave=False, disable=None) as bar, tf32_allowed(False):
        more = (config, arguments.device, arguments.rounds, tick(bar), running)
        timings, failed = guarded(arguments, measure, *more)
    entry = row("systems", name, timings, failed, left_out)
    if peaks and not failed:
        eager = min(peaks[layout] for layout in EAGER)
        entry["memory"] = {"fused": peaks["fused"], "eager": eager, COMPILE: peaks.get(COMPILE)}
    return entry


def comparison(title: str) -> Table:
    """An empty table of fused beside eager and compile, in float32 and in bfloat16."""
    against = [column for name in ("eager", COMPILE) for column in ((f"{name} ms", 10), ("x", 6))]
    return Table(
        title, [("", 54), ("fused ms", 8), ("quartiles", 17), *against, ("bf16 eager x", 12), ("bf16 compile x", 14)]
    )


def cells(entry: dict) -> list[str]:
    """The cells of a row of `comparison`."""
    if "failed" in entry:
        return [entry["name"], f"DIFFERENT: {entry['failed'][0]}"]
    fused = entry["timings"]["fused"]
    low, high = fused["quartiles"]
    against, beside = [], []
    for name in ("eager", COMPILE):
        ratio = entry["speedup"].get(name)
        against += [ms(fused["median"] * ratio), f"{ratio:.2f}"] if ratio else ["-", "-"]
        beside.append(f"{entry['bf16'][name]:.2f}" if name in entry["bf16"] else "-")
    return [entry["name"], ms(fused["median"]), f"{ms(low)}..{ms(high)}", *against, *beside]


def memory_cells(memory: dict[str, int | None]) -> list[str]:
    """The cells of a row of the table of memory, without its name."""
    mib = ["-" if count is None else f"{count / 2**20:.0f}" for count in memory.values()]
    return [*mib, percent(memory["fused"] / memory["eager"])]


if __name__ == "__main__":
    main(*sys.argv[1:])
