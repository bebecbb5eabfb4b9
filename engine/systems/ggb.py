"""Generative Guiding Blocks (Park, Kim, Ro) for pose-guided synthesis: x becomes y's pose, given as points c.

    L_D      = -log D(y) - log(1 - D(G(x, c)))                                        (1)
    l_real   = -log D(G(x, c))                                                        (2)
    l_rec^n  = |y^n - x^n|                                                            (3)
    L_G      = lambda_real l_real + l_rec^N                                           (4)
    L_RAPD^n = -log R(E(y^n)) - log(1 - R(E(x^n)))                                    (5)
    L_NVTD^n = -log V(E(y^n) - E(x)) - log(1 - V(E(x^n) - E(x)))                      (6)
    L_GGB    = sum_n -lambda_rapd log R(E(x^n)) - lambda_nvtd log V(E(x^n) - E(x)) + l_rec^n    (7 to 9)

x^n is the image of guided level n, y^n and x the target and source at its size. Means are over patches and images. Each
iteration updates, in this order (section 2.3): D on L_D; every level's E, R and V on L_RAPD + L_NVTD; the layers of G
up to the guiding blocks on L_GGB; then G, run again with what that changed, on L_G.
"""

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import ops
from engine.config import Switch, TrainConfig
from engine.data import Batch
from engine.data.needs import Needs
from engine.errors import InputError
from engine.kernels.landmark_heatmap.reference import landmark_heatmap as eager_landmark_heatmap
from engine.networks.guided_unet import GuidedUNet, PatchCritic, guided_sizes
from engine.networks.guiding_block import GuidingBlock
from engine.networks.initialisation import he_normal
from engine.networks.layers import l1_autoencoder_loss
from engine.pages.panels import Chart, Curve, chart
from engine.systems.base import System
from engine.systems.kinds import DRIVE

BETAS = (0.5, 0.999)

# the rows of the paper's table 2
ABLATION: dict[str, dict[str, Any]] = {
    "without GGBs": {"levels": 0},
    "without RAPD": {"rapd": False},
    "without NVTD": {"nvtd": False},
    "1 GGB": {"levels": 1},
    "2 GGBs": {"levels": 2},
    "3 GGBs": {"levels": 3},
}


@dataclass(frozen=True)
class GgbConfig(TrainConfig):
    """Options of the Generative Guiding Blocks."""

    FIXED: ClassVar[tuple[str, ...]] = (*TrainConfig.FIXED, "points", "levels", "rapd", "nvtd", "norm")
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # for 2 CPU cores and a few minutes: a few thousand steps need a higher learning rate, at which judges as quick
        # as G tell every made change from a real one, and what they then ask of G is noise
        "quick": {
            "steps": 4000,
            "batch_size": 8,
            "filters": 16,
            "points": 68,
            "lr": 1e-3,
            "judge_rate": 0.1,
            "lr_schedule": "cosine",
            "ema": 0.99,
            "sample_every": 200,
            "checkpoint_every": 200,
        },
        # section 3.2; the steps are ten passes over its 146,680 pairs
        "paper": {
            "steps": 183_350,
            "batch_size": 8,
            "resolution": 256,
            "filters": 64,
            "lr": 2e-4,
            "ema": 0.999,
            "sample_every": 2000,
            "checkpoint_every": 5000,
        },
    }

    system: str = "ggb"
    points: Literal[18, 68] = 18
    """Key points of the target: 18 of a body's pose, or 68 landmarks of a face."""
    levels: Literal[0, 1, 2, 3] = 3
    """Guided levels: 1 = images of R/2, 2 = also R/4, 3 = also R/8 (at least 4 pixels wide)."""
    rapd: Switch = True
    """Judge the appearance of each guided level (Realistic Appearance Preserving Discriminator)."""
    nvtd: Switch = True
    """Judge the change from the source at each guided level (Naturalistic Variation Transforming Discriminator)."""
    heatmap: float = 1 / 64
    """Width (sigma) of a point's heatmap as a share of the image's side; at least half a pixel."""
    norm: Literal["batch", "instance", "none"] = "batch"
    """Normalisation in the generator and the final discriminator."""
    lambda_real: float = 0.02
    """Weight of the adversarial loss of the final image beside its L1."""
    lambda_rapd: float = 0.01
    """Weight of RAPD's adversarial loss of each level beside its L1."""
    lambda_nvtd: float = 0.01
    """Weight of NVTD's adversarial loss of each level beside its L1."""
    judge_rate: float = 1.0
    """Learning rate of the discriminators (D, E, RAPD, NVTD) in that of the generator."""

    def check(self) -> None:
        super().check()
        self.at_least(0, "lambda_real", "lambda_rapd", "lambda_nvtd", "judge_rate")
        self.between(0, 0.25, "heatmap")

    def sigma(self) -> float:
        """Of the heatmaps, in pixels."""
        return max(0.5, self.heatmap * self.resolution)


class GgbSystem(System):
    """G, its moving average, D, and a guiding block (E, RAPD, NVTD) for each guided level."""

    name = "ggb"
    kind = DRIVE
    config_class = GgbConfig
    headline = ("l1", "loss_levels", "adversarial", "loss_d", "loss_guides")
    charts = (
        chart("L1 to the target", l1="final image"),
        Chart("L1 to the target by level", (Curve("l1_*", "level"),)),
        chart("Adversarial", "-log D of the final image; D's loss.", adversarial="generator", loss_d="discriminator"),
        Chart("RAPD", (Curve("rapd_*", "level"),), "Loss of the judges of appearance; 1.39 is guessing."),
        Chart("NVTD", (Curve("nvtd_*", "level"),), "Loss of the judges of the change; 1.39 is guessing."),
        chart("Sums", "What each update minimises.", loss_g="final", loss_levels="levels", loss_guides="judges"),
    )

    def __init__(self, config: GgbConfig, device: str | torch.device):
        super().__init__(config, device)
        self.sizes = guided_sizes(config.resolution, config.levels)
        self.generator = build_generator(config)
        self.discriminator = PatchCritic(config.resolution, config.filters, config.channels, norm=config.norm)
        switches = {"rapd": config.rapd, "nvtd": config.nvtd, "fused": config.fused}
        judged = self.sizes if config.rapd or config.nvtd else ()
        self.blocks = nn.ModuleDict(
            {str(size): GuidingBlock(config.filters, config.channels, **switches) for size in judged}
        )
        for offset, network in enumerate((self.generator, self.discriminator, *self.blocks.values())):
            # each network has its own stream: D starts alike with and without guiding blocks
            he_normal(network, 1000 * config.seed + offset)
            network.to(self.device)
        # the moving average is for use: it normalises by the running means
        self.ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.add_optimiser("discriminator", self.discriminator, rate=config.judge_rate, betas=BETAS)
        if judged:
            self.add_optimiser("blocks", self.blocks, rate=config.judge_rate, betas=BETAS)
        if self.sizes:
            self.add_optimiser("levels", self.generator.guided_parameters(), betas=BETAS)
        self.add_optimiser("generator", self.generator.image_parameters(), betas=BETAS)

    @classmethod
    def needs(cls, config: GgbConfig) -> tuple[Needs, ...]:
        return (Needs(config.batch_size, points=config.points, members=2),)

    def networks(self) -> dict[str, nn.Module]:
        found = {"generator": self.generator, "discriminator": self.discriminator}
        return found | ({"blocks": self.blocks} if self.blocks else {})

    def averaged(self) -> dict[str, nn.Module]:
        return {"ema": self.ema}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """D, the guiding blocks, G up to them, G: each on what those before it became."""
        source, target, points = pair(batch)
        made, fake = self._first_pass(source, points)
        losses = self._update_discriminator(target, fake)
        views = {size: (shrink(source, size), shrink(target, size)) for size in self.sizes}
        if self.blocks:
            losses |= self._update_blocks(made, views)
        if self.sizes:
            losses |= self._update_levels(made, views)
        losses |= self._update_generator(source, target, points)
        self.average("ema", self.generator)
        return losses

    def _first_pass(self, source: Tensor, points: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """The guided levels' images, with their graph, and the final one, without."""
        with self.precision():
            with torch.set_grad_enabled(bool(self.sizes)):
                made, feature = self.generator.guide(source, points)
            with torch.no_grad():
                fake = self.generator.finish(feature)
        return {size: image.to(source.dtype) for size, image in made.items()}, fake.to(source.dtype)

    def _descend(self, name: str, loss: Tensor) -> None:
        optimiser = self.optimisers[name]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    def _update_discriminator(self, target: Tensor, fake: Tensor) -> dict[str, Tensor]:
        with self.precision():
            of_real, of_fake = self.discriminator(target), self.discriminator(fake)
        loss = said_real(of_real) + said_made(of_fake)
        self._descend("discriminator", loss)
        return {"loss_d": loss.detach()}

    def _update_blocks(self, made: dict[int, Tensor], views: dict[int, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        losses = {}
        for size, (source, target) in views.items():
            with self.precision():
                judged = self.blocks[str(size)](torch.cat([target, made[size].detach()]), source)
            for name, logits in judged.items():
                of_real, of_fake = logits.chunk(2)
                losses[f"{name}_{size}"] = said_real(of_real) + said_made(of_fake)
        loss = sum(losses.values())
        self._descend("blocks", loss)
        return {"loss_guides": loss.detach()} | {name: value.detach() for name, value in losses.items()}

    def _update_levels(self, made: dict[int, Tensor], views: dict[int, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        weights = {"rapd": self.config.lambda_rapd, "nvtd": self.config.lambda_nvtd}
        losses, terms = {}, []
        with frozen(self.blocks):
            for size, (source, target) in views.items():
                _, losses[f"l1_{size}"] = l1_autoencoder_loss(target, made[size], fused=self.config.fused)
                terms.append(losses[f"l1_{size}"])
                if self.blocks:
                    with self.precision():
                        judged = self.blocks[str(size)](made[size], source)
                    terms += [weights[name] * said_real(logits) for name, logits in judged.items()]
            loss = sum(terms)
        self._descend("levels", loss)
        return {"loss_levels": loss.detach()} | {name: value.detach() for name, value in losses.items()}

    def _update_generator(self, source: Tensor, target: Tensor, points: Tensor) -> dict[str, Tensor]:
        with frozen(self.discriminator):
            with self.precision():
                _, feature = self.generator.guide(source, points, images=False)
                fake = self.generator.finish(feature)
                logits = self.discriminator(fake)
            _, l1 = l1_autoencoder_loss(target, fake.to(target.dtype), fused=self.config.fused)
            adversarial = said_real(logits)
            loss = self.config.lambda_real * adversarial + l1
        self._descend("generator", loss)
        return {"loss_g": loss.detach(), "l1": l1.detach(), "adversarial": adversarial.detach()}

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Source, target heatmaps, each level's image enlarged by nearest, the result (moving average), target."""
        source, target, points = pair(batch)
        with self.precision():
            result, made = self.ema(source, points)
        side, sigma = self.config.resolution, self.config.sigma()
        draw = ops.landmark_heatmap if self.config.fused else eager_landmark_heatmap
        maps = draw(points, side, side, sigma=sigma, radius=math.ceil(3 * sigma)).amax(1, keepdim=True)
        rows = {"source": source, "points": (maps * 2 - 1).expand_as(source)}
        rows |= {f"level {size}": F.interpolate(made[size], size=side, mode="nearest") for size in sorted(made)}
        rows |= {"result": result, "target": target}
        return {label: row.float().clamp(-1, 1) for label, row in rows.items()}

    def passes(self, fused: bool) -> list[tuple[nn.Module, tuple, int]]:
        config, device = self.config, self.device

        def image(side: int) -> Tensor:
            return torch.empty(1, config.channels, side, side, device=device)

        points = torch.empty(1, config.points, 2, device=device)
        # G's first pass is freed before its second, D's batch before G's second, the blocks' before that
        kept = [(self.generator, (image(config.resolution), points), 1)]
        kept.append((self.discriminator, (image(config.resolution),), 2))
        return kept + [(block, (image(int(size)), image(int(size))), 2) for size, block in self.blocks.items()]

    @classmethod
    def trained(cls, config: GgbConfig) -> "TrainedGgb":
        return TrainedGgb(build_generator(config))


class TrainedGgb(nn.Module):
    """A trained G for use: a source image and the target's points in, the image out."""

    def __init__(self, generator: GuidedUNet):
        super().__init__()
        self.generator = generator

    @torch.no_grad()
    def forward(self, images: Tensor, points: Tensor) -> Tensor:
        """images (B, C, R, R) in [-1, 1], points (B, K, 2) in pixels of R, NaN where missing -> (B, C, R, R)."""
        _, feature = self.generator.guide(images, points, images=False)
        return self.generator.finish(feature).clamp(-1, 1)


def build_generator(config: GgbConfig) -> GuidedUNet:
    """G of a configuration, weights not set."""
    return GuidedUNet(
        config.resolution,
        config.filters,
        config.channels,
        points=config.points,
        sizes=guided_sizes(config.resolution, config.levels),
        sigma=config.sigma(),
        norm=config.norm,
        fused=config.fused,
    )


def pair(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Source x, target y (B, C, R, R) and the target's points c (B, K, 2). Raises InputError when there is no pair."""
    if not batch.more or batch.more[0].landmarks is None:
        raise InputError("ggb trains on pairs of images with key points; choose another --data")
    return batch.images, batch.more[0].images, batch.more[0].landmarks


def shrink(images: Tensor, size: int) -> Tensor:
    """(B, C, R, R) -> (B, C, size, size): means of squares, in which nothing of an image is lost to aliasing."""
    return F.avg_pool2d(images, images.shape[-1] // size)


def said_real(logits: Tensor) -> Tensor:
    """Mean of -log D, D = sigmoid(logits); float32."""
    return F.softplus(-widened(logits)).mean()


def said_made(logits: Tensor) -> Tensor:
    """Mean of -log(1 - D)."""
    return F.softplus(widened(logits)).mean()


def widened(logits: Tensor) -> Tensor:
    """At least float32."""
    return logits.float() if logits.dtype.itemsize < 4 else logits


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within the block, passes through `network` leave no gradients in its parameters."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
