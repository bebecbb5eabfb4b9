"""CycleGAN between synthetic and real faces (Zhu et al. 2017), the baseline of SimGAN's paper.

    L = L_GAN(G, D_Y) + L_GAN(F, D_X) + lambda L_cyc
    L_cyc = |F(G(x)) - x| + |G(F(y)) - y|                       mean absolute differences
    L_GAN, "log": log D_Y(y) + log(1 - D_Y(G(x))), which G minimises as -log D_Y(G(x))
    L_GAN, "lsgan": (D_Y(G(x)) - 1)^2 for G, ((D_Y(y) - 1)^2 + D_Y(G(x))^2) / 2 for D_Y; all mean over patches

x is synthetic, y real; G turns synthetic images into real ones, F real into synthetic. With an identity weight w,
w lambda (|G(y) - y| + |F(x) - x|) joins L. The discriminators also see results of earlier steps, from pools.

One step: G(x), F(y) -> D_Y, D_X -> F(G(x)), G(F(y)) -> L -> Adam of G and F -> EMA -> pools -> D_Y, D_X -> Adam of
both. Which function does what:

    G(x), F(y), D, L_cyc, identity, L    CycleganSystem._generators_loss; L_GAN: _gan
    G(x) with G(y), F(y) with F(x)       CycleganSystem._turned_and_left: with --fused one pass of each generator
    Adam of G and F, moving average      CycleganSystem.update, by System.descend and System.average
    earlier results for D_Y and D_X      ImagePool.exchange
    L of D_Y and D_X, Adam of both       CycleganSystem.update
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.config import TrainConfig
from engine.data import Batch
from engine.data.needs import Needs
from engine.errors import InputError
from engine.networks.initialisation import normal
from engine.networks.layers import l1_autoencoder_loss
from engine.networks.patchgan import PatchDiscriminator, check_patch_layers, frozen
from engine.networks.resnet import ImageToImage, Padding, ResnetGenerator, Upsample
from engine.pages.panels import chart
from engine.systems.base import System
from engine.systems.image_pool import ImagePool
from engine.systems.kinds import REFINE

BETAS = (0.5, 0.999)


@dataclass(frozen=True)
class CycleganConfig(TrainConfig):
    """Options of cyclegan."""

    FIXED: ClassVar[tuple[str, ...]] = (
        *TrainConfig.FIXED,
        "blocks",
        "halvings",
        "padding",
        "upsample",
        "patch_layers",
        "pool",
    )
    JUDGED: ClassVar[bool] = True
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "steps": 800,
            "batch_size": 4,
            "filters": 16,
            "blocks": 3,
            "halvings": 1,
            "padding": "zero",
            "upsample": "nearest",
            "patch_layers": 2,
            "lr": 1e-3,
            "lr_schedule": "cosine",
            "ema": 0.99,
            "sample_every": 200,
            "checkpoint_every": 200,
        },
        # a quarter of an hour of one core: smaller steps than in quick, else edges get coloured fringes; the
        # discriminators see images in other light, colours and places each time
        "good": {
            "steps": 2500,
            "batch_size": 4,
            "filters": 24,
            "blocks": 3,
            "halvings": 1,
            "padding": "reflect",
            "upsample": "nearest",
            "patch_layers": 2,
            "lr": 2e-4,
            "lr_schedule": "cosine",
            "ema": 0.99,
            "augment_judged": 1.0,
            "augment_light": 0.5,
            "sample_every": 500,
            "checkpoint_every": 500,
        },
        "paper": {
            "steps": 200_000,
            "batch_size": 1,
            "filters": 64,
            "lr": 2e-4,
            "lr_schedule": "linear",
            "ema": 0.999,
            "sample_every": 2000,
            "checkpoint_every": 5000,
        },
    }

    system: str = "cyclegan"
    synthetic: Path | None = None
    """Folder or zip of the synthetic images; without it, the embedded avatars in their plain look."""
    blocks: int = 9
    """Residual blocks of each generator: 9 for 256x256, 6 for 128x128, fewer for smaller images."""
    halvings: int = 2
    """Halvings before the blocks: 2 in the paper, 1 keeps more of small images, 0 everything."""
    padding: Padding = "reflect"
    """How the residual blocks pad: as in the paper, or with zeros, which Kiln's operator does."""
    upsample: Upsample = "transposed"
    """Transposed convolutions as in the paper, or nearest x2 and a convolution, Kiln's operator."""
    patch_layers: int = 3
    """Halvings in each discriminator: with 3 its patches are 70x70, with 2 34x34."""
    adversarial: Literal["lsgan", "log"] = "lsgan"
    """Adversarial loss: least squares, or the logarithms of the paper's equations."""
    lambda_cycle: float = 10.0
    """Weight of the cycle consistency."""
    identity: float = 0.5
    """Weight of the identity term, in units of --lambda-cycle; 0 = none."""
    pool: int = 50
    """Results kept for each discriminator; half of the results it sees come from there. 0 = none."""

    def check(self) -> None:
        super().check()
        self.at_least(1, "blocks")
        self.at_most(1 << 10, "blocks")
        self.at_least(0, "halvings", "lambda_cycle", "identity", "pool")
        if self.halvings > 3:
            raise InputError(f"--halvings must be at most 3, got {self.halvings}")
        check_patch_layers(self.patch_layers, self.resolution)
        if self.pool and self.pool < self.batch_size:
            raise InputError(f"--pool must be 0 or at least --batch-size ({self.batch_size}), got {self.pool}")


class CycleganSystem(System):
    """cyclegan in training: G, F, D_Y, D_X, and the moving average of G."""

    name = "cyclegan"
    kind = REFINE
    config_class = CycleganConfig
    headline = ("l_generators", "l_gan", "l_cycle", "l_discriminator", "score_real", "score_fake")
    charts = (
        chart("Adversarial losses", "Of both generators.", l_gan="to real", l_gan_back="to synthetic"),
        chart("Cycle", "|there and back - input|, and |G(real) - real|.", l_cycle="cycle", l_identity="identity"),
        chart("Discriminators", "Their losses.", l_discriminator="of real", l_back_discriminator="of synthetic"),
        chart(
            "Scores",
            "Mean over patches; real is trained towards 1, generated towards 0.",
            score_real="real",
            score_fake="generated",
        ),
        chart(
            "Change of the input",
            "Mean |x - G(x)|, and of each image's mean colour.",
            change="pixels",
            tone_change="tone",
        ),
        chart("Sum", "The generators' weighted losses.", l_generators="generators"),
        chart("Image pool", "Share in use.", noisy=False, pool_fill="full"),
    )

    def __init__(self, config: CycleganConfig, device: str | torch.device):
        super().__init__(config, device)
        self.generator, self.back = build_generator(config), build_generator(config)
        shape = (config.filters, config.channels)
        self.discriminator, self.back_discriminator = (
            PatchDiscriminator(*shape, layers=config.patch_layers, fused=config.fused) for _ in range(2)
        )
        for number, network in enumerate(self.networks().values()):
            normal(network, 1000 * config.seed + number)
            network.to(self.device)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        # an optimiser for each of the two updates of a step
        self.add_optimiser("generators", _parameters(self.generator, self.back), betas=BETAS)
        self.add_optimiser("discriminators", _parameters(self.discriminator, self.back_discriminator), betas=BETAS)
        image = torch.empty(config.channels, config.resolution, config.resolution, device=self.device)
        self.pools = [ImagePool(config.pool, [image]) for _ in range(2)]

    @classmethod
    def needs(cls, config: CycleganConfig) -> tuple[Needs, ...]:
        return Needs(config.batch_size), Needs(config.batch_size, look="game")

    @classmethod
    def trained(cls, config: CycleganConfig) -> ImageToImage:
        return ImageToImage(build_generator(config))

    def networks(self) -> dict[str, nn.Module]:
        return {
            "generator": self.generator,
            "back": self.back,
            "discriminator": self.discriminator,
            "back_discriminator": self.back_discriminator,
        }

    def averaged(self) -> dict[str, nn.Module]:
        return {"ema": self.ema}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Update both generators, then both discriminators on what the generators made before their update."""
        x, y = batch.more[0].images, batch.images
        with frozen([self.discriminator, self.back_discriminator]):
            loss, results, losses = self._generators_loss(x, y)
        self.descend(loss, "generators")
        self.average("ema", self.generator)
        shown = [pool.exchange([image])[0] for pool, image in zip(self.pools, results, strict=True)]
        total, judged = 0, {}
        judges = (("", self.discriminator, y), ("_back", self.back_discriminator, x))
        for (suffix, network, real), fake in zip(judges, shown, strict=True):
            of_real, of_fake = self._run(network, self.judged(torch.cat([real, fake]))).split(len(real))
            loss = (self._gan(of_real, 1) + self._gan(of_fake, 0)) / 2
            total = total + loss
            judged[f"l{suffix}_discriminator"] = loss.detach()
            if not suffix:
                judged |= {"score_real": of_real.detach().mean(), "score_fake": of_fake.detach().mean()}
        self.descend(total, "discriminators")
        return losses | judged | {"pool_fill": self.pools[0].fill()}

    def _generators_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Compute L of the generators (), G(x) and F(y) without gradient, and name -> () of the parts of L."""
        config = self.config
        (g_x, g_y), (f_y, f_x) = self._turned_and_left(self.generator, x, y), self._turned_and_left(self.back, y, x)
        gan = self._gan(self._run(self.discriminator, self.judged(g_x)), 1)
        gan_back = self._gan(self._run(self.back_discriminator, self.judged(f_y)), 1)
        cycle = self._distance(x, self._run(self.back, g_x)) + self._distance(y, self._run(self.generator, f_y))
        loss = gan + gan_back + config.lambda_cycle * cycle
        losses = {"l_gan": gan, "l_gan_back": gan_back, "l_cycle": cycle}
        if g_y is not None and f_x is not None:
            identity = self._distance(y, g_y) + self._distance(x, f_x)
            loss = loss + config.lambda_cycle * config.identity * identity
            losses["l_identity"] = identity
        difference = (g_x - x).detach()
        named = {"l_generators": loss, **losses, "change": difference.abs().mean()}
        named["tone_change"] = difference.mean((2, 3)).abs().mean()
        return loss, (g_x.detach(), f_y.detach()), {name: value.detach() for name, value in named.items()}

    def _turned_and_left(self, network: nn.Module, turned: Tensor, left: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run a generator on images that it turns, and on those of the identity term; None without that term.

        Its norms are of single images, so one pass over both gives what two do, and reads its weights half as often.
        """
        if not self.config.identity:
            return self._run(network, turned), None
        if self.config.fused:
            of_turned, of_left = self._run(network, torch.cat([turned, left])).split([len(turned), len(left)])
            return of_turned, of_left
        return self._run(network, turned), self._run(network, left)

    def _run(self, network: nn.Module, images: Tensor) -> Tensor:
        """Run a network in the precision of the run; the result is float32."""
        with self.precision():
            return network(images).float()

    def _gan(self, scores: Tensor, wanted: int) -> Tensor:
        """The adversarial loss of scores that should be `wanted` (1 real, 0 generated): mean over patches, ()."""
        if self.config.adversarial == "lsgan":
            return (scores - wanted).square().mean()
        return F.softplus(-scores if wanted else scores).mean()

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        """The mean absolute difference, () float32."""
        return l1_autoencoder_loss(a, b, fused=self.config.fused)[1]

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Rows: synthetic images, as real (moving average of G), and back; photos, as synthetic, and back."""
        x, y = batch.more[0].images, batch.images
        g_x, f_y = self._run(self.ema, x), self._run(self.back, y)
        rows = {"synthetic": x, "as real": g_x, "and back": self._run(self.back, g_x)}
        rows |= {"real": y, "as synthetic": f_y, "and back again": self._run(self.ema, f_y)}
        return {label: row.clamp(-1, 1) for label, row in rows.items()}

    def passes(self, fused: bool) -> list[tuple[nn.Module, tuple, int]]:
        side = self.config.resolution
        image = torch.empty(1, self.config.channels, side, side, device=self.device)
        runs = 3 if self.config.identity else 2
        generators = [(network, (image,), runs) for network in (self.generator, self.back)]
        return generators + [(network, (image,), 1) for network in (self.discriminator, self.back_discriminator)]

    def own_state(self) -> dict[str, Any]:
        return {"pools": [pool.state_dict() for pool in self.pools]}

    def load_own_state(self, state: dict[str, Any]) -> None:
        for pool, saved in zip(self.pools, state["pools"], strict=True):
            pool.load_state_dict(saved)


def build_generator(config: CycleganConfig) -> ResnetGenerator:
    """Build G or F of a configuration; its weights are not set."""
    return ResnetGenerator(
        config.filters,
        config.channels,
        blocks=config.blocks,
        halvings=config.halvings,
        padding=config.padding,
        upsample=config.upsample,
        fused=config.fused,
    )


def _parameters(*networks: nn.Module) -> list[nn.Parameter]:
    return [parameter for network in networks for parameter in network.parameters()]
