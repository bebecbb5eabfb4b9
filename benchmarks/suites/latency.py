"""One image through a trained refiner on the CPU or a GPU: engine.load's module against eager and torch.compile.

The models have start values, are saved as checkpoints and loaded, as a user loads them; the time of an image does not
depend on the weights. fused keeps its folded weights between calls, compile freezes what it has compiled.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import engine
from benchmarks.arguments import Arguments
from benchmarks.timing.measure import Limits, Timing, interleaved
from benchmarks.timing.rows import by_config
from benchmarks.timing.table import Table
from engine import checkpoint
from engine.kernels._spec import relative_error
from engine.systems.refiner import RefinerConfig
from engine.systems.registry import build
from engine.verification.training_steps import training_images

TOLERANCE = 1e-4  # norm-wise, of the image
IN_ALL = 2.0  # seconds that are sampled at least


def cases(only: str, quick: bool) -> dict[str, RefinerConfig]:
    """The refiners whose label contains `only`: the quick preset's and the paper's width at 64x64; quick: the first."""
    found = {}
    preset = RefinerConfig(device="cpu", **RefinerConfig.PRESETS["quick"] | {"inject": (8, 16, 32)})
    for filters in (preset.filters,) if quick else (preset.filters, 64):
        label = f"refiner {preset.resolution}x{preset.resolution}, {filters} filters, one image"
        if only in label:
            found[label] = dataclasses.replace(preset, filters=filters)
    return found


def measure(
    config: RefinerConfig, device: str, rounds: int, tick: Callable[[int], None], compiled: bool
) -> tuple[dict[str, Timing], list[str]]:
    """Seconds for one image of every competitor, and where their images differ (then no timings)."""
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
    """A checkpoint of this refiner with start values."""
    system = build(config, "cpu")
    return checkpoint.save(folder, 0, system.weights(), system.state_dict(), config)


def loaded(path: Path, device: str, compiled: bool) -> dict[str, nn.Module]:
    """The checkpoint's model in every form."""
    eager = functools.partial(engine.load, path, device=device, fused=False)
    found = {"fused": engine.load(path, device=device), "eager contiguous": eager()}
    found["eager channels_last"] = eager().to(memory_format=torch.channels_last)
    if compiled:
        found["compile"] = eager()
        found["compile"].compile(dynamic=False, options={"freezing": True})
    return found


def run(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The latency suite."""
    chosen = cases(arguments.filter, arguments.quick)
    return by_config("latency", "One image through a trained refiner, fp32", chosen, measure, arguments, limits)
