"""The class of every system: what the training loop calls, and what systems share (optimisers, averages, state)."""

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from engine import distributed
from engine.config import TrainConfig
from engine.data import Batch
from engine.data.needs import Needs
from engine.distributed.gradients import GradientBucket
from engine.errors import InputError
from engine.networks.judged_images import seen_differently
from engine.pages.panels import Chart
from engine.systems.kinds import Kind

_JUDGES = ("discriminator", "critic", "parts", "blocks")  # how the names of discriminators end


class System:
    """Networks, their optimisers and one training step. A subclass builds the networks and writes `update`.

    step: advance -> update

    `advance` runs on the host: it counts the step, and sets the few scalars on the device that depend on the step's
    number. `update` is the same work in every step, on tensors that stay where they are, and reads nothing from the
    device. That is why a CUDA graph of `update` (engine.training.cuda_graph) can replace the launches of its kernels.

    name:         the key of the system in engine.systems.registry.SYSTEMS
    kind:         what a trained system is for
    config_class: the class of its options
    headline:     names of losses and states that the progress line shows first, in this order
    charts:       panels that the system adds to the report of a run
    """

    name: str
    kind: Kind
    config_class: type[TrainConfig]
    headline: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()

    def __init__(self, config: TrainConfig, device: str | torch.device):
        """config: the options of the run, with the batch size of this rank."""
        self.config = config
        self.device = torch.device(device)
        self.steps_done = 0
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        # share of the way to its network that a moving average goes in this step: 1 - decay
        self.average_weight = torch.zeros((), dtype=torch.float32, device=self.device)

    # what each system writes

    @classmethod
    def needs(cls, config: TrainConfig) -> tuple[Needs, ...]:
        """What one step takes from each image set: from --data first, then from --synthetic."""
        return (Needs(config.batch_size),)

    @classmethod
    def trained(cls, config: TrainConfig) -> nn.Module:
        """Build the module that uses a trained system; its `generator` then loads the weights "generator" or "ema".

        Each kind of system has its own calls; images are (B, C, R, R) in [-1, 1].
        refine:   forward(images, landmarks=None), attribute needs_landmarks
        generate: forward(noise), noise(count, generator) -> (count, h) float32 on the CPU
        drive:    forward(images, points), points (B, K, 2) in pixels of R
        """
        raise NotImplementedError

    def networks(self) -> dict[str, nn.Module]:
        """The networks that are trained: name -> network. The name begins the keys of the network's weights."""
        raise NotImplementedError

    def averaged(self) -> dict[str, nn.Module]:
        """The moving averages of networks: name -> network. The name begins the keys of its weights."""
        return {}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Do the device's part of a step on one batch.

        returns: name -> loss or state of the step, () on the device.
        Python runs once for a CUDA graph that is then launched for many steps. So no Python number of an update may
        differ between steps, and an update may not read the batch's indices, which are on the host. A scalar that
        changes is a tensor on the device, which `advance` sets.
        """
        raise NotImplementedError

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Make the rows of the sample grid, top to bottom: label -> (B, C, R, R) in [-1, 1]."""
        raise NotImplementedError

    def passes(self, fused: bool) -> list[tuple[nn.Module, tuple[Any, ...], int]]:
        """What a step keeps at once for its backward passes: (network, inputs of one sample, samples per image) each.

        The memory estimate (engine.training.memory) reads it, of a system that is built on the meta device.
        """
        raise NotImplementedError

    def own_state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides the weights and the optimisers' state."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take what own_state returned in an earlier run."""

    # what all systems share

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Train on one batch; returns name -> loss or state of the step, () on the device."""
        self.advance()
        return self.update(batch)

    def advance(self) -> None:
        """Do the host's part of a step, before `update`: count the step, and set what depends on its number.

        Moving averages follow quickly in the first steps, then with the decay of the configuration.
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
        """Make an optimiser and keep it as `self.optimisers[name]`; the system decides when it steps.

        parameters: a network, or parameters
        kind:       "adam" or "sgd", each one kernel over all parameters, or "rmsprop"
        rate:       factor on the learning rate of the schedule
        options:    betas, momentum, ... of the class in torch.optim
        """
        parameters = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
        on_gpu = self.device.type == "cuda"
        # on a GPU the learning rate is a tensor: a change does not wait for the device, and a CUDA graph reads it anew
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
        """Set the learning rate of the next step in every optimiser: `lr` times the optimiser's own rate."""
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(group["rate"] * lr)
                else:
                    group["lr"] = group["rate"] * lr

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """The context of forward passes: autocast to bfloat16 with --precision bf16, else a context without effect."""
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def judged(self, images: Tensor) -> Tensor:
        """Images as a discriminator sees them: with --augment-judged differently each time, else as they are."""
        strength = self.config.augment_judged
        return seen_differently(images, strength) if strength else images

    def freeze_judges(self, layers: int) -> None:
        """Leave the first `layers` layers of each discriminator as they are: --freeze-d.

        Raises InputError where a discriminator has no further layer. Source: Mo et al. 2020 (FreezeD).
        """
        for name, network in self.networks().items():
            if not name.endswith(_JUDGES):
                continue
            own = [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]
            if layers >= len(own):
                raise InputError(f"--freeze-d {layers} leaves nothing to train: {name} has {len(own)} layers")
            for module in own[:layers]:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)

    def descend(self, loss: Tensor, *names: str) -> None:
        """Do one step of the optimisers `names` along the gradient of `loss`; older gradients are dropped before."""
        optimisers = [self.optimisers[name] for name in names]
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()

    def average(self, name: str, of: nn.Module) -> None:
        """Move the average `name` towards the network `of` by this step's weight; copy the buffers (BatchNorm's)."""
        average = self.averaged()[name]
        averages: list[Tensor] = list(average.parameters())
        towards: list[Tensor] = list(of.parameters())
        approach(averages, towards, self.average_weight, few_launches=self.device.type == "cuda")
        with torch.no_grad():
            for kept, buffer in zip(average.buffers(), of.buffers(), strict=True):
                kept.copy_(buffer)

    def weights(self) -> dict[str, Tensor]:
        """Every network's weights: "generator.first.weight", "ema.first.weight", ... -> the network's own tensor."""
        return {
            f"{name}.{key}": tensor
            for name, network in {**self.networks(), **self.averaged()}.items()
            for key, tensor in network.state_dict().items()
        }

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take weights that weights() gave. Raises InputError when they are of another configuration."""
        for name, network in {**self.networks(), **self.averaged()}.items():
            load_part(network, weights, name)

    def state_dict(self) -> dict[str, Any]:
        """The optimisers' moments, the number of steps done, and the system's own state."""
        return {
            "steps_done": self.steps_done,
            "optimisers": {name: optimiser.state_dict()["state"] for name, optimiser in self.optimisers.items()},
            "own": self.own_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state that state_dict() gave; the optimisers keep the settings of the configuration.

        Values are copied into the tensors that exist, because a CUDA graph needs those tensors where they are.
        """
        self.steps_done = state["steps_done"]
        for name, optimiser in self.optimisers.items():
            load_moments(optimiser, state["optimisers"].get(name, {}))
        self.load_own_state(state["own"])


@torch.no_grad()
def approach(averages: list[Tensor], towards: list[Tensor], weight: Tensor, *, few_launches: bool) -> None:
    """Compute averages += weight (towards - averages), in place.

    weight:       () on the tensors' device
    few_launches: three launches for all tensors together; lerp with a weight on the device takes one for each tensor
    """
    weight = weight.to(averages[0].dtype)
    if few_launches:
        differences = torch._foreach_sub(towards, averages)
        torch._foreach_mul_(differences, weight)
        torch._foreach_add_(averages, differences)
    else:
        torch._foreach_lerp_(averages, towards, [weight] * len(averages))


@torch.no_grad()
def load_moments(optimiser: torch.optim.Optimizer, saved: dict[int, dict[str, Tensor]]) -> None:
    """Give `optimiser` the saved moments and step counts of its parameters.

    saved: position of a parameter -> name -> tensor. A parameter without saved values starts as if it never stepped.
    A value goes to its parameter's device: into the tensor that exists, or into a new one. A new tensor of the
    parameter's shape also gets its strides, because fused optimisers go through both in the order of memory.
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
                moment = torch.empty_like(like, dtype=value.dtype, device=parameter.device, requires_grad=False)
                optimiser.state[parameter][name] = moment.copy_(value)  # Optimizer.state is a defaultdict


def load_part(network: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Load the weights whose keys begin with `name.` into `network`. Raises InputError when keys or shapes differ."""
    require_part(network, weights, name)
    network.load_state_dict({key: weights[f"{name}.{key}"] for key in network.state_dict()})


def require_part(network: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Raise InputError unless the weights whose keys begin with `name.` have the keys and shapes of `network`'s."""
    part = {key[len(name) + 1 :]: tensor.shape for key, tensor in weights.items() if key.startswith(name + ".")}
    if part != {key: tensor.shape for key, tensor in network.state_dict().items()}:
        raise InputError(f"the checkpoint's weights of {name!r} are of another configuration or system")
