"""What a system gives the training loop, and what all systems share: optimisers, moving average, state."""

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine import distributed
from engine.data.needs import Needs
from engine.distributed.gradients import GradientBucket
from engine.errors import InputError
from engine.pages.panels import Chart
from engine.systems.kinds import Kind

if TYPE_CHECKING:
    from engine.config import TrainConfig
    from engine.data import Batch


class System:
    """Networks, their optimisers and one training step. Subclasses build the networks and write `update`.

    A step has two parts. `advance` runs on the host: it counts, and sets the few scalars on the device that depend on
    the step's number. `update` is the same work in every step, on tensors that stay where they are, and reads nothing
    from the device: so a CUDA graph of it (engine.training.cuda_graph) can be launched in place of its kernels.
    """

    name: str
    # what a trained one is for
    kind: Kind
    config_class: type["TrainConfig"]
    # losses and states the progress line shows first, in this order
    headline: tuple[str, ...] = ()
    # panels of the report that are its own
    charts: tuple[Chart, ...] = ()

    def __init__(self, config: "TrainConfig", device: str | torch.device):
        """config: with the batch size of this rank."""
        self.config = config
        self.device = torch.device(device)
        self.steps_done = 0
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        # how far the moving averages go towards their networks in this step: 1 - decay
        self.average_weight = torch.zeros((), dtype=torch.float32, device=self.device)

    # to be written by each system

    @classmethod
    def needs(cls, config: "TrainConfig") -> tuple[Needs, ...]:
        """What a step takes from each image set: --data first, then --synthetic."""
        return (Needs(config.batch_size),)

    @classmethod
    def trained(cls, config: "TrainConfig") -> nn.Module:
        """The module for use, weights not set; its `generator` takes those of "generator" or "ema".

        refine:   forward(images, landmarks=None), attribute needs_landmarks
        generate: forward(noise), noise(count, generator) -> (count, h) float32 on the CPU
        drive:    forward(images, points), points (B, K, 2) in pixels of R
        Images are (B, C, R, R) in [-1, 1]. Gradients are off.
        """
        raise NotImplementedError

    def networks(self) -> dict[str, nn.Module]:
        """The trained networks by the name that begins their weights' keys."""
        raise NotImplementedError

    def averaged(self) -> dict[str, nn.Module]:
        """Moving averages by the name that begins their weights' keys."""
        return {}

    def update(self, batch: "Batch") -> dict[str, Tensor]:
        """The device's part of a step on one batch; returns the step's losses and states as scalars on the device.

        No Python number in it may differ between steps, and the batch's indices (on the host) may not be read: of a
        CUDA graph, Python runs once. Scalars that change are tensors on the device, set by `advance`.
        """
        raise NotImplementedError

    def sample(self, batch: "Batch") -> dict[str, Tensor]:
        """Rows of images for the sample grid, top to bottom: label -> (B, C, R, R) in [-1, 1]."""
        raise NotImplementedError

    def passes(self, fused: bool) -> list[tuple[nn.Module, tuple[Any, ...], int]]:
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

    def step(self, batch: "Batch") -> dict[str, Tensor]:
        """Train on one batch; returns the step's losses and states as scalars on the device."""
        self.advance()
        return self.update(batch)

    def advance(self) -> None:
        """The host's part of a step, before `update`: count it, and set what depends on its number.

        Moving averages go quickly in the first steps, then with the configured decay.
        """
        self.steps_done += 1
        self.average_weight.fill_(1 - min(self.config.ema, (1 + self.steps_done) / (10 + self.steps_done)))

    def add_optimiser(
        self,
        name: str,
        parameters: nn.Module | Iterable[nn.Parameter],
        kind: str = "adam",
        *,
        rate: float = 1.0,
        **options: Any,
    ) -> torch.optim.Optimizer:
        """An optimiser over a network's parameters, or those given; they step when the system says so.

        kind:    "adam" and "sgd" in one kernel over all parameters, or "rmsprop"
        rate:    factor of the schedule's learning rate
        options: betas, momentum, ... of the class in torch.optim
        """
        parameters = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
        on_gpu = self.device.type == "cuda"
        # on a GPU the learning rate is a tensor: changing it never waits for the device, and a CUDA graph reads it anew
        lr = torch.tensor(rate * self.config.lr, device=self.device) if on_gpu else rate * self.config.lr
        fused = self.device.type in ("cpu", "cuda")
        optimiser: torch.optim.Optimizer
        if kind == "adam":
            optimiser = torch.optim.Adam(parameters, lr=lr, fused=fused, capturable=on_gpu, **options)
        elif kind == "sgd":
            optimiser = torch.optim.SGD(parameters, lr=lr, fused=fused, **options)
        else:
            optimiser = torch.optim.RMSprop(parameters, lr=lr, capturable=on_gpu, **options)
        for group in optimiser.param_groups:
            group["rate"] = rate
        if distributed.size() > 1:
            GradientBucket(optimiser)
        self.optimisers[name] = optimiser
        return optimiser

    def set_learning_rate(self, lr: float) -> None:
        """For the next step, in every optimiser."""
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(group["rate"] * lr)
                else:
                    group["lr"] = group["rate"] * lr

    def precision(self) -> "contextlib.AbstractContextManager[Any]":
        """The context of forward passes: autocast to bfloat16 with --precision bf16, nothing otherwise."""
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def average(self, name: str, of: nn.Module) -> None:
        """Move the average `name` towards `of` by this step's weight; buffers (BatchNorm's) are taken as they are."""
        average = self.averaged()[name]
        averages: list[Tensor] = list(average.parameters())
        towards: list[Tensor] = list(of.parameters())
        approach(averages, towards, self.average_weight, few_launches=self.device.type == "cuda")
        with torch.no_grad():
            for kept, buffer in zip(average.buffers(), of.buffers(), strict=True):
                kept.copy_(buffer)

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
        """Take the state saved by state_dict(); the settings of the optimisers stay those of the configuration.

        Tensors that are there take the values and stay where they are, as a CUDA graph needs it.
        """
        self.steps_done = state["steps_done"]
        for name, optimiser in self.optimisers.items():
            load_moments(optimiser, state["optimisers"].get(name, {}))
        self.load_own_state(state["own"])


@torch.no_grad()
def approach(averages: list[Tensor], towards: list[Tensor], weight: Tensor, *, few_launches: bool) -> None:
    """averages += weight (towards - averages), in place.

    weight: () on the tensors' device. few_launches: three over all tensors, where lerp with such a weight takes one for
    each of them.
    """
    weight = weight.to(averages[0].dtype)
    if few_launches:
        way = torch._foreach_sub(towards, averages)
        torch._foreach_mul_(way, weight)
        torch._foreach_add_(averages, way)
    else:
        torch._foreach_lerp_(averages, towards, [weight] * len(averages))


@torch.no_grad()
def load_moments(optimiser: torch.optim.Optimizer, saved: dict[int, dict[str, Tensor]]) -> None:
    """Give `optimiser` the moments and step counts of its parameters, saved by their position; none: as never stepped.

    Each lands on its parameter's device, in the tensor that is there or in a new one, of the parameter's strides where
    it has its shape: fused optimisers go through both in the order of memory.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for position, parameter in enumerate(parameters):
        held, values = optimiser.state.get(parameter, {}), saved.get(position, {})
        for name, tensor in held.items():
            if name not in values:
                tensor.zero_()
        for name, value in values.items():
            if name in held:
                held[name].copy_(value)
            else:
                like = parameter if value.shape == parameter.shape else value
                made = torch.empty_like(like, dtype=value.dtype, device=parameter.device, requires_grad=False)
                optimiser.state[parameter][name] = made.copy_(value)  # Optimizer.state is a defaultdict


def load_part(network: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Load the weights whose keys begin with `name.` into `network`. Raises InputError when they do not fit."""
    part = {key[len(name) + 1 :]: tensor for key, tensor in weights.items() if key.startswith(name + ".")}
    wanted = network.state_dict()
    if part.keys() != wanted.keys() or any(part[key].shape != wanted[key].shape for key in wanted):
        raise InputError(f"the checkpoint's weights of {name!r} are of another configuration or system")
    network.load_state_dict(part)
