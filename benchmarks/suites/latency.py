"""The suite `latency`: one image through a trained refiner, engine.load's module against eager and torch.compile.

The models have initial weights (the time of an image does not depend on them), are saved as checkpoints and loaded as a
user loads them. fused keeps its folded weights between calls; compile is used with frozen weights.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

import engine
from benchmarks.arguments import Arguments
from benchmarks.timing.measure import Limits, Timing, interleaved
from benchmarks.timing.rows import cells, comparison, guarded, row, shares, tick, within
from benchmarks.timing.table import Table
from engine import checkpoint
from engine.host.tf32 import tf32_allowed
from engine.kernels._spec import relative_error
from engine.systems.refiner import RefinerConfig
from engine.systems.registry import build
from engine.verification.training_steps import training_images

TOLERANCE = 1e-4  # norm-wise, of the image
IN_ALL = 2.0  # seconds of samples, at the least


def cases(only: str, quick: bool) -> dict[str, RefinerConfig]:
    """The refiners whose label contains `only`, at 64x64: of the quick preset's width, and of the paper's.

    quick: the first alone.
    """
    configs = {}
    preset = RefinerConfig(device="cpu", **RefinerConfig.PRESETS["quick"] | {"inject": (8, 16, 32)})
    for filters in (preset.filters,) if quick else (preset.filters, 64):
        label = f"refiner {preset.resolution}x{preset.resolution}, {filters} filters, one image"
        if only in label:
            configs[label] = dataclasses.replace(preset, filters=filters)
    return configs


def measure(
    config: RefinerConfig, device: str, rounds: int, tick: Callable[[int], None], compiled: bool
) -> tuple[dict[str, Timing], list[str]]:
    """Seconds for one image of every competitor, and the competitors whose images differ (then no timings)."""
    image = training_images(1, config.channels, config.resolution, 0, torch.device(device))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        competitors = loaded(save(config, Path(folder)), device, compiled)
        expected = competitors["eager contiguous"](image)
        errors = {name: relative_error(model(image), expected) for name, model in competitors.items()}
        # written so that NaN fails
        if failed := [f"{name} differs by {e:.1e}" for name, e in errors.items() if not e <= TOLERANCE]:
            return {}, failed
        calls = {name: functools.partial(model, image) for name, model in competitors.items()}
        return interleaved(calls, rounds=rounds, in_all=IN_ALL, after_round=tick), []


def save(config: RefinerConfig, folder: Path) -> Path:
    """Writes a checkpoint of this refiner with initial weights; returns its path."""
    system = build(config, "cpu")
    return checkpoint.save(folder, 0, system.weights(), system.state_dict(), config)


def loaded(path: Path, device: str, compiled: bool) -> dict[str, nn.Module]:
    """The checkpoint's model in every form."""
    eager = functools.partial(engine.load, path, device=device, fused=False)
    forms = {"fused": engine.load(path, device=device), "eager contiguous": eager()}
    forms["eager channels_last"] = eager().to(memory_format=torch.channels_last)
    if compiled:
        forms["compile"] = eager()
        forms["compile"].compile(dynamic=False, options={"freezing": True})
    return forms


def run(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The suite `latency`."""
    rows, table = [], comparison("One image through a trained refiner, fp32")
    chosen = cases(arguments.filter, arguments.quick)
    if chosen:
        tqdm.write(table.head())
    for name, config in within(arguments, list(chosen.items()), lambda case: case[0], rows, "latency"):
        with tqdm(total=arguments.rounds, desc=name, leave=False, disable=None) as bar:
            compiled = arguments.can_compile and not arguments.quick
            more = (config, arguments.device, arguments.rounds, tick(bar), compiled)
            with tf32_allowed(False):
                timings, failed = guarded(arguments, measure, *more)
        entry = row("latency", name, timings, failed)
        rows.append(entry if failed else shares(entry, limits, None, None))
        tqdm.write(table.add(cells(rows[-1])))
    return rows, [table]
