"""Takes the same training steps kernel by kernel and as a CUDA graph, each from the same state, and compares them.

What a step changes is compared, and not where many steps lead. Adam divides a gradient by its own size, so an element
whose gradient is nothing but rounding (a bias before a norm) moves by the whole learning rate in either direction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from engine.data import Batch
from engine.kernels._spec import relative_error
from engine.systems.base import System
from engine.verification.training_steps import (
    ATTEMPTS,
    KINK_TOLERANCE,
    LEAST_NORM,
    LOSS_TOLERANCE,
    restore,
    saved_state,
    training_batch,
)

# of what a step adds to the weights of a network: their gradients differ by rounding, which Adam magnifies
UPDATE_TOLERANCE = 1e-3
# updates are compared where an element's gradient has at least this share of the optimiser's gradients
STEADY = 1e-2
ROUNDING = 2.0**-23  # of a float32 weight, that its update is added to


@dataclass(frozen=True)
class Difference:
    """How far a recorded step is from the same step kernel by kernel.

    what: a loss, the moments of an optimiser, the update of a network or the state; relative: error; allowed: its limit
    """

    what: str
    relative: float
    allowed: float = LOSS_TOLERANCE

    @property
    def passed(self) -> bool:
        return self.relative <= self.allowed  # NaN does not pass


def recorded_differences(
    plain: System, recorded: System, step: Callable[[Batch], dict[str, Tensor]], number: int, steps: int
) -> list[Difference]:
    """Take a step of both systems from the state of `plain`, and compare all that the step returns and changes.

    step: of `recorded`; number: of the step, which seeds its images and random numbers; steps: how many are compared

    Where rounding may have decided the sign of an element at a kink, as KINK_TOLERANCE has it, the step is taken again
    on other images: it has to agree on one of them. Not the first step: what it makes has no state to go back to.
    """
    state = saved_state(plain)
    attempts = ATTEMPTS if plain.steps_done else 1
    for attempt in range(attempts):
        for system in (plain, recorded) if plain.steps_done else ():
            restore(system, state)
        found = _differences(state[0], plain, recorded, step, number + attempt * 1000 * steps)
        missed = [one.relative for one in found if not one.passed]
        if not missed or not all(relative <= KINK_TOLERANCE for relative in missed):  # NaN is no kink
            break
    return found


def _differences(
    before: dict[str, Tensor], plain: System, recorded: System, step: Callable[[Batch], dict[str, Tensor]], seed: int
) -> list[Difference]:
    """Of one attempt, from the weights `before`. seed: of the images and of the random numbers of the step"""
    batch = training_batch(plain.config, seed, plain.device)
    torch.manual_seed(seed)
    expected = plain.step(batch)
    torch.manual_seed(seed)
    losses = step(batch)
    found = [Difference(name, relative_error(losses[name], value, LEAST_NORM)) for name, value in expected.items()]
    for name, optimiser in plain.optimisers.items():
        for moment, value in _moments(optimiser).items():
            other = _moments(recorded.optimisers[name]).get(moment, torch.full_like(value, torch.nan))
            found.append(Difference(f"{moment} of the {name}", relative_error(other, value, LEAST_NORM)))
    found += _updates(before, plain, recorded)
    for number, (value, other) in enumerate(zip(_tensors(plain), _tensors(recorded), strict=True)):
        found.append(Difference(f"state {number}", relative_error(other.double(), value.double(), LEAST_NORM)))
    return found


def _moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments by name, each of all parameters together."""
    states = list(optimiser.state.values())
    names = {name: None for state in states for name, value in state.items() if torch.is_tensor(value) and value.dim()}
    return {name: torch.cat([state[name].flatten() for state in states if name in state]) for name in names}


def _tensors(system: System) -> list[Tensor]:
    """What the system keeps beside weights and moments."""
    own: dict[str, Any] = system.state_dict()["own"]
    return [leaf for leaf in tree_leaves(own) if isinstance(leaf, Tensor) and leaf.numel()]


def _updates(before: dict[str, Tensor], plain: System, recorded: System) -> list[Difference]:
    """The relative difference of what the step added to the weights of each network, buffers included."""
    steady, weights, others = steady_elements(plain), plain.weights(), recorded.weights()
    found = []
    for network in {**plain.networks(), **plain.averaged()}:
        errors, updates = [torch.zeros(1)], [torch.zeros(1)]
        for name in (name for name in weights if name.startswith(f"{network}.")):
            form = name.removeprefix(f"{network}."), weights[name].shape
            mask = steady.get(form, torch.tensor(True, device=plain.device))
            value, other, old = (tensor.double() for tensor in (weights[name], others[name], before[name]))
            error = ((other - value).abs() - ROUNDING * value.abs()).clamp(min=0) * mask
            errors.append(error.flatten().cpu())
            updates.append(((value - old) * mask).flatten().cpu())
        relative = float(torch.cat(errors).norm() / torch.cat(updates).norm().clamp(min=LEAST_NORM))
        found.append(Difference(f"update of {network}", relative, UPDATE_TOLERANCE))
    return found


def steady_elements(system: System) -> dict[tuple[str, torch.Size], Tensor]:
    """The elements of each parameter whose gradient is more than rounding: name in its network, shape -> bool tensor.

    Networks of one form share names and shapes. An element must be steady in each of them, so a moving average is
    compared where the network is that it follows.
    """
    named = {p: (key, p.shape) for network in system.networks().values() for key, p in network.named_parameters()}
    steady: dict[tuple[str, torch.Size], Tensor] = {}
    for optimiser in system.optimisers.values():
        squares = {p: state.get("exp_avg_sq", state.get("square_avg")) for p, state in optimiser.state.items()}
        squares = {p: square for p, square in squares.items() if square is not None}
        if not squares:
            continue  # without a second moment an update is as steady as the gradient
        mean = torch.cat([square.flatten() for square in squares.values()]).mean()
        for parameter, square in squares.items():
            elements, form = square > STEADY**2 * mean, named[parameter]
            steady[form] = elements & steady[form] if form in steady else elements
    return steady
