"""What a system gives the training loop, and what all systems share: optimisers, moving average, state."""

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.errors import InputError

if TYPE_CHECKING:
    from engine.config import TrainConfig
    from engine.data import Batch


class System:
    """Networks, their optimisers and one training step. Subclasses build the networks and write `step`.

    After a step nothing has been read from the device: losses are tensors there.
    """

    name: str
    # losses and states the progress line shows first, in this order
    headline: tuple[str, ...] = ()
    # values that the run's weights or state cannot survive a change of
    fixed: tuple[str, ...] = ("system", "seed", "resolution", "channels", "filters")

    def __init__(self, config: "TrainConfig", device: str | torch.device):
        self.config = config
        self.device = torch.device(device)
        self.steps_done = 0
        self.optimisers: dict[str, torch.optim.Optimizer] = {}

    # to be written by each system

    def networks(self) -> dict[str, nn.Module]:
        """The trained networks by the name that begins their weights' keys."""
        raise NotImplementedError

    def averaged(self) -> dict[str, nn.Module]:
        """Moving averages by the name that begins their weights' keys."""
        return {}

    def step(self, batch: "Batch") -> dict[str, Tensor]:
        """Train on one batch; returns the step's losses and states as scalars on the device."""
        raise NotImplementedError

    def sample(self, batch: "Batch") -> dict[str, Tensor]:
        """Rows of images for the sample grid, top to bottom: label -> (B, C, R, R) in [-1, 1]."""
        raise NotImplementedError

    def passes(self, fused: bool) -> list[tuple[nn.Module, tuple, int]]:
        """What is kept at once for the backward passes of a step: (network, inputs for one sample, samples per image).

        Works on a system built on the meta device; for the memory estimate.
        """
        raise NotImplementedError

    def own_state(self) -> dict[str, Any]:
        """The system's state besides weights and optimisers."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take what own_state gave."""

    # shared

    def add_optimiser(self, name: str, network: nn.Module, betas: tuple[float, float]) -> torch.optim.Optimizer:
        """Adam in one kernel over all parameters of `network`."""
        on_gpu = self.device.type == "cuda"
        # on a GPU the learning rate is a tensor, so that changing it never waits for the device
        lr = torch.tensor(self.config.lr, device=self.device) if on_gpu else self.config.lr
        fused = self.device.type in ("cpu", "cuda")
        optimiser = torch.optim.Adam(network.parameters(), lr=lr, betas=betas, fused=fused)
        self.optimisers[name] = optimiser
        return optimiser

    def set_learning_rate(self, lr: float) -> None:
        """For the next step, in every optimiser."""
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr

    def precision(self) -> contextlib.AbstractContextManager:
        """The context of forward passes: autocast to bfloat16 with --precision bf16, nothing otherwise."""
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def average(self, name: str, of: nn.Module) -> None:
        """Move the average `name` towards `of`; quickly in the first steps, then with the configured decay."""
        decay = min(self.config.ema, (1 + self.steps_done) / (10 + self.steps_done))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged()[name].parameters()), list(of.parameters()), 1 - decay)

    def weights(self) -> dict[str, Tensor]:
        """Every network's weights, flat: "generator.first.weight", "ema.first.weight", ... (live tensors)."""
        return {
            f"{name}.{key}": tensor
            for name, network in {**self.networks(), **self.averaged()}.items()
            for key, tensor in network.state_dict().items()
        }

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take weights saved by weights(). Raises InputError when they belong to another configuration."""
        for name, network in {**self.networks(), **self.averaged()}.items():
            load_part(network, weights, name)

    def state_dict(self) -> dict[str, Any]:
        """Optimiser moments, steps done and the system's own state."""
        return {
            "steps_done": self.steps_done,
            "optimisers": {name: optimiser.state_dict()["state"] for name, optimiser in self.optimisers.items()},
            "own": self.own_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state saved by state_dict(); the settings of the optimisers stay those of the configuration."""
        self.steps_done = state["steps_done"]
        for name, optimiser in self.optimisers.items():
            moments = copy.deepcopy(state["optimisers"].get(name, {}))
            optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
        self.load_own_state(state["own"])


def load_part(network: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Load the weights whose keys begin with `name.` into `network`. Raises InputError when they do not fit."""
    part = {key[len(name) + 1 :]: tensor for key, tensor in weights.items() if key.startswith(name + ".")}
    wanted = network.state_dict()
    if part.keys() != wanted.keys() or any(part[key].shape != wanted[key].shape for key in wanted):
        raise InputError(f"the checkpoint's weights of {name!r} are of another configuration or system")
    network.load_state_dict(part)
