"""The baseline DCGAN (Radford et al. 2016), which trains step by step as in pytorch/examples.

    L_D = -log D(x) - log(1 - D(G(z)))
    L_G = -log D(G(z))

x is a photo, z normal noise. D is the sigmoid of the network's score.

One step: z -> G -> D(x), D(G(z)) -> dL_D -> Adam of D -> D(G(z)) -> dL_G -> Adam of G -> EMA. Which function does what:

    z, G(z)                            NoiseSystem.generate
    D(x), D(G(z)), L_D, Adam of D      DcganSystem.update: the two batches apart, for BatchNorm
    D(G(z)) by the new D, L_G          DcganSystem.update, on the same noise
    dL_G, Adam of G, moving average    NoiseSystem.train_generator
    the two losses                     log_loss
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import TrainConfig
from engine.data import Batch
from engine.networks.dcgan import DcganCritic, DcganGenerator
from engine.networks.initialisation import normal
from engine.pages.panels import chart
from engine.systems.generation import NoiseSystem

BETAS = (0.5, 0.999)


@dataclass(frozen=True)
class DcganOptions(TrainConfig):
    """Options that dcgan and wgan have, the systems on DCGAN's networks."""

    FIXED: ClassVar[tuple[str, ...]] = (*TrainConfig.FIXED, "noise", "layers")
    SMALL: ClassVar[dict[str, Any]] = {**TrainConfig.SMALL, "layers": "resize"}
    JUDGED: ClassVar[bool] = True
    noise: int = 100
    """Length of the noise (normal)."""
    layers: Literal["paper", "resize"] = "paper"
    """What changes the size: paper: 4x4 convolutions of stride 2, transposed in the generator; resize: nearest x2
    before and nearest /2 after 3x3 convolutions, which Kiln's operator does."""

    def check(self) -> None:
        super().check()
        self.at_least(1, "noise")
        self.at_most(1 << 16, "noise")


@dataclass(frozen=True)
class DcganConfig(DcganOptions):
    """Options of dcgan."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # for 2 CPU cores and a few minutes
        "quick": {
            "steps": 2000,
            "resolution": 32,
            "batch_size": 32,
            "filters": 24,
            "lr": 2e-4,
            "ema": 0.99,
            "sample_every": 200,
            "checkpoint_every": 500,
        },
        # a quarter of an hour of one core; what D sees is altered, because a thousand photos are soon known by heart
        "good": {
            "steps": 5000,
            "batch_size": 32,
            "filters": 32,
            "lr": 2e-4,
            "ema": 0.998,
            "augment_judged": 0.7,
            "hold_out": 20,
            "sample_every": 500,
            "checkpoint_every": 500,
        },
        # Radford et al. 2016, section 4, and pytorch/examples: 25 epochs of CelebA
        "paper": {
            "steps": 79_000,
            "batch_size": 64,
            "filters": 64,
            "lr": 2e-4,
            "ema": 0.999,
            "sample_every": 1000,
            "checkpoint_every": 5000,
        },
    }

    system: str = "dcgan"
    lr: float = 2e-4
    """Learning rate (Adam)."""


class DcganLike(NoiseSystem):
    """What dcgan and wgan share: DCGAN's generator, and a network that gives an image one score."""

    distribution = "normal"

    @staticmethod
    def noise_size(config: DcganOptions) -> int:
        return config.noise

    @staticmethod
    def build_generator(config: DcganOptions) -> DcganGenerator:
        shape = (config.resolution, config.filters, config.channels)
        return DcganGenerator(*shape, noise=config.noise, layers=config.layers, fused=config.fused)

    def score(self, network: DcganCritic, images: Tensor) -> Tensor:
        """Score images (B, C, R, R) by a network: (B,) float32."""
        with self.precision():
            return network(self.judged(images)).float()

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Rows: images from fixed noise, and photos."""
        return self.generated_rows(len(batch.images)) | {"real": batch.images}

    def kept(self, network: DcganCritic, times: int) -> list[tuple[nn.Module, tuple, int]]:
        """The `passes` of a step that runs `network` `times` times for each image, and G once."""
        side = self.config.resolution
        image = torch.empty(1, self.config.channels, side, side, device=self.device)
        noise = torch.empty(1, self.config.noise, device=self.device)
        return [(network, (image,), times), (self.generator, (noise,), 1)]


class DcganSystem(DcganLike):
    """dcgan in training: D, G and the moving average of G."""

    name = "dcgan"
    config_class = DcganConfig
    headline = ("loss_d", "loss_g", "d_real", "d_fake")
    charts = (
        chart("Losses", "Binary cross-entropy.", loss_d="discriminator", loss_g="generator"),
        chart("Judged real", "Mean probability that D gives.", d_real="real images", d_fake="generated images"),
    )

    def __init__(self, config: DcganConfig, device: str | torch.device):
        super().__init__(config, device)
        shape = (config.resolution, config.filters, config.channels)
        self.discriminator = DcganCritic(*shape, layers=config.layers, fused=config.fused)
        self.generator = self.build_generator(config)
        for offset, (name, network) in enumerate(self.networks().items()):
            normal(network, 1000 * config.seed + offset)
            network.to(self.device)
            self.add_optimiser(name, network, betas=BETAS)
        self.start_average()

    def networks(self) -> dict[str, nn.Module]:
        return {"discriminator": self.discriminator, "generator": self.generator}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Update D on photos and generated images, then G by the new D, on the same noise."""
        fake = self.generate(len(batch.images))
        # two batches, because BatchNorm mixes the images of one
        real_score, fake_score = self._score(batch.images), self._score(fake.detach())
        loss_d = log_loss(real_score, real=True) + log_loss(fake_score, real=False)
        self.descend(loss_d, "discriminator")
        loss_g = log_loss(self._score(fake), real=True)
        self.train_generator(loss_g)
        return {
            "loss_d": loss_d.detach(),
            "loss_g": loss_g.detach(),
            "d_real": real_score.detach().sigmoid().mean(),
            "d_fake": fake_score.detach().sigmoid().mean(),
        }

    def _score(self, images: Tensor) -> Tensor:
        return self.score(self.discriminator, images)

    def passes(self, fused: bool) -> list[tuple[nn.Module, tuple, int]]:
        return self.kept(self.discriminator, 3)


def log_loss(scores: Tensor, *, real: bool) -> Tensor:
    """Mean over scores (B,) of -log sigmoid(score) when real, else of -log(1 - sigmoid(score)): () float32."""
    wanted = torch.ones_like(scores) if real else torch.zeros_like(scores)
    return F.binary_cross_entropy_with_logits(scores, wanted)
