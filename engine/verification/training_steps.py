"""The same training steps fused and eager, each from the same state: losses, and the gradients that optimisers take."""

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
LEAST_NORM = 1e-6  # of a loss or gradient, that a difference is divided by
# |v - D(v)| and ReLU have no derivative at 0: where rounding decides an element's sign, a gradient may differ by this
# much. It has to agree on the same weights and other images then; what is wrong is wrong on those too
KINK_TOLERANCE, ATTEMPTS = 5e-2, 3


def training_images(count: int, channels: int, resolution: int, step: int, device: torch.device) -> torch.Tensor:
    """(count, channels, R, R) in [-1, 1], channels_last: smooth shapes with a little noise, from the step's number."""
    generator = torch.Generator().manual_seed(step)
    coarse = torch.randn(count, channels, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, size=resolution, mode="bicubic", align_corners=False)
    noise = 0.1 * torch.randn(count, channels, resolution, resolution, generator=generator)
    return torch.tanh(smooth + noise).to(device).contiguous(memory_format=torch.channels_last)


def training_config(system: str) -> TrainConfig:
    """A small run of a system with the values of its quick preset; k and the game count from step 1."""
    kind = config_class(system)
    return kind(**kind.PRESETS["quick"] | kind.SMALL)


def training_batch(config: TrainConfig, step: int, device: torch.device) -> Batch:
    """What a step of the system takes, from the step's number."""
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
    """By optimiser: the gradients, flat, that its first step within the block takes."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, optimiser: torch.optim.Optimizer) -> None:
        if name not in found:
            parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
            found[name] = torch.cat([parameter.grad.flatten() for parameter in parameters])

    hooks = [
        optimiser.register_step_pre_hook(lambda optimiser, *_, name=name: keep(name, optimiser))
        for name, optimiser in system.optimisers.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def results(system: System, batch: Batch, seed: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The losses of one step, and the first gradients of each optimiser. seed: of what the step draws by chance."""
    torch.manual_seed(seed)
    with first_gradients(system) as gradients:
        losses = system.step(batch)
    return losses, gradients


def step_differences(fused: System, eager: System, step: int, steps: int) -> dict[str, float]:
    """One step of both from eager's state: the relative difference of each loss and each optimiser's gradient."""
    before = {name: tensor.clone() for name, tensor in eager.weights().items()}, copy.deepcopy(eager.state_dict())
    smallest: dict[str, float] = {}
    for attempt in range(ATTEMPTS):
        for system in (fused, eager):
            system.load_weights(before[0])
            system.load_state_dict(before[1])
        # further attempts take images of no other step
        number = step + attempt * 1000 * steps
        data = training_batch(eager.config, number, eager.device)
        (losses, given), (exact, wanted) = (results(system, data, number) for system in (fused, eager))
        of_losses = {name: relative_error(losses[name], exact[name], LEAST_NORM) for name in exact}
        gradients = {
            f"gradient of the {name}": relative_error(given[name], wanted[name], LEAST_NORM) for name in wanted
        }
        for name, difference in {**of_losses, **gradients}.items():
            # a loss is continuous: the worst attempt counts; of a gradient, the best
            take = min if name in gradients else max
            smallest[name] = take(smallest[name], difference) if name in smallest else difference
        at_kinks = any(LOSS_TOLERANCE < difference <= KINK_TOLERANCE for difference in gradients.values())
        # what is not a number is wrong, whatever other images say
        if not at_kinks or any(map(math.isinf, gradients.values())):
            break
    return smallest
