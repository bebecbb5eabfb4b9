"""The suite `systems`: a training step of every system at its quick preset, fused against two baselines.

eager:   the plain PyTorch form, channels_last
compile: the same with every network through torch.compile; absent for a step that needs second derivatives, because
         torch.compile has none

On a GPU the fused step is one CUDA graph, as it is in training. The refiner has a suite of its own (step.py), with
stronger baselines and memory.
"""

import contextlib
import dataclasses
import io
from collections.abc import Callable

import torch

from benchmarks.arguments import Arguments
from benchmarks.suites.step import stepper
from benchmarks.timing.measure import Limits, Timing, interleaved
from benchmarks.timing.rows import by_config
from benchmarks.timing.table import Table
from engine.config import TrainConfig
from engine.systems.base import System
from engine.systems.registry import SYSTEMS, build, config_class
from engine.verification.training_steps import LOSS_TOLERANCE, step_differences, training_batch

LEFT_OUT = ("refiner",)
GRADIENT_TOLERANCE = 1e-3  # relative: a single element whose sign rounding decides changes a gradient by this much


def cases(only: str, quick: bool) -> dict[str, TrainConfig]:
    """The systems whose label contains `only`; quick: at 32x32, batch 4."""
    configs = {}
    for name in SYSTEMS:
        if name in LEFT_OUT:
            continue
        kind = config_class(name)
        config = kind(**kind.PRESETS["quick"])
        if quick:
            config = dataclasses.replace(config, resolution=32, batch_size=4)
        label = f"{name} {config.resolution}x{config.resolution}, {config.filters} filters, batch {config.batch_size}"
        if only in label:
            configs[label] = config
    return configs


def measure(
    config: TrainConfig, device: str, rounds: int, tick: Callable[[int], None], compiled: bool
) -> tuple[dict[str, Timing], list[str]]:
    """Seconds per step of every competitor, and the losses that disagree (then no timings)."""
    if failed := disagreements(config, device):
        return {}, failed
    fused, eager = (_built(config, device, fused=mode) for mode in (True, False))
    competitors = {"fused": fused, "eager channels_last": eager}
    if compiled and not getattr(config, "gradient_penalty", 0):
        competitors["compile"] = _built(config, device, fused=False)
        for network in competitors["compile"].networks().values():
            network.compile(dynamic=False)
    batch = training_batch(config, 1, torch.device(device))
    steps = {name: stepper(name, system, batch) for name, system in competitors.items()}
    return interleaved(steps, rounds=rounds, after_round=tick), []


def disagreements(config: TrainConfig, device: str) -> list[str]:
    """The losses and gradients of a step that differ between fused and eager.

    The learning rate is next to nothing. Some systems take several optimiser steps in a training step, and an
    optimiser's first step is as large for a gradient that is only rounding as for any other.
    """
    small = dataclasses.replace(config, lr=1e-7)
    differences = step_differences(*(_built(small, device, fused=mode) for mode in (True, False)), 1, 1)
    allowed = {name: GRADIENT_TOLERANCE if name.startswith("gradient") else LOSS_TOLERANCE for name in differences}
    # written so that NaN fails
    return [f"{name} differs by {value:.1e}" for name, value in differences.items() if not value <= allowed[name]]


def _built(config: TrainConfig, device: str, fused: bool) -> System:
    with contextlib.redirect_stdout(io.StringIO()):  # some systems print when they are built
        system = build(dataclasses.replace(config, fused=fused), device)
    if not fused:
        for network in system.networks().values():
            network.to(memory_format=torch.channels_last)
    return system


def run(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The suite `systems`."""
    chosen = cases(arguments.filter, arguments.quick)
    return by_config(
        "systems", "Training steps of every system, quick preset, fp32", chosen, measure, arguments, limits
    )
