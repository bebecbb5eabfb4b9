"""The refiner (Nasser, An Image-based Generator Architecture for Synthetic Image Refinement): BEGAN without noise.

    L(v)  = |v - D(v)|                                          (1)
    L_RCN = |x - G(z)|                                          (3)
    L_D   = L(x) - k L(G(z))                                    (4)
    L_G   = (1 - lambda_r) L(G(z)) + lambda_r L_RCN
    k    <- clamp(k + lambda_k (gamma L(x) - L(G(z))), 0, 1)

x is a photo, z its shrunken copies, e its landmarks. With --landmark-weight w, an estimator E learns from the photos by
|E(x) - e|, and w |E(G(z)) - e| joins L_G.

One step: z -> G -> D([x; G(z)]) -> dD -> E -> dG -> Adam -> EMA -> k. Which function does what, in order:

    z, G(z)                  RefinerSystem._refine -> generate -> pyramid
    L(x), L(G(z)), dL_D      BalancedSystem.discriminate_once: D once over [x; G(z)], forward and backward
    |E(v) - e| and gradient  RefinerSystem._landmark_loss, with --landmark-weight
    dL_C, -log C(G(z))       BalancedSystem.criticise, with --critic-weight
    L_RCN, dL_G              RefinerSystem._one_pass: what reaches G(z) from D, E, C and L_RCN goes backward through G
    Adam of D, G, E and C    RefinerSystem.update
    moving average of G      System.average
    L_D, L_G, k              BalancedSystem.balance: the losses that are shown, and k of the next step

With --eager, RefinerSystem._textbook takes the place of _one_pass: every loss as its equation, D three times.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from engine.config import Origins, Sizes
from engine.data import Batch
from engine.data.needs import Needs
from engine.errors import InputError
from engine.networks.autoencoder import Autoencoder
from engine.networks.landmarks import LandmarkEstimator, normalise
from engine.networks.layers import l1_autoencoder_loss
from engine.networks.refiner import LANDMARKS, MODELS, RefinerGenerator, check_inject, landmark_maps, pyramid
from engine.pages.panels import chart
from engine.systems.balance import BalancedConfig, BalancedSystem
from engine.systems.kinds import REFINE

BETAS = (0.9, 0.999)
FACE = 0.22  # how wide a face is for --focus: the standard deviation of its weights, as a share of the image's side

ABLATION: dict[str, dict[str, Any]] = {"A": {"model": "A"}, "B": {"model": "B"}, "C": {"model": "C"}}
"""Name -> options of the three models that the paper compares; they differ in where the generator sees the image."""


@dataclass(frozen=True)
class RefinerConfig(BalancedConfig):
    """Options of the refiner."""

    FIXED: ClassVar[tuple[str, ...]] = (*BalancedConfig.FIXED, "inject", "landmarks", "correct")
    SMALL: ClassVar[dict[str, Any]] = {**BalancedConfig.SMALL, "inject": (8, 16), "model": "B", "correct": True}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # for 2 CPU cores and a few minutes. D reconstructs a soft G(z) better than a photo, so what sharpens in so few
        # steps is the critic; a correction keeps what the input has, and bears a large lambda_r
        "quick": {
            "steps": 1800,
            "model": "C",
            "batch_size": 16,
            "filters": 32,
            "d_filters": 16,
            "hidden": 128,
            "gamma": 0.8,
            "lambda_k": 0.02,
            "lambda_r": 0.9,
            "correct": True,
            "critic_weight": 0.01,
            "lr": 1e-3,
            "lr_schedule": "cosine",
            "ema": 0.995,
            "sample_every": 200,
            "checkpoint_every": 200,
        },
        # the runs that chose these values are in docs/systems.md
        "good": {
            "steps": 12_000,
            "batch_size": 16,
            "filters": 32,
            "g_widths": (96, 96, 96, 32),
            "g_depths": (2, 6, 3, 2),
            "d_filters": 12,
            "hidden": 64,
            "gamma": 0.8,
            "lambda_k": 0.01,
            "lambda_r": 0.9,
            "correct": True,
            "critic_weight": 0.01,
            "lr": 1e-3,
            "lr_schedule": "cosine",
            "ema": 0.998,
            "augment_geometry": 0.5,
            "augment_light": 0.4,
            "hold_out": 20,
            "eval_every": 500,
            "sample_every": 1000,
            "checkpoint_every": 1000,
        },
        # the refiner paper, section 3; what the paper leaves open, such as gamma and lambda_r, has the defaults below
        "paper": {
            "steps": 1_000_000,
            "batch_size": 25,
            "filters": 64,
            "lr": 1e-3,
            "ema": 0.999,
            "sample_every": 2000,
            "checkpoint_every": 5000,
        },
    }

    model: Literal["A", "B", "C", "custom"] = "B"
    """Where the generator sees the image: A at 8x8, B also at 16x16, C also at 32x32."""
    inject: Sizes = ()
    """Where the generator sees the image, as a list of sizes instead of --model."""
    lambda_r: float = 0.5
    """Share of the content loss in the generator's loss: how much of the input stays."""
    correct: bool = False
    """The generator corrects the sharpest image it sees, enlarged, instead of making the image anew."""
    landmarks: bool = False
    """Give the generator 68 landmark heatmaps beside the 8x8 image (data with landmarks only)."""
    focus: float = 0.0
    """How much more the content loss counts the middle of the image, where the face is, than its border; 0 = alike."""
    landmark_weight: float = 0.0
    """Weight of the loss between the landmarks of the result and of the original (data with landmarks only)."""

    def completed(self, given: set[str], origins: Origins) -> "RefinerConfig":
        """Give `model` and `inject`, which say the same in two ways, values that agree."""
        config = super().completed(given, origins)
        if {"model", "inject"} <= given:
            raise InputError("--model and --inject say the same; give one")
        if "inject" in given or (origins["inject"] == "checkpoint" and "model" not in given):
            inject = tuple(sorted(set(self.inject)))
            origins["model"] = origins["inject"]
        elif self.model == "custom":
            raise InputError("--model custom needs its sizes: give --inject 8,16 instead")
        else:
            origins["inject"] = origins["model"]
            # a model that is only the default leaves out the sizes that a small resolution does not have
            inject = tuple(size for size in MODELS[self.model] if "model" in given or size < self.resolution)
        model = {sizes: name for name, sizes in MODELS.items()}.get(inject, "custom")
        return replace(config, inject=inject, model=model)

    def check(self) -> None:
        super().check()
        check_inject(self.inject, self.resolution)
        self.at_least(0, "focus", "landmark_weight")
        self.between(0, 1, "lambda_r")

    def check_resumed(self, saved: "RefinerConfig") -> None:
        super().check_resumed(saved)
        if bool(self.landmark_weight) != bool(saved.landmark_weight):
            raise InputError("the landmark loss cannot be switched on or off in a resumed run; start another --out")


class RefinerSystem(BalancedSystem):
    """The refiner in training: D, G, the moving average of G and, with a landmark loss, E."""

    name = "refiner"
    kind = REFINE
    config_class = RefinerConfig
    headline = ("l_real", "l_fake", "l_content", "k", "measure")
    charts = (
        *BalancedSystem.charts,
        chart("Distance to the input", "|x - G(z)|: lower is closer to the input.", l_content="L_RCN"),
        chart(
            "Landmark error",
            "|E(v) - e| in half sides of the image.",
            l_landmarks_real="of photos",
            l_landmarks="of results",
        ),
    )

    def __init__(self, config: RefinerConfig, device: str | torch.device):
        super().__init__(config, device)
        width = config.d_filters or config.filters
        shape = (config.resolution, width, config.channels)
        self.discriminator = Autoencoder(*shape, hidden=config.hidden, fused=config.fused)
        self.generator = build_generator(config)
        self.estimator = LandmarkEstimator(*shape, fused=config.fused) if config.landmark_weight else None
        self.prepare(BETAS)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        scalar = {"dtype": torch.float32, "device": self.device}
        self.lambda_r = torch.tensor(config.lambda_r, **scalar)
        self.landmark_weight = torch.tensor(config.landmark_weight, **scalar)
        self._weights = focused(config.resolution, config.focus).to(self.device) if config.focus else None
        self._gradients = self._one_pass if config.fused else self._textbook

    @classmethod
    def needs(cls, config: RefinerConfig) -> tuple[Needs, ...]:
        return (Needs(config.batch_size, points=LANDMARKS if config.landmarks or config.landmark_weight else 0),)

    @classmethod
    def trained(cls, config: RefinerConfig) -> nn.Module:
        return TrainedRefiner(build_generator(config), config.landmarks)

    def networks(self) -> dict[str, nn.Module]:
        networks = {"discriminator": self.discriminator, "generator": self.generator}
        return networks | ({"estimator": self.estimator} if self.estimator else {}) | self.critics()

    def averaged(self) -> dict[str, nn.Module]:
        return {"ema": self.ema}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Update D and G (and E), all from the same old weights and the same k, then update k."""
        if batch.landmarks is None and (self.config.landmarks or self.estimator):
            raise InputError("this run uses landmarks and the data set has none; choose another --data")
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        per_sample, losses = self._gradients(batch)
        for optimiser in self.optimisers.values():
            optimiser.step()
        self.average("ema", self.generator)
        balance = self.balance(per_sample, losses["l_content"], self.config.lambda_r)
        loss_g = balance.loss_g
        if self.estimator:
            loss_g = loss_g + self.landmark_weight * losses["l_landmarks"]
        if self.critic:
            loss_g = loss_g + self.config.critic_weight * losses["l_realism"]
        return {
            "loss_d": balance.loss_d,
            "loss_g": loss_g,
            "l_real": balance.l_real,
            "l_fake": balance.l_fake,
            **losses,
            "k": balance.k,
            "measure": balance.measure,
        }

    def _refine(self, batch: Batch, generator: nn.Module) -> Tensor:
        """G(z) of the batch, (B, C, R, R), in the dtype of its images."""
        with self.precision():
            refined = generate(generator, batch.images, batch.landmarks if self.config.landmarks else None)
        return refined.to(batch.images.dtype)

    def _content(self, images: Tensor, fake: Tensor) -> Tensor:
        """L_RCN, (); with --focus each pixel counts by its weight."""
        if self._weights is not None:
            images, fake = images * self._weights, fake * self._weights
        return l1_autoencoder_loss(images, fake, fused=self.config.fused)[1]

    def _landmark_loss(self, v: Tensor, target: Tensor, grad_scale: Tensor | None = None) -> Tensor:
        """Compute |E(v) - e| of each sample, (B,); target: e, (B, 136) in half sides of the image."""
        with self.precision():
            estimated = self.estimator(v, grad_scale)
        return (estimated.to(target.dtype) - target).abs().mean(1)

    def _one_pass(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Form all gradients from one pass of D (and of E) over [x; G(z)].

        returns: L of the samples (2B,), and name -> () of the other losses
        """
        images, n = batch.images, len(batch.images)
        fake = self._refine(batch, self.generator)
        per_sample, to_fake = self.discriminate_once(images, fake)
        to_fake = (1 - self.lambda_r) * to_fake
        losses = {}
        if self.estimator:
            target = normalise(batch.landmarks, self.config.resolution)
            both = torch.cat([images, fake.detach()]).requires_grad_()
            ones = torch.ones_like(self.k).expand(n)
            # the samples of G(z) count 0 in the gradients of E: E learns from the photos only
            errors = self._landmark_loss(both, target.repeat(2, 1), torch.cat([ones, 0 * ones]))
            (errors.sum() / n).backward()
            to_fake = to_fake + self.landmark_weight * both.grad[n:]
            losses["l_landmarks_real"], losses["l_landmarks"] = errors.detach()[:n].mean(), errors.detach()[n:].mean()
        if self.critic:
            of_critic, verdicts = self.criticise(images, fake)
            to_fake = to_fake + of_critic
            losses |= verdicts
        l_content = self._content(images, fake)
        torch.autograd.backward([fake, self.lambda_r * l_content], [to_fake, None])
        return per_sample, losses | {"l_content": l_content.detach()}

    def _textbook(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Form all gradients as textbooks do: D three times, L(G(z)) once for each network. Returns as _one_pass."""
        images = batch.images
        fake = self._refine(batch, self.generator)
        of_real, l_real = self.autoencoder_loss(images)
        _, l_fake_for_d = self.autoencoder_loss(fake.detach())
        of_fake, l_fake = self.autoencoder_loss(fake)
        l_content = self._content(images, fake)
        loss_d = l_real - self.k * l_fake_for_d
        loss_g = (1 - self.lambda_r) * l_fake + self.lambda_r * l_content
        losses = {"l_content": l_content.detach()}
        if self.estimator:
            target = normalise(batch.landmarks, self.config.resolution)
            loss_e, l_landmarks = self._landmark_loss(images, target).mean(), self._landmark_loss(fake, target).mean()
            loss_g = loss_g + self.landmark_weight * l_landmarks
            losses["l_landmarks_real"], losses["l_landmarks"] = loss_e.detach(), l_landmarks.detach()
        if self.critic:
            l_critic, l_realism = self.critic_loss(images, fake.detach()), self.realism(fake)
            loss_g = loss_g + self.config.critic_weight * l_realism
            losses["l_critic"], losses["l_realism"] = l_critic.detach(), l_realism.detach()
        loss_g.backward()
        self.optimisers["discriminator"].zero_grad(set_to_none=True)
        loss_d.backward()
        if self.critic:
            l_critic.backward()
        if self.estimator:
            self.optimisers["estimator"].zero_grad(set_to_none=True)
            loss_e.backward()
        return torch.cat([of_real, of_fake]).detach(), losses

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Rows: each shrunken copy (enlarged by nearest), the result of the moving average, the photo, D of both."""
        images, resolution = batch.images, self.config.resolution
        refined = self._refine(batch, self.ema)
        with self.precision():
            of_real, of_refined = self.discriminator(images), self.discriminator(refined)
        rows = {
            f"input {size}": nn.functional.interpolate(small, size=resolution, mode="nearest")
            for size, small in pyramid(images, self.generator.inject).items()
        }
        if self.config.landmarks:
            maps = landmark_maps(batch.landmarks, resolution, fused=self.config.fused)
            maps = maps.amax(1, keepdim=True) * 2 - 1
            rows["landmarks"] = nn.functional.interpolate(maps, size=resolution, mode="nearest").expand_as(images)
        rows |= {"refined": refined, "original": images, "D(refined)": of_refined, "D(original)": of_real}
        return {label: row.float().clamp(-1, 1) for label, row in rows.items()}

    def passes(self, fused: bool) -> list[tuple[nn.Module, tuple, int]]:
        side = self.config.resolution
        image = torch.empty(1, self.config.channels, side, side, device=self.device)
        points = torch.empty(1, LANDMARKS, 2, device=self.device)
        maps = landmark_maps(points, side, fused=self.config.fused) if self.config.landmarks else None
        passes = [
            (self.discriminator, (image,), 2 if fused else 3),
            (self.generator, (pyramid(image, self.generator.inject), maps), 1),
        ]
        return passes + ([(self.estimator, (image,), 2)] if self.estimator else []) + self.critic_passes()


def build_generator(config: RefinerConfig) -> RefinerGenerator:
    """Build G of a configuration; its weights are not set."""
    return RefinerGenerator(
        config.resolution,
        config.filters,
        config.channels,
        inject=config.inject,
        widths=config.g_widths,
        depths=config.g_depths,
        landmarks=config.landmarks,
        correct=config.correct,
        fused=config.fused,
    )


def generate(generator: RefinerGenerator, images: Tensor, landmarks: Tensor | None) -> Tensor:
    """Shrink images to the copies z that G takes, and run G on them: G(z), (B, C, R, R).

    images:    (B, C, R, R) in [-1, 1]
    landmarks: (B, 68, 2) x, y in pixels of R, whose heatmaps G takes too; None: G takes none
    """
    heatmaps = None
    if landmarks is not None:
        heatmaps = landmark_maps(landmarks, generator.resolution, fused=generator.first.fused)
    return generator(pyramid(images, generator.inject), heatmaps)


def focused(resolution: int, focus: float) -> Tensor:
    """How much each pixel counts, (1, 1, R, R) float32, 1 on average.

    That is 1 + focus exp(-d^2 / (2 s^2)) before it is brought to that mean; d: from the middle, s: FACE of the side.
    """
    places = (torch.arange(resolution) + 0.5) / resolution - 0.5
    squared = places.square()[:, None] + places.square()[None, :]
    weights = 1 + focus * torch.exp(-squared / (2 * FACE**2))
    return (weights / weights.mean())[None, None]


class TrainedRefiner(nn.Module):
    """A trained G as a user calls it: images in, refined images out; it shrinks the images itself."""

    def __init__(self, generator: RefinerGenerator, needs_landmarks: bool):
        super().__init__()
        self.generator = generator
        self.needs_landmarks = needs_landmarks

    def forward(self, images: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """Refine images.

        images:    (B, C, R, R) in [-1, 1]
        landmarks: (B, 68, 2) x, y in pixels of R; required when G was trained with them, else not read
        returns:   (B, C, R, R) in [-1, 1]
        Raises InputError when required landmarks are missing.
        """
        if self.needs_landmarks and landmarks is None:
            raise InputError("this model was trained with --landmarks: it needs the 68 landmarks of every image")
        return generate(self.generator, images, landmarks if self.needs_landmarks else None).clamp(-1, 1)
