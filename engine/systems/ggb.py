"""Generative Guiding Blocks (Park, Kim, Ro) for pose-guided synthesis: x becomes y's pose, given as points c.

    L_D      = -log D(y) - log(1 - D(G(x, c)))                                        (1)
    l_real   = -log D(G(x, c))                                                        (2)
    l_rec^n  = |y^n - x^n|                                                            (3)
    L_G      = lambda_real l_real + l_rec^N                                           (4)
    L_RAPD^n = -log R(E(y^n)) - log(1 - R(E(x^n)))                                    (5)
    L_NVTD^n = -log V(E(y^n) - E(x)) - log(1 - V(E(x^n) - E(x)))                      (6)
    L_GGB    = sum_n -lambda_rapd log R(E(x^n)) - lambda_nvtd log V(E(x^n) - E(x)) + l_rec^n    (7 to 9)

x^n is the image of guided level n; y^n and x are the target and the source at its size. Means are over patches and
images. R is the discriminator RAPD, V is NVTD, E their encoder.

One step has the order of section 2.3: G -> L_D -> Adam of D -> L_RAPD + L_NVTD -> Adam of E, R and V -> L_GGB -> Adam
of G up to the guided levels -> G again -> L_G -> Adam of G -> EMA. Which function does what:

    x^n and G(x, c)                          GgbSystem._first_pass
    L_D, Adam of D                           GgbSystem._update_discriminator
    L_RAPD + L_NVTD, Adam of E, R and V      GgbSystem._update_blocks
    L_GGB, Adam of G up to the levels        GgbSystem._update_levels
    G(x, c) with what changed, L_G, Adam     GgbSystem._update_generator
    -log D and -log(1 - D)                   said_real, said_generated
    moving average of G                      System.average
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import Switch
from engine.data import Batch
from engine.data.needs import Needs
from engine.errors import InputError
from engine.networks.guided_unet import GuidedUNet, PatchCritic, guided_sizes
from engine.networks.guiding_block import GuidingBlock
from engine.networks.initialisation import he_normal
from engine.networks.layers import LANDMARK_HEATMAP, l1_autoencoder_loss
from engine.networks.patchgan import frozen
from engine.pages.panels import Chart, Curve, chart
from engine.systems.base import System
from engine.systems.driving import DrivingConfig, TrainedDriver
from engine.systems.kinds import DRIVE

BETAS = (0.5, 0.999)

# name -> options of the rows of the paper's table 2
ABLATION: dict[str, dict[str, Any]] = {
    "without GGBs": {"levels": 0},
    "without RAPD": {"rapd": False},
    "without NVTD": {"nvtd": False},
    "1 GGB": {"levels": 1},
    "2 GGBs": {"levels": 2},
    "3 GGBs": {"levels": 3},
}


# what quick and good share. A few thousand steps need a higher learning rate. Judges that learn at that rate tell every
# generated change from a real one, and what they then ask of G is noise; so they learn slower
_SHORT: dict[str, Any] = {
    "batch_size": 8,
    "filters": 16,
    "points": 68,
    "correct": True,
    "lr": 1e-3,
    "judge_rate": 0.1,
    "lr_schedule": "cosine",
}


@dataclass(frozen=True)
class GgbConfig(DrivingConfig):
    """Options of ggb."""

    FIXED: ClassVar[tuple[str, ...]] = (
        *DrivingConfig.FIXED,
        *("points", "levels", "rapd", "nvtd", "norm"),
    )
    WITH_CORRECT: ClassVar[tuple[str, ...]] = (*DrivingConfig.WITH_CORRECT, "lambda_halves")
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # for 2 CPU cores and a few minutes
        "quick": {
            **_SHORT,
            "steps": 4000,
            "ema": 0.99,
            "sample_every": 200,
            "checkpoint_every": 200,
        },
        # a quarter of an hour of one core
        "good": {
            **_SHORT,
            **DrivingConfig.GOOD,
            "steps": 5500,
            "lambda_halves": 0.3,
            "checkpoint_every": 500,
        },
        # section 3.2 of the paper; the steps are ten passes over its 146,680 pairs
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
    lambda_halves: float = 0.0
    """Weight, with --correct, of the L1 of the moved and of the painted image, each by itself, to the target."""
    judge_rate: float = 1.0
    """Learning rate of the discriminators (D, E, RAPD, NVTD) as a multiple of --lr."""

    def check(self) -> None:
        super().check()
        self.at_least(0, "lambda_real", "lambda_rapd", "lambda_nvtd", "lambda_halves", "judge_rate")
        self.between(0, 0.25, "heatmap")

    def sigma(self) -> float:
        """The standard deviation of the heatmaps' Gaussians, in pixels."""
        return max(0.5, self.heatmap * self.resolution)


class GgbSystem(System):
    """ggb in training: G, its moving average, D, and a guiding block (E, RAPD, NVTD) for each guided level."""

    name = "ggb"
    kind = DRIVE
    config_class = GgbConfig
    headline = ("l1", "loss_levels", "adversarial", "loss_d", "loss_guides")
    charts = (
        chart("L1 to the target", l1="final image", halves="moved and painted"),
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
        self.discriminator = PatchCritic(
            config.resolution, config.filters, config.channels, norm=config.norm, fused=config.fused
        )
        switches = {"rapd": config.rapd, "nvtd": config.nvtd, "fused": config.fused}
        judged = self.sizes if config.rapd or config.nvtd else ()
        self.blocks = nn.ModuleDict(
            {str(size): GuidingBlock(config.filters, config.channels, **switches) for size in judged}
        )
        for offset, network in enumerate((self.generator, self.discriminator, *self.blocks.values())):
            # each network draws from a seed of its own, so D starts alike with and without guiding blocks
            he_normal(network, 1000 * config.seed + offset)
            network.to(self.device)
        # the moving average is never trained: it normalises by the running means
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
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        return networks | ({"blocks": self.blocks} if self.blocks else {})

    def averaged(self) -> dict[str, nn.Module]:
        return {"ema": self.ema}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Update D, the guiding blocks, G up to the guided levels, then G; each sees the updates before it."""
        source, target, *points = pair(batch)
        level_images, fake = self._first_pass(source, points)
        losses = self._update_discriminator(target, fake)
        views = {size: (shrink(source, size), shrink(target, size)) for size in self.sizes}
        if self.blocks:
            losses |= self._update_blocks(level_images, views)
        if self.sizes:
            losses |= self._update_levels(level_images, views)
        losses |= self._update_generator(source, target, points)
        self.average("ema", self.generator)
        return losses

    def _first_pass(self, source: Tensor, points: Sequence[Tensor]) -> tuple[dict[int, Tensor], Tensor]:
        """Run G: size -> image of each guided level, with its graph, and the final image, without.

        points: those of the target and of the source
        """
        with self.precision():
            with torch.set_grad_enabled(bool(self.sizes)):
                level_images, guided = self.generator.guide(source, *points)
            with torch.no_grad():
                fake = self.generator.finish(source, guided)
        return {size: image.to(source.dtype) for size, image in level_images.items()}, fake.to(source.dtype)

    def _update_discriminator(self, target: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Update D on the target and the final image, equation (1)."""
        with self.precision():
            of_real, of_fake = self.discriminator(target), self.discriminator(fake)
        loss = said_real(of_real) + said_generated(of_fake)
        self.descend(loss, "discriminator")
        return {"loss_d": loss.detach()}

    def _update_blocks(
        self, level_images: dict[int, Tensor], views: dict[int, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Update E, RAPD and NVTD of every level, equations (5) and (6). views: size -> source and target."""
        losses = {}
        for size, (source, target) in views.items():
            with self.precision():
                judged = self.blocks[str(size)](torch.cat([target, level_images[size].detach()]), source)
            for name, logits in judged.items():
                of_real, of_fake = logits.chunk(2)
                losses[f"{name}_{size}"] = said_real(of_real) + said_generated(of_fake)
        loss = sum(losses.values())
        self.descend(loss, "blocks")
        return {"loss_guides": loss.detach()} | {name: value.detach() for name, value in losses.items()}

    def _update_levels(
        self, level_images: dict[int, Tensor], views: dict[int, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Update G up to the guided levels, equations (7) to (9). views: size -> source and target."""
        weights = {"rapd": self.config.lambda_rapd, "nvtd": self.config.lambda_nvtd}
        losses, terms = {}, []
        with frozen([self.blocks]):
            for size, (source, target) in views.items():
                losses[f"l1_{size}"] = self._l1(target, level_images[size])
                terms.append(losses[f"l1_{size}"])
                if self.blocks:
                    with self.precision():
                        judged = self.blocks[str(size)](level_images[size], source)
                    terms += [weights[name] * said_real(logits) for name, logits in judged.items()]
            loss = sum(terms)
        self.descend(loss, "levels")
        return {"loss_levels": loss.detach()} | {name: value.detach() for name, value in losses.items()}

    def _update_generator(self, source: Tensor, target: Tensor, points: Sequence[Tensor]) -> dict[str, Tensor]:
        """Run G again and update it on the final image, equations (2) to (4). points: as in _first_pass."""
        weights = {"l1": 1.0, "adversarial": self.config.lambda_real}
        with frozen([self.discriminator]):
            with self.precision():
                _, guided = self.generator.guide(source, *points, images=False)
                if self.config.correct:
                    fake, *halves = self.generator.halves(source, guided)
                else:
                    fake = self.generator.finish(source, guided)
                logits = self.discriminator(fake)
            losses = {"l1": self._l1(target, fake), "adversarial": said_real(logits)}
            if self.config.lambda_halves:
                weights["halves"] = self.config.lambda_halves
                losses["halves"] = sum(self._l1(target, half) for half in halves)
            loss = sum(weights[name] * value for name, value in losses.items())
        self.descend(loss, "generator")
        return {name: value.detach() for name, value in {"loss_g": loss, **losses}.items()}

    def _l1(self, target: Tensor, image: Tensor) -> Tensor:
        """The mean absolute difference, ()."""
        _, mean = l1_autoencoder_loss(target, image.to(target.dtype), fused=self.config.fused)
        return mean

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Rows: source, target heatmaps, each level's image (enlarged by nearest), result (moving average), target."""
        source, target, points, own = pair(batch)
        with self.precision():
            result, level_images = self.ema(source, points, own)
        side, sigma = self.config.resolution, self.config.sigma()
        draw = LANDMARK_HEATMAP[self.config.fused]
        maps = draw(points, side, side, sigma=sigma, radius=math.ceil(3 * sigma)).amax(1, keepdim=True)
        rows = {"source": source, "points": (maps * 2 - 1).expand_as(source)}
        rows |= {
            f"level {size}": F.interpolate(level_images[size], size=side, mode="nearest")
            for size in sorted(level_images)
        }
        rows |= {"result": result, "target": target}
        return {label: row.float().clamp(-1, 1) for label, row in rows.items()}

    def passes(self, fused: bool) -> list[tuple[nn.Module, tuple, int]]:
        config, device = self.config, self.device

        def image(side: int) -> Tensor:
            return torch.empty(1, config.channels, side, side, device=device)

        points = torch.empty(1, config.points, 2, device=device)
        # G counts once: its first pass is freed before its second. D's batch is freed before the second pass of G, and
        # the batches of the blocks before that
        kept = [(self.generator, (image(config.resolution), points, points), 1)]
        kept.append((self.discriminator, (image(config.resolution),), 2))
        return kept + [(block, (image(int(size)), image(int(size))), 2) for size, block in self.blocks.items()]

    @classmethod
    def trained(cls, config: GgbConfig) -> "TrainedGgb":
        return TrainedGgb(build_generator(config), config.source_points)


class TrainedGgb(TrainedDriver):
    """A trained G, which makes no images of its levels."""

    def _run(self, images: Tensor, points: Tensor, source_points: Tensor | None) -> Tensor:
        _, guided = self.generator.guide(images, points, source_points, images=False)
        return self.generator.finish(images, guided)


def build_generator(config: GgbConfig) -> GuidedUNet:
    """Build G of a configuration; its weights are not set."""
    return GuidedUNet(
        config.resolution,
        config.filters,
        config.channels,
        points=config.points,
        sizes=guided_sizes(config.resolution, config.levels),
        sigma=config.sigma(),
        norm=config.norm,
        correct=config.correct,
        source_points=config.source_points,
        fused=config.fused,
    )


def pair(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Take source x and target y, (B, C, R, R), and the points of target, c, and source, (B, K, 2), of a batch.

    Raises InputError when the batch has no pairs, or no points.
    """
    if not batch.more or batch.more[0].landmarks is None:
        raise InputError("ggb trains on pairs of images with key points; choose another --data")
    return batch.images, batch.more[0].images, batch.more[0].landmarks, batch.landmarks


def shrink(images: Tensor, size: int) -> Tensor:
    """Shrink images (B, C, R, R) to (B, C, size, size) by means of square blocks, without aliasing."""
    return F.avg_pool2d(images, images.shape[-1] // size)


def said_real(logits: Tensor) -> Tensor:
    """Mean of -log D with D = sigmoid(logits), () at least float32: small where D calls the images real."""
    return F.softplus(-widened(logits)).mean()


def said_generated(logits: Tensor) -> Tensor:
    """Mean of -log(1 - D) with D = sigmoid(logits), () at least float32: small where D calls the images generated."""
    return F.softplus(widened(logits)).mean()


def widened(logits: Tensor) -> Tensor:
    """Logits in float32, or as they are when they are wider."""
    return logits.float() if logits.dtype.itemsize < 4 else logits
