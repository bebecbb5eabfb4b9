"""What systems share whose generator makes images from noise alone: noise, sample rows, the module for use."""

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from engine import distributed
from engine.systems.base import System
from engine.systems.kinds import GENERATE

if TYPE_CHECKING:
    from engine.config import TrainConfig

Distribution = Literal["uniform", "normal"]


def noise(distribution: Distribution, count: int, size: int, *, generator: torch.Generator) -> Tensor:
    """(count, size) float32 on the CPU: uniform in [-1, 1], or normal.

    Row i depends on the generator's seed and i alone: asking for more leaves the first as they were.
    """
    rows = [_draw(distribution, (size,), generator=generator) for _ in range(count)]
    return torch.stack(rows) if rows else torch.empty(0, size)


def _draw(distribution: Distribution, shape: tuple[int, ...], **options) -> Tensor:
    return torch.rand(shape, **options) * 2 - 1 if distribution == "uniform" else torch.randn(shape, **options)


def between(distribution: Distribution, first: Tensor, last: Tensor, frames: int) -> Tensor:
    """(frames, size): noise on the way from `first` (size,) to `last`, both included.

    Uniform noise goes straight. Normal noise of many dimensions lies near a sphere: it turns around the origin
    (spherical interpolation), its length goes straight.
    """
    way = torch.linspace(0, 1, frames, dtype=first.dtype)[:, None]
    if distribution == "uniform":
        return first + way * (last - first)
    lengths = first.norm() + way * (last.norm() - first.norm())
    a, b = first / first.norm(), last / last.norm()
    angle = torch.acos((a @ b).clamp(-1, 1))
    if angle < 1e-4 or angle > torch.pi - 1e-4:
        return first + way * (last - first)
    return lengths * (torch.sin((1 - way) * angle) * a + torch.sin(way * angle) * b) / torch.sin(angle)


class TrainedGenerator(nn.Module):
    """A trained G for use: noise in, images out."""

    def __init__(self, generator: nn.Module, noise_size: int, distribution: Distribution):
        super().__init__()
        self.generator, self.noise_size, self.distribution = generator, noise_size, distribution

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, h) float32 on the CPU, as in training; row i depends on the generator's seed and i alone."""
        return noise(self.distribution, count, self.noise_size, generator=generator)

    def between(self, first: Tensor, last: Tensor, frames: int) -> Tensor:
        """(frames, h): noise on the way from `first` (h,) to `last`."""
        return between(self.distribution, first, last, frames)

    @torch.no_grad()
    def forward(self, noise: Tensor) -> Tensor:
        """(B, h) -> (B, C, R, R) in [-1, 1]."""
        return self.generator(noise).clamp(-1, 1)


class NoiseSystem(System):
    """A system with `generator` (noise -> images) and `ema`, its moving average."""

    kind = GENERATE
    distribution: Distribution

    @staticmethod
    def noise_size(config: "TrainConfig") -> int:
        """h, the length of the noise."""
        raise NotImplementedError

    @staticmethod
    def build_generator(config: "TrainConfig") -> nn.Module:
        """G of a configuration, weights not set."""
        raise NotImplementedError

    @classmethod
    def trained(cls, config: "TrainConfig") -> TrainedGenerator:
        """The module for use of a configuration, weights not set."""
        return TrainedGenerator(cls.build_generator(config), cls.noise_size(config), cls.distribution)

    def averaged(self) -> dict[str, nn.Module]:
        return {"ema": self.ema}

    def start_average(self) -> None:
        """Make `ema`, a copy of the generator as it is. It is for use only: BatchNorm takes its running statistics."""
        self.ema = copy.deepcopy(self.generator).requires_grad_(False).eval()

    def generate(self, count: int) -> Tensor:
        """(count, C, R, R) from new noise, in the noise's dtype (float32); for training."""
        shape, device = (self.noise_size(self.config),), self.device
        z = distributed.drawn(lambda rows: _draw(self.distribution, (rows, *shape), device=device), count)
        with self.precision():
            return self.generator(z).to(z.dtype)

    def train_generator(self, loss: Tensor) -> None:
        """One update of G, and of nothing that its loss went through; then of its average."""
        optimiser = self.optimisers["generator"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward(inputs=[parameter for parameter in self.generator.parameters() if parameter.requires_grad])
        optimiser.step()
        self.average("ema", self.generator)

    @torch.no_grad()
    def generated_rows(self, count: int) -> dict[str, Tensor]:
        """Rows of images from fixed noise: of G, of its average, and on the way from the first noise to the last."""
        size = self.noise_size(self.config)
        z = noise(self.distribution, count, size, generator=torch.Generator().manual_seed(self.config.seed))
        rows = {"generated": self._in_use(self.generator, z)}
        if self.config.ema:
            rows["average"] = self._in_use(self.ema, z)
        return rows | {"interpolation": self._in_use(self.ema, between(self.distribution, z[0], z[-1], count))}

    def _in_use(self, network: nn.Module, z: Tensor) -> Tensor:
        with in_use(network), self.precision():
            return network(z.to(self.device)).float().clamp(-1, 1)


@contextlib.contextmanager
def in_use(network: nn.Module) -> Iterator[None]:
    """The network as it is used (BatchNorm by its running statistics, which stay), then as it was."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
