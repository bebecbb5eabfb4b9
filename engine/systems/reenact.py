"""Landmark-conditioned face reenactment with six losses (Kassapis, Verdenius and Ondrag).

    I^ = G(I_s; e_t)                            source image, target landmarks
    L_G = w_adv L_adv + w_pix L_pix + w_self L_self + w_triple L_triple + w_pp L_pp + w_id L_id (+ w_halves L_halves)
    L_adv    = -log D(I^; e_t)
    L_pix    = |I^ - I_t|^2
    L_self   = |G(I^; e_s) - I_s|^2
    L_triple = |G(G(I_s; e_m); e_t) - I^|^2     m: a third frame, in between
    L_pp     = sum over layers |F(I_t) - F(I^)| + |Gram(F(I_t)) - Gram(F(I^))|_F, F of VGG-19
    L_id     = |F(I_t) - F(I^)| at one layer
    L_halves = |M - I_t|^2 + |P - I_t|^2        with --correct, which mixes I^ of a moved image M and a painted one P
    L_D      = -(log D(I_t; e_t) + log(1 - D(I^; e_t))) / 2

|v|^2 is the squared mean absolute value of each sample, averaged over the batch, as in the authors' code.

One step: G(I_s; e_t), G(I_s; e_m) -> G(I^; e_s), G(G(I_s; e_m); e_t) -> D(I^; e_t), F(I^) -> L_G -> dL_G -> D -> dL_D
-> Adam of D and G -> EMA. Which function does what:

    G, two passes of two images each       ReenactSystem._generate
    L_adv, L_pix, L_self, L_triple, L_halves
                                           ReenactSystem._generator_losses; the distance of images: _distance
    L_pp, L_id                             ReenactSystem._feature_losses -> feature_losses.feature_losses
    L_G, dL_G, dL_D, Adam of D and G       ReenactSystem.update: both gradients from the old weights
    L_D                                    ReenactSystem._discriminator_loss
    log D as the mean over patches         networks.reenactment.log_mean_sigmoid
    moving average of G                    System.average
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from engine.config import Origins, Switch
from engine.data import Batch
from engine.data.needs import Needs
from engine.errors import InputError
from engine.networks.initialisation import initialise
from engine.networks.layers import LANDMARK_HEATMAP, l1_autoencoder_loss
from engine.networks.patchgan import frozen
from engine.networks.reenactment import (
    POINTS,
    PatchDiscriminator,
    ReenactmentGenerator,
    log_mean_sigmoid,
)
from engine.networks.vgg import VGG19, WIDTH, check_digest
from engine.pages.panels import chart
from engine.systems.base import System
from engine.systems.driving import DrivingConfig, TrainedDriver
from engine.systems.feature_losses import feature_losses, wanted_layers
from engine.systems.kinds import DRIVE

BETAS = (0.9, 0.999)
LOSSES = ("adv", "pix", "self", "triple", "pp", "id", "halves")

ABLATION: dict[str, dict[str, float]] = {
    "full": {},
    "without pix": {"pix_weight": 0.0},
    "without self and triple": {"self_weight": 0.0, "triple_weight": 0.0},
    "without pp and id": {"pp_weight": 0.0, "id_weight": 0.0},
}
"""Name -> options of the runs of the paper's ablation: the values that differ from the full loss."""


# what quick and good share. With the paper's weights, a run this short learns to return the source, because that
# satisfies the consistency losses (the paper sees it without L_pp and L_id). Here the target counts more, and the
# source's pixels are moved, not painted again
_SHORT = {
    "pix_weight": 100.0,
    "self_weight": 10.0,
    "triple_weight": 10.0,
    "batch_size": 8,
    "vgg_width": 16,
    "norm": "none",
    "correct": True,
    "lr": 1e-3,
    "lr_schedule": "cosine",
    "lr_warmup": 100,
}


@dataclass(frozen=True)
class ReenactConfig(DrivingConfig):
    """Options of reenact."""

    FIXED: ClassVar[tuple[str, ...]] = (
        *DrivingConfig.FIXED,
        *("widest", "d_filters", "d_optimiser", "norm"),
    )
    WITH_CORRECT: ClassVar[tuple[str, ...]] = (*DrivingConfig.WITH_CORRECT, "halves_weight")
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # for 2 CPU cores and minutes
        "quick": {
            **_SHORT,
            "steps": 2000,
            "filters": 16,
            "d_filters": 16,
            "ema": 0.99,
            "sample_every": 250,
            "checkpoint_every": 250,
        },
        # three quarters of an hour of one core
        "good": {
            **_SHORT,
            **DrivingConfig.GOOD,
            "steps": 9000,
            "filters": 16,
            "widest": 96,
            "d_filters": 8,
            "halves_weight": 30.0,
            "pp_weight": 4.0,
            "adv_weight": 0.5,
            "checkpoint_every": 1000,
        },
        # section 3 of the paper: 57,200 samples; dropout and widths are those of the authors' code
        "paper": {
            "steps": 7150,
            "batch_size": 8,
            "filters": 64,
            "d_filters": 32,
            "vgg_width": WIDTH,
            "norm": "instance",
            "dropout": True,
            "lr": 2e-4,
            "ema": 0.999,
            "sample_every": 500,
            "checkpoint_every": 500,
        },
    }

    system: str = "reenact"
    batch_size: int = 8
    """Samples per step, of three images each: source, target and one in between."""
    lr: float = 2e-4
    """Learning rate of the generator (Adam)."""
    widest: int = 0
    """The most channels of a level of the generator; 0: no limit, they double from level to level."""
    d_filters: int = 32
    """Channels of the discriminator's first layer."""
    d_rate: float = 0.25
    """Learning rate of the discriminator as a multiple of --lr."""
    d_optimiser: Literal["adam", "sgd"] = "adam"
    """How the discriminator is trained: adam as in the paper, sgd as in the authors' code."""
    norm: Literal["instance", "none"] = "instance"
    """Normalisation in the generator: instance as in the authors' code, none keeps colours and is faster."""
    dropout: Switch = False
    """Dropout in both networks, as in the authors' code."""
    adv_weight: float = 1.0
    """Weight of the adversarial loss; 0: no discriminator is trained."""
    pix_weight: float = 10.0
    """Weight of the distance between result and target image."""
    self_weight: float = 100.0
    """Weight of self-consistency: the result, driven back, is the source."""
    triple_weight: float = 100.0
    """Weight of triple consistency: by way of a third frame the result is the same."""
    halves_weight: float = 0.0
    """Weight, with --correct, of the distances of the moved and of the painted image, each by itself, to the target."""
    pp_weight: float = 10.0
    """Weight of the perceptual loss (VGG-19 features and their style)."""
    id_weight: float = 1.0
    """Weight of the identity loss (VGG-19 features)."""
    distance: Literal["l1-squared", "l2"] = "l1-squared"
    """Distance of images: the squared mean absolute difference of each sample, or the mean squared difference."""
    id_layer: Literal["relu2_2", "relu3_2"] = "relu2_2"
    """Features of the identity loss; relu3_2 as in the authors' code."""
    vgg: Path | None = None
    """Weights of VGG-19: torchvision's vgg19-dcbb9e9d.pth, or as .safetensors; without it, fixed random ones."""
    vgg_digest: str | None = None
    """First digits of the SHA-256 of another --vgg file that you trust (at least 8)."""
    vgg_width: int = WIDTH
    """Channels of the first block of a random VGG-19."""

    def completed(self, given: set[str], origins: Origins) -> "ReenactConfig":
        """Set vgg_width to that of the file of weights when one is given, and vgg_width is not."""
        if self.vgg is None or "vgg_width" in given:
            return self
        origins["vgg_width"] = origins["vgg"]
        return replace(self, vgg_width=WIDTH)

    def check(self) -> None:
        super().check()
        names = [f"{loss}_weight" for loss in LOSSES]
        self.at_least(0, *names)
        self.at_least(0, "widest")
        self.at_least(1, "d_filters", "vgg_width")
        if not any(getattr(self, name) for name in names):
            raise InputError("every loss has weight 0: give at least one of --pix-weight, --adv-weight ...")
        if not 0 < self.d_rate < float("inf"):
            raise InputError(f"--d-rate must be positive, got {self.d_rate}")
        if self.vgg is None and self.vgg_digest:
            raise InputError("--vgg-digest names the file of --vgg: give both, or neither")
        if self.vgg is not None and self.vgg_width != WIDTH:
            raise InputError(f"--vgg has {WIDTH} channels: leave out --vgg-width, which is for random weights")


class ReenactSystem(System):
    """reenact in training: G, its moving average, D, and a frozen VGG-19 when a loss compares features."""

    name = "reenact"
    kind = DRIVE
    config_class = ReenactConfig
    headline = ("loss_g", "loss_d", "l_pix", "l_self", "l_triple", "l_pp")
    charts = (
        chart(
            "Distances",
            "Squared mean absolute errors.",
            l_pix="to the target",
            l_self="self",
            l_triple="triple",
            l_halves="moved and painted",
        ),
        chart("Features", "Perceptual and identity losses.", l_pp="perceptual", l_id="identity"),
        chart("Adversarial", "-log D of results; D's cross-entropy.", l_adv="generator", loss_d="discriminator"),
        chart("Sum", "The generator's weighted losses.", loss_g="loss"),
    )

    def __init__(self, config: ReenactConfig, device: str | torch.device):
        super().__init__(config, device)
        self.weight = {loss: getattr(config, f"{loss}_weight") for loss in LOSSES}
        self.generator = build_generator(config)
        self.discriminator = PatchDiscriminator(
            config.resolution, config.d_filters, config.channels, dropout=config.dropout, fused=config.fused
        )
        for offset, network in enumerate(self.networks().values()):
            initialise(network, 1000 * config.seed + offset)
            network.to(self.device)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.add_optimiser("generator", self.generator, betas=BETAS)
        options = {"betas": BETAS} if config.d_optimiser == "adam" else {}
        self.add_optimiser("discriminator", self.discriminator, config.d_optimiser, rate=config.d_rate, **options)
        self.identity = config.id_layer if config.id_weight else None
        self.vgg, self.features = self._build_vgg()

    def _build_vgg(self) -> tuple[VGG19 | None, str]:
        """Build the network whose features are compared (None: no loss needs one), and tell what its weights are."""
        config = self.config
        layers = wanted_layers(config.pp_weight > 0, self.identity)
        if not layers:
            return None, ""
        vgg = VGG19(layers, width=config.vgg_width, fused=config.fused)
        features = f"fixed random weights, width {config.vgg_width} (no --vgg)"
        if self.device.type != "meta":
            if config.vgg is None:
                vgg.randomise()
            else:
                features = f"sha256 {check_digest(config.vgg, config.vgg_digest)}"
                vgg.load(config.vgg)
            print(f"vgg     {features}")
        return vgg.to(self.device), features

    @classmethod
    def needs(cls, config: ReenactConfig) -> tuple[Needs, ...]:
        return (Needs(config.batch_size, points=POINTS, members=3),)

    @classmethod
    def trained(cls, config: ReenactConfig) -> nn.Module:
        return TrainedDriver(build_generator(config), config.source_points)

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def averaged(self) -> dict[str, nn.Module]:
        return {"ema": self.ema}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Update G, and D on the same result, both from the old weights."""
        images, points = frames(batch)
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        # D judges G in evaluation, with running statistics and without dropout, as in the authors' code
        self.discriminator.eval()
        with frozen([self.discriminator]):
            losses, fake = self._generator_losses(images, points)
            loss_g = sum(self.weight[loss] * losses[f"l_{loss}"] for loss in LOSSES if self.weight[loss])
            loss_g.backward()
        self.discriminator.train()
        losses = {"loss_g": loss_g, **losses}
        if self.weight["adv"]:
            losses["loss_d"] = self._discriminator_loss(images[1], fake.detach(), points[1])
            losses["loss_d"].backward()
            self.optimisers["discriminator"].step()
        self.optimisers["generator"].step()
        self.average("ema", self.generator)
        return {name: value.detach() for name, value in losses.items()}

    def _generate(self, calls: Sequence[tuple[Tensor, Tensor, Tensor]]) -> list[tuple[Tensor, ...]]:
        """Run G on each (images, their landmarks, wanted landmarks) in one pass.

        This is exact, because G normalises each image alone.
        returns: for each call its result and, with --correct, the moved and the painted image
        """
        images, own, wanted = (torch.cat(parts) if len(calls) > 1 else parts[0] for parts in zip(*calls, strict=True))
        with self.precision():
            if self.config.correct:
                made = self.generator.halves(images, wanted, own)
            else:
                made = (self.generator(images, wanted),)
        return list(zip(*(one.to(images.dtype).chunk(len(calls)) for one in made), strict=True))

    def _generator_losses(self, images: Sequence[Tensor], points: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute every loss of G whose weight is not 0, and I^.

        images, points: (B, C, R, R) and (B, 68, 2) of source, target and in-between
        returns:        name -> (), and I^ (B, C, R, R)
        """
        source, target, _ = images
        e_s, e_t, e_m = points
        weight, losses = self.weight, {}
        by_way = [(source, e_s, e_m)] if weight["triple"] else []
        (fake, *halves), *between = self._generate([(source, e_s, e_t), *by_way])
        again = [(fake, e_t, e_s)] * bool(weight["self"]) + [(result, e_m, e_t) for result, *_ in between]
        consistent = [result for result, *_ in self._generate(again)] if again else []
        if weight["adv"]:
            with self.precision():
                logits = self.discriminator(fake, e_t)
            losses["l_adv"] = -log_mean_sigmoid(logits).mean()
        if weight["pix"]:
            losses["l_pix"] = self._distance(target, fake)
        if weight["self"]:
            losses["l_self"] = self._distance(source, consistent.pop(0))
        if weight["triple"]:
            losses["l_triple"] = self._distance(fake, consistent.pop())
        if weight["halves"]:
            losses["l_halves"] = sum(self._distance(target, half) for half in halves)
        if self.vgg:
            losses |= self._feature_losses(target, fake)
        return losses, fake

    def _distance(self, wanted: Tensor, result: Tensor) -> Tensor:
        """|wanted - result|^2 in the measure of --distance, ()."""
        if self.config.distance == "l2":
            return (wanted - result).square().mean()
        per_sample, _ = l1_autoencoder_loss(wanted, result, fused=self.config.fused)
        return per_sample.square().mean()

    def _feature_losses(self, wanted: Tensor, result: Tensor) -> dict[str, Tensor]:
        """Compute L_pp and L_id, those whose weight is not 0, between target and result, (B, C, R, R)."""
        with self.precision():
            with torch.no_grad():
                of_wanted = self.vgg(wanted)
            of_result = self.vgg(result)
        options = {"perceptual": self.weight["pp"] > 0, "identity": self.identity, "fused": self.config.fused}
        return feature_losses(of_wanted, of_result, **options)

    def _discriminator_loss(self, real: Tensor, fake: Tensor, points: Tensor) -> Tensor:
        """L_D, (). Real and generated images take a pass each: the statistics of one pass would give them away."""
        with self.precision():
            of_real, of_fake = self.discriminator(real, points), self.discriminator(fake, points)
        return -(log_mean_sigmoid(of_real).mean() + log_mean_sigmoid(-of_fake).mean()) / 2

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Rows: source, landmarks of the target, result (moving average), target, result moved back to the source's."""
        (source, target, _), (e_s, e_t, _) = frames(batch)
        with self.precision():
            result = self.ema(source, e_t, e_s).to(source.dtype)
            back = self.ema(result, e_s, e_t)
        drawn = draw_points(e_t, self.config.resolution, fused=self.config.fused).expand_as(source)
        rows = {"source": source, "landmarks": drawn, "result": result, "target": target, "back to source": back}
        return {label: row.float().clamp(-1, 1) for label, row in rows.items()}

    def passes(self, fused: bool) -> list[tuple[nn.Module, tuple, int]]:
        side, weight = self.config.resolution, self.weight
        image = torch.empty(1, self.config.channels, side, side, device=self.device)
        points = torch.empty(1, POINTS, 2, device=self.device)
        calls = 1 + bool(weight["self"]) + 2 * bool(weight["triple"])
        passes = [(self.generator, (image, points, points), calls)]
        passes += [(self.discriminator, (image, points), 3)] if weight["adv"] else []
        return passes + ([(self.vgg, (image,), 1)] if self.vgg else [])

    def own_state(self) -> dict[str, Any]:
        return {"features": self.features}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Check that features are compared by the same VGG-19 as before. Raises InputError when they are not."""
        if self.features and state["features"] and self.features != state["features"]:
            raise InputError(
                f"this run compares features of VGG-19 with {state['features']}, not with {self.features}; "
                "give the same --vgg and --vgg-width, or start another run with another --out"
            )


def build_generator(config: ReenactConfig) -> ReenactmentGenerator:
    """Build G of a configuration; its weights are not set."""
    shape = (config.resolution, config.filters, config.channels)
    kind = {"norm": config.norm == "instance", "dropout": config.dropout}
    kind |= {"widest": config.widest, "correct": config.correct, "source_points": config.source_points}
    return ReenactmentGenerator(*shape, **kind, fused=config.fused)


def frames(batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Take images and landmarks of source, target and in-between: three (B, C, R, R) and three (B, 68, 2).

    Raises InputError when the batch does not have them.
    """
    three = [batch, *batch.more]
    if len(three) != 3 or any(one.landmarks is None or one.landmarks.shape[1] != POINTS for one in three):
        raise InputError(f"reenact needs three frames of one clip with {POINTS} landmarks each; choose another --data")
    return [one.images for one in three], [one.landmarks for one in three]


def draw_points(points: Tensor, resolution: int, *, fused: bool) -> Tensor:
    """Draw landmarks (B, 68, 2), in pixels, as white dots on black: (B, 1, R, R) in [-1, 1]."""
    maps = LANDMARK_HEATMAP[fused](points, resolution, resolution, sigma=0.6, radius=2, subpixel=True)
    return maps.amax(1, keepdim=True) * 2 - 1
