"""What began, dcgan and wgan share, whose generator takes noise alone: noise, sample rows, the module for use."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from engine import distributed
from engine.config import TrainConfig
from engine.systems.base import System
from engine.systems.kinds import GENERATE

Distribution = Literal["uniform", "normal"]


def noise(distribution: Distribution, count: int, size: int, *, generator: torch.Generator) -> Tensor:
    """Draw noise for use: (count, size) float32 on the CPU, uniform in [-1, 1] or normal.

    Row i depends on the generator's seed and on i alone: a larger count leaves the first rows as they were.
    """
    kind = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults of the process are
    rows = [_draw(distribution, (size,), generator=generator, **kind) for _ in range(count)]
    return torch.stack(rows) if rows else torch.empty(0, size, **kind)


def _draw(distribution: Distribution, shape: tuple[int, ...], **options) -> Tensor:
    return torch.rand(shape, **options) * 2 - 1 if distribution == "uniform" else torch.randn(shape, **options)


def between(distribution: Distribution, first: Tensor, last: Tensor, frames: int) -> Tensor:
    """Interpolate noise from `first` (size,) to `last` (size,), both included: (frames, size).

    Uniform noise moves on a straight line. Normal noise of many dimensions lies near a sphere, so its direction turns
    around the origin (spherical interpolation) while its length changes linearly.
    """
    shares = torch.linspace(0, 1, frames, dtype=first.dtype)[:, None]
    if distribution == "uniform":
        return first + shares * (last - first)
    lengths = first.norm() + shares * (last.norm() - first.norm())
    a, b = first / first.norm(), last / last.norm()
    angle = torch.acos((a @ b).clamp(-1, 1))
    if angle < 1e-4 or angle > torch.pi - 1e-4:
        return first + shares * (last - first)
    return lengths * (torch.sin((1 - shares) * angle) * a + torch.sin(shares * angle) * b) / torch.sin(angle)


class TrainedGenerator(nn.Module):
    """A trained G as a user calls it: noise in, images out."""

    def __init__(self, generator: nn.Module, noise_size: int, distribution: Distribution):
        super().__init__()
        self.generator, self.noise_size, self.distribution = generator, noise_size, distribution

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw noise as in training, (count, h) float32 on the CPU; row i depends on the seed and i alone."""
        return noise(self.distribution, count, self.noise_size, generator=generator)

    def between(self, first: Tensor, last: Tensor, frames: int) -> Tensor:
        """Interpolate noise from `first` (h,) to `last` (h,): (frames, h)."""
        return between(self.distribution, first, last, frames)

    def forward(self, noise: Tensor) -> Tensor:
        """Make images of noise: (B, h) -> (B, C, R, R) in [-1, 1]."""
        return self.generator(noise).clamp(-1, 1)


class NoiseSystem(System):
    """A system with `generator` (noise -> images) and `ema`, the moving average of `generator`."""

    kind = GENERATE
    distribution: Distribution

    @staticmethod
    def noise_size(config: TrainConfig) -> int:
        """h, the length of the noise."""
        raise NotImplementedError

    @staticmethod
    def build_generator(config: TrainConfig) -> nn.Module:
        """Build G of a configuration; its weights are not set."""
        raise NotImplementedError

    @classmethod
    def trained(cls, config: TrainConfig) -> TrainedGenerator:
        return TrainedGenerator(cls.build_generator(config), cls.noise_size(config), cls.distribution)

    def averaged(self) -> dict[str, nn.Module]:
        return {"ema": self.ema}

    def start_average(self) -> None:
        """Make `ema`, a copy of the generator. Nothing trains it, so its BatchNorm uses the running statistics."""
        self.ema = copy.deepcopy(self.generator).requires_grad_(False).eval()

    def generate(self, count: int) -> Tensor:
        """Draw noise and make images of it for training: G(z), (count, C, R, R) float32."""
        shape, device = (self.noise_size(self.config),), self.device
        z = distributed.drawn(lambda rows: _draw(self.distribution, (rows, *shape), device=device), count)
        with self.precision():
            return self.generator(z).to(z.dtype)

    def train_generator(self, loss: Tensor) -> None:
        """Update G, then its average. The networks that the loss went through get no gradient."""
        optimiser = self.optimisers["generator"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward(inputs=[parameter for parameter in self.generator.parameters() if parameter.requires_grad])
        optimiser.step()
        self.average("ema", self.generator)

    @torch.no_grad()
    def generated_rows(self, count: int) -> dict[str, Tensor]:
        """Rows: images from fixed noise, of G and of its average; the average from the first noise to the last."""
        size = self.noise_size(self.config)
        z = noise(self.distribution, count, size, generator=torch.Generator().manual_seed(self.config.seed))
        rows = {"generated": self._in_use(self.generator, z)}
        if self.config.ema:
            rows["average"] = self._in_use(self.ema, z)
        return rows | {"interpolation": self._in_use(self.ema, between(self.distribution, z[0], z[-1], count))}

    def _in_use(self, network: nn.Module, z: Tensor) -> Tensor:
        """Images of the network as a user gets them: (B, h) on any device -> (B, C, R, R) float32 in [-1, 1]."""
        with in_use(network), self.precision():
            return network(z.to(self.device)).float().clamp(-1, 1)


@contextlib.contextmanager
def in_use(network: nn.Module) -> Iterator[None]:
    """Within the block the network evaluates: BatchNorm reads its running statistics and does not change them."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
