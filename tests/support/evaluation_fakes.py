"""Tiny systems for the tests of evaluate and ablate: from noise, by landmarks, and one that halves images."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from engine import checkpoint
from engine.config import TrainConfig
from engine.data.needs import Needs
from engine.networks.initialisation import initialise
from engine.systems.base import System
from engine.systems.kinds import DRIVE, GENERATE, REFINE

WAIST = 4
ABLATION = {"plain": {"scale": 1.0}, "half": {"scale": 0.5}}


@dataclass(frozen=True)
class FakeConfig(TrainConfig):
    """The options that every fake system has."""

    PRESETS: ClassVar[dict[str, dict[str, int]]] = {
        "quick": {"steps": 3, "batch_size": 2, "resolution": 16, "sample_every": 0},
        "paper": {},
    }

    scale: float = 1.0
    """Factor of the loss."""


@dataclass(frozen=True)
class FakeNoiseConfig(FakeConfig):
    system: str = "fake_noise"


@dataclass(frozen=True)
class FakeDriveConfig(FakeConfig):
    system: str = "fake_drive"


@dataclass(frozen=True)
class FakeRefineConfig(FakeConfig):
    system: str = "fake_refine"


class FakeNoiseGenerator(nn.Module):
    """(B, WAIST) -> (B, C, R, R) in [-1, 1]."""

    def __init__(self, config):
        super().__init__()
        self.shape = (config.channels, config.resolution, config.resolution)
        self.layer = nn.Linear(WAIST, config.channels * config.resolution**2)
        with torch.no_grad():  # fixed, so that all runs draw the same: OpenCV finds a face in some noise
            self.layer.weight.copy_(torch.randn(self.layer.weight.shape, generator=torch.Generator().manual_seed(1)))
            self.layer.bias.zero_()

    def forward(self, noise):
        return self.layer(noise).tanh().unflatten(1, self.shape)


class FakeDriveGenerator(nn.Module):
    """(B, C, R, R) -> the source times a factor that starts at 1."""

    def __init__(self, config):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, images, points):
        assert points.shape == (len(images), 68, 2)
        return images * self.factor


class FakeRefineGenerator(nn.Module):
    """(B, C, R, R) -> the image times a factor that starts at 0.5."""

    def __init__(self, config):
        super().__init__()
        self.factor = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, images, landmarks):
        assert landmarks is None
        return images * self.factor


class FakeModule(nn.Module):
    needs_landmarks = needs_source_points = False

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    @staticmethod
    def noise(count, generator):
        return 2 * torch.rand(count, WAIST, generator=generator) - 1

    @torch.no_grad()
    def forward(self, *inputs):
        return self.generator(*inputs).clamp(-1, 1)


class FakeSystem(System):
    generator_class: type[nn.Module]

    def __init__(self, config, device):
        super().__init__(config, device)
        self.generator = self.generator_class(config)
        if config.system == "fake_noise":
            initialise(self.generator, config.seed)
        self.ema = self.generator_class(config)
        self.ema.load_state_dict(self.generator.state_dict())
        self.add_optimiser("generator", self.generator, "sgd")

    @classmethod
    def trained(cls, config):
        return FakeModule(cls.generator_class(config))

    def networks(self):
        return {"generator": self.generator}

    def averaged(self):
        return {"ema": self.ema}

    def update(self, batch):
        self.optimisers["generator"].zero_grad()
        loss = self.config.scale * (self.made(batch) - self.wanted(batch)).abs().mean()
        loss.backward()
        self.optimisers["generator"].step()
        self.average("ema", self.generator)
        return {"loss": loss.detach()}


class FakeNoise(FakeSystem):
    name, kind, config_class = "fake_noise", GENERATE, FakeNoiseConfig
    generator_class = FakeNoiseGenerator

    def made(self, batch):
        return self.generator(2 * torch.rand(len(batch.images), WAIST) - 1)

    def wanted(self, batch):
        return batch.images


class FakeDrive(FakeSystem):
    name, kind, config_class = "fake_drive", DRIVE, FakeDriveConfig
    generator_class = FakeDriveGenerator

    @classmethod
    def needs(cls, config):
        return (Needs(config.batch_size, points=68, members=3),)

    def made(self, batch):
        return self.generator(batch.images, batch.more[0].landmarks)

    def wanted(self, batch):
        return batch.more[0].images


class FakeRefine(FakeSystem):
    """A system that refines: as for simgan, a second image set would be the synthetic images."""

    name, kind, config_class = "fake_refine", REFINE, FakeRefineConfig
    generator_class = FakeRefineGenerator


SYSTEMS = {kind.name: (__name__, kind.__name__) for kind in (FakeNoise, FakeDrive, FakeRefine)}


def make_run(folder, system, config, **weights):
    """A run folder with one checkpoint of an untrained fake; weights replace those of its generator and average."""
    built = system(config, "cpu")
    with torch.no_grad():
        for name, value in weights.items():
            built.generator.get_parameter(name.replace("_", ".")).copy_(value)
            built.ema.get_parameter(name.replace("_", ".")).copy_(value)
    checkpoint.save(folder, 5, built.weights(), built.state_dict(), config)
    return folder


class MeanColour:
    """Models whose embedding is known: the mean colour; a black image has no face."""

    def embed(self, image):
        return image.double().mean(dim=(1, 2)).numpy() / 255 if image.any() else None
