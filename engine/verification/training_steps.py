"""Takes the same training steps fused and eager, each from the same state, and compares losses and gradients."""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from engine.config import TrainConfig
from engine.data import Batch
from engine.data.landmarks import POINTS
from engine.kernels._spec import relative_error
from engine.systems.base import System
from engine.systems.registry import config_class, system_class

LOSS_TOLERANCE = 1e-4
LEAST_NORM = 1e-6  # a difference is divided by the norm of the loss or gradient, but by no less than this
# |v - D(v)| and ReLU have no derivative at 0. Where rounding decides the sign of an element, a gradient may differ by
# up to KINK_TOLERANCE; it then has to agree in one of so many attempts, on other images with the same weights. A wrong
# gradient is wrong on every image.
KINK_TOLERANCE, ATTEMPTS = 5e-2, 8


def training_images(count: int, channels: int, resolution: int, step: int, device: torch.device) -> torch.Tensor:
    """Images (count, channels, R, R) float32 in [-1, 1], channels_last: smooth shapes with a little noise.

    step: seed of the images
    """
    generator = torch.Generator().manual_seed(step)
    coarse = torch.randn(count, channels, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, size=resolution, mode="bicubic", align_corners=False)
    noise = 0.1 * torch.randn(count, channels, resolution, resolution, generator=generator)
    return torch.tanh(smooth + noise).to(device).contiguous(memory_format=torch.channels_last)


def training_config(system: str) -> TrainConfig:
    """The quick preset of a system, made small (SMALL), so that every part of it works from the first step."""
    kind = config_class(system)
    return kind(**kind.PRESETS["quick"] | kind.SMALL)


def training_batch(config: TrainConfig, step: int, device: torch.device) -> Batch:
    """The batch of a step of the system; step: its number, which seeds the images and points."""
    parts = []
    for need in system_class(config.system).needs(config):
        for _ in range(need.members):
            number = step + 1_000_003 * len(parts)
            images = training_images(need.samples, config.channels, config.resolution, number, device)
            generator = torch.Generator().manual_seed(number)
            points = torch.rand(need.samples, need.points or POINTS, 2, generator=generator) * config.resolution
            parts.append(Batch(images, points.to(device), torch.arange(need.samples)))
    return dataclasses.replace(parts[0], more=tuple(parts[1:]))


@contextlib.contextmanager
def first_gradients(system: System) -> Iterator[dict[str, torch.Tensor]]:
    """Keep, by the name of each optimiser, the flat gradients that its first step within the block takes."""
    gradients: dict[str, torch.Tensor] = {}

    def keep(name: str, optimiser: torch.optim.Optimizer) -> None:
        if name not in gradients:
            parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
            gradients[name] = torch.cat([parameter.grad.flatten() for parameter in parameters])

    hooks = [
        optimiser.register_step_pre_hook(lambda optimiser, *_, name=name: keep(name, optimiser))
        for name, optimiser in system.optimisers.items()
    ]
    try:
        yield gradients
    finally:
        for hook in hooks:
            hook.remove()


def results(system: System, batch: Batch, seed: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The losses of one step, and the first gradients of each optimiser; seed: of the random numbers of the step."""
    torch.manual_seed(seed)
    with first_gradients(system) as gradients:
        losses = system.step(batch)
    return losses, gradients


def saved_state(system: System) -> tuple[dict[str, torch.Tensor], dict]:
    """A copy of the weights and of all else that a step changes, for `restore`."""
    return {name: tensor.clone() for name, tensor in system.weights().items()}, copy.deepcopy(system.state_dict())


def restore(system: System, state: tuple[dict[str, torch.Tensor], dict]) -> None:
    """Set a system back to a state that `saved_state` gave."""
    system.load_weights(state[0])
    system.load_state_dict(state[1])


def differences_on(
    fused: System, eager: System, state: tuple[dict[str, torch.Tensor], dict], number: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The relative differences of losses, and of gradients, in a step of both systems from a state.

    number: of the step, which seeds its images and random numbers
    """
    for system in (fused, eager):
        restore(system, state)
    data = training_batch(eager.config, number, eager.device)
    (losses, ours), (exact, wanted) = (results(system, data, number) for system in (fused, eager))
    of_losses = {name: relative_error(losses[name], exact[name], LEAST_NORM) for name in exact}
    gradients = {f"gradient of the {name}": relative_error(ours[name], wanted[name], LEAST_NORM) for name in wanted}
    return of_losses, gradients


def step_differences(fused: System, eager: System, step: int, steps: int) -> dict[str, float]:
    """Take one step of both systems from eager's state; returns the relative difference of each loss and gradient.

    step:  number of the step; steps: how many steps are compared in total
    """
    before = saved_state(eager)
    smallest: dict[str, float] = {}
    for attempt in range(ATTEMPTS):
        # the images of a further attempt belong to no other step
        of_losses, gradients = differences_on(fused, eager, before, step + attempt * 1000 * steps)
        for name, difference in {**of_losses, **gradients}.items():
            # of a gradient the best attempt counts; of a loss, which is continuous, the worst, unless the difference
            # may come from such a gradient: some systems take several optimiser steps in a training step
            take = min if name in gradients or smallest.get(name, 0.0) <= KINK_TOLERANCE else max
            smallest[name] = take(smallest[name], difference) if name in smallest else difference
        at_kinks = any(LOSS_TOLERANCE < difference <= KINK_TOLERANCE for difference in gradients.values())
        # a gradient with NaN has an infinite difference and is wrong, whatever other images say
        if not at_kinks or any(map(math.isinf, gradients.values())):
            break
    return smallest
