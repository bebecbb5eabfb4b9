"""SimGAN for faces (Refining Synthetic Face Images using GANs, after Shrivastava et al. 2017).

    L_R   = L_real + lambda L_reg                               D: probability of a patch of being refined
    L_real = -log(1 - D(R(x)))                                  mean over patches
    L_reg = ||x - R(x)||_1 / n                                  n channels; per pixel, so that lambda fits any size
    L_D   = -log D(R(x)) - log(1 - D(y))

x is synthetic, y real. Half of the refined images that D sees come from a history of earlier refined images. The paper
proposes, and options add: a second refiner B from real to synthetic, which is trained like R, with the cycle loss
w (||x - B(R(x))||_1 + ||y - R(B(y))||_1) / n; and discriminators of eyes, nose and mouth.

One step: refiner_steps times (R(x) -> D -> L_R -> Adam of R), then discriminator_steps times (R(x) -> history ->
D([y; R(x)]) -> L_D -> Adam of D), each time on fresh images; then EMA. Which function does what:

    who learns in this step           SimganSystem.advance: at first R alone, from L_reg, then D alone, then both
    the images of each update         SimganSystem._split
    R(x), D(R(x)), L_R, Adam of R     SimganSystem._update_refiners; L_reg: _regularisation; L_real: patch_loss
    history, L_D, Adam of D           SimganSystem._update_discriminators; history: ImagePool.mix; losses: patch_loss
    moving average of R               System.average

The options are in simgan_options.py: with them this file would be longer than 400 lines.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.data import Batch
from engine.data.landmarks import POINTS
from engine.data.needs import Needs
from engine.errors import InputError
from engine.networks.face_parts import PartDiscriminators
from engine.networks.initialisation import initialise
from engine.networks.layers import l1_autoencoder_loss
from engine.networks.patchgan import REAL, REFINED, LocalDiscriminator, frozen, patch_accuracy, patch_loss
from engine.networks.resnet import ImageToImage, SimganRefiner
from engine.networks.resnet_features import ResnetFeatures
from engine.pages.panels import chart
from engine.systems.base import System
from engine.systems.image_pool import ImagePool
from engine.systems.kinds import REFINE
from engine.systems.simgan_options import SimganConfig

BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Samples:
    """The images of one update, (B, C, R, R), and their landmarks, (B, 68, 2) in pixels of R; None: not needed."""

    images: Tensor
    landmarks: Tensor | None


@dataclass
class Direction:
    """One way between the image sets: the refiner, the judges of its results, and the history of these results."""

    refiner: nn.Module
    discriminator: nn.Module
    parts: nn.Module | None
    history: ImagePool


class SimganSystem(System):
    """simgan in training: R, D, the moving average of R, and what the options add."""

    name = "simgan"
    kind = REFINE
    config_class = SimganConfig
    headline = ("l_refiner", "l_realism", "l_regularisation", "l_discriminator", "accuracy_real", "accuracy_refined")
    charts = (
        chart(
            "Refiner's losses",
            "Realism is judged by D; regularisation keeps the input.",
            l_realism="realism",
            l_regularisation="regularisation",
            l_cycle="cycle",
        ),
        chart("Discriminator", "Cross-entropy over patches.", l_discriminator="loss"),
        chart(
            "Patches judged right",
            "Share of real and of refined patches; 0.5 is guessing.",
            accuracy_real="real",
            accuracy_refined="refined",
        ),
        chart(
            "Change of the input",
            "Mean |x - R(x)|, and of each image's mean colour.",
            change="pixels",
            tone_change="tone",
        ),
        chart("Sum", "The refiner's weighted losses.", l_refiner="refiner"),
        chart("History", "Share of the buffer in use.", noisy=False, history_fill="full"),
    )

    def __init__(self, config: SimganConfig, device: str | torch.device):
        super().__init__(config, device)
        self.generator = build_refiner(config)
        shape = {"filters": config.filters, "channels": config.channels, "fused": config.fused}
        self.discriminator = LocalDiscriminator(**shape)
        self.back = self.back_discriminator = self.parts = self.features = None
        if config.cycle_weight:
            self.back, self.back_discriminator = build_refiner(config), LocalDiscriminator(**shape)
        if config.part_weight:
            self.parts = PartDiscriminators(config.resolution, **shape)
        if config.reg == "features":
            self.features = self._build_features()
        for name, network in self.networks().items():
            # each network draws from a seed of its own, so an option leaves the start of the other networks alone
            initialise(network, 1000 * config.seed + list(_NETWORKS).index(name))
            network.to(self.device)
            self.add_optimiser(name, network, betas=BETAS)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.directions = self._directions()
        # 1: these networks and their moments stay as they are in this step (fused Adam skips a step of found_inf 1)
        self.idle = {kind: torch.zeros((), dtype=torch.float32, device=self.device) for kind in ("refine", "judge")}
        for name, optimiser in self.optimisers.items():
            optimiser.found_inf = self.idle[_NETWORKS[name]]
        # 0 while R learns from the self-regularisation alone
        self.adversarial = torch.zeros((), dtype=torch.float32, device=self.device)

    def _build_features(self) -> ResnetFeatures:
        """Build the fixed ResNet-18, and print whose weights it has."""
        features = ResnetFeatures(self.config.feature_weights, fused=self.config.fused)
        if self.device.type != "meta":
            known = features.digest != "random"
            print(f"resnet  {f'sha256 {features.digest}' if known else 'fixed random weights (no --feature-weights)'}")
        return features.to(self.device)

    def _directions(self) -> list[Direction]:
        """Forth, from synthetic to real images, and with a cycle loss also back; each with an empty history."""
        side = self.config.resolution
        image = torch.empty(self.config.channels, side, side, dtype=torch.float16, device=self.device)
        like = [image, torch.empty(POINTS, 2, device=self.device)] if self.parts else [image]
        forth = Direction(self.generator, self.discriminator, self.parts, ImagePool(self.config.history, like))
        if not self.back:
            return [forth]
        return [forth, Direction(self.back, self.back_discriminator, None, ImagePool(self.config.history, [image]))]

    @classmethod
    def needs(cls, config: SimganConfig) -> tuple[Needs, ...]:
        points = POINTS if config.part_weight else 0
        updates = config.refiner_steps + config.discriminator_steps
        real = updates if config.cycle_weight else config.discriminator_steps
        return (
            Needs(real * config.batch_size, real, points),
            Needs(updates * config.batch_size, updates, points, look="game"),
        )

    @classmethod
    def trained(cls, config: SimganConfig) -> ImageToImage:
        return ImageToImage(build_refiner(config))

    def networks(self) -> dict[str, nn.Module]:
        return {name: getattr(self, name) for name in _NETWORKS if getattr(self, name) is not None}

    def averaged(self) -> dict[str, nn.Module]:
        return {"ema": self.ema}

    def advance(self) -> None:
        """Count the step, and set who learns in it: at first R alone, then D alone, then both against each other."""
        super().advance()
        refiner_ends = self.config.pretrain_refiner
        ends = refiner_ends + self.config.pretrain_discriminator
        self.idle["judge"].fill_(self.steps_done <= refiner_ends)
        self.idle["refine"].fill_(refiner_ends < self.steps_done <= ends)
        self.adversarial.fill_(self.steps_done > ends)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Do all updates of R, then those of D; returns the losses of the last update of each."""
        synthetic, real = self._split(batch.more[0]), self._split(batch)
        if not self.back:
            # without B, an update of R reads no photos; any stand in their place
            real = [real[0]] * self.config.refiner_steps + real
        first = self.config.refiner_steps
        for x, y in zip(synthetic[:first], real[:first], strict=True):
            losses = self._update_refiners(x, y)
        for x, y in zip(synthetic[first:], real[first:], strict=True):
            judged = self._update_discriminators(x, y)
        self.average("ema", self.generator)
        return losses | judged | {"history_fill": self.directions[0].history.fill()}

    def _split(self, batch: Batch) -> list[Samples]:
        """Cut a batch into the samples of each update. Raises InputError when parts have no landmarks."""
        if self.parts and batch.landmarks is None:
            raise InputError("--part-weight needs 68 landmarks of every image; choose another --data or --synthetic")
        n = self.config.batch_size
        parts = [batch.part(start, start + n) for start in range(0, len(batch.images), n)]
        return [Samples(part.images, part.landmarks) for part in parts]

    def _refine(self, refiner: nn.Module, images: Tensor) -> Tensor:
        """Run a refiner on images (B, C, R, R); the result has their shape and dtype."""
        with self.precision():
            return refiner(images).to(images.dtype)

    def _logits(self, direction: Direction, images: Tensor, landmarks: Tensor | None) -> dict[str, Tensor]:
        """The logits of a direction's judges: of the image as "whole" and, with part discriminators, of each part."""
        with self.precision():
            logits = {"whole": direction.discriminator(self.judged(images))}
            return logits | (direction.parts(images, landmarks) if direction.parts else {})

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """The loss of "whole" plus --part-weight times the mean loss of the parts, ()."""
        parts = [loss for name, loss in losses.items() if name != "whole"]
        return losses["whole"] + (self.config.part_weight * sum(parts) / len(parts) if parts else 0)

    def _update_refiners(self, x: Samples, y: Samples) -> dict[str, Tensor]:
        """Update R (and B) once; the discriminators get no gradient. x, y: synthetic and real samples."""
        refiners = [direction.refiner for direction in self.directions]
        outcomes = []
        with frozen(self.networks()[name] for name in self._of_kind("judge")):
            for direction, source in zip(self.directions, (x, y), strict=False):
                refined = self._refine(direction.refiner, source.images)
                logits = self._logits(direction, refined, source.landmarks)
                realism = self._weighted({name: patch_loss(part, REAL) for name, part in logits.items()})
                outcomes.append((refined, realism, self._regularisation(source.images, refined)))
        loss = sum(self.adversarial * realism + self.config.lambda_reg * kept for _, realism, kept in outcomes)
        refined, realism, kept = outcomes[0]
        losses = {"l_realism": realism, "l_regularisation": kept}
        if self.back:
            there_and_back = self._refine(refiners[1], refined), self._refine(refiners[0], outcomes[1][0])
            cycle = sum(self._distance(a.images, b) for a, b in zip((x, y), there_and_back, strict=True))
            loss = loss + self.adversarial * self.config.cycle_weight * cycle
            losses["l_cycle"] = cycle
        self.descend(loss, *self._of_kind("refine"))
        difference = (refined - x.images).detach()
        return {
            "l_refiner": loss.detach(),
            **{name: value.detach() for name, value in losses.items()},
            "change": difference.abs().mean(),
            # how far the mean colour of an image moves: it shows skin, light and background, not texture
            "tone_change": difference.mean((2, 3)).abs().mean(),
        }

    def _update_discriminators(self, x: Samples, y: Samples) -> dict[str, Tensor]:
        """Update all discriminators once, also on images of the history. x, y: synthetic and real samples."""
        total, losses = 0, {}
        for number, (direction, source, target) in enumerate(zip(self.directions, (x, y), (y, x), strict=False)):
            with torch.no_grad():
                refined = self._refine(direction.refiner, source.images)
            shown = [refined, source.landmarks] if direction.parts else [refined]
            images, *points = direction.history.mix(shown, learning=self.idle["judge"] == 0)
            both = torch.cat([target.images, images])
            landmarks = torch.cat([target.landmarks, points[0]]) if direction.parts else None
            halves = {
                name: _by_image_set(logits, len(target.images))
                for name, logits in self._logits(direction, both, landmarks).items()
            }
            of = {name: patch_loss(a, REAL) + patch_loss(b, REFINED) for name, (a, b) in halves.items()}
            loss = self._weighted(of)
            total = total + loss
            if number == 0:
                losses["l_discriminator"] = loss.detach()
                for name, (a, b) in halves.items():
                    suffix = "" if name == "whole" else f"_{name}"
                    losses[f"accuracy_real{suffix}"] = patch_accuracy(a, REAL)
                    losses[f"accuracy_refined{suffix}"] = patch_accuracy(b, REFINED)
            else:
                losses["l_back_discriminator"] = loss.detach()
        self.descend(total, *self._of_kind("judge"))
        return losses

    def _of_kind(self, kind: str) -> list[str]:
        """The names of the networks that refine (kind "refine") or judge ("judge")."""
        return [name for name in self.networks() if _NETWORKS[name] == kind]

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        """||a - b||_1 / n per pixel: the mean absolute difference, () float32."""
        return l1_autoencoder_loss(a, b, fused=self.config.fused)[1]

    def _regularisation(self, images: Tensor, refined: Tensor) -> Tensor:
        """L_reg between images and refined images, in the measure of --reg, () float32."""
        if self.features:
            with self.precision():
                of_refined, of_images = self.features(refined), self.features(images)
            pairs = list(zip(of_refined, of_images, strict=True))
            return sum(self._distance(b.detach().float(), a.float()) for a, b in pairs) / len(pairs)
        if self.config.reg_channels == "mean":
            images, refined = images.mean(1, keepdim=True), refined.mean(1, keepdim=True)
        if self.config.reg == "l2":
            return (refined - images).square().mean()
        return self._distance(images, refined)

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Rows: synthetic images, refined (moving average), difference (grey: none), photos; with B, the way back."""
        synthetic = batch.more[0].images
        refined = self._refine(self.ema, synthetic)
        rows = {"synthetic": synthetic, "refined": refined, "difference": refined - synthetic}
        if self.back:
            rows |= {"and back": self._refine(self.back, refined)}
        rows["real"] = batch.images
        if self.back:
            rows |= {"as synthetic": self._refine(self.back, batch.images)}
        return {label: row.float().clamp(-1, 1) for label, row in rows.items()}

    def passes(self, fused: bool) -> list[tuple[nn.Module, tuple, int]]:
        side = self.config.resolution
        image = torch.empty(1, self.config.channels, side, side, device=self.device)
        landmarks = torch.empty(1, POINTS, 2, device=self.device)
        passes = [(self.generator, (image,), 1), (self.discriminator, (image,), 1)]
        passes += [(self.parts, (image, landmarks), 1)] if self.parts else []
        if self.back:
            passes += [(self.back, (image,), 2), (self.generator, (image,), 1), (self.back_discriminator, (image,), 1)]
        return passes + ([(self.features, (image,), 2)] if self.features else [])

    def own_state(self) -> dict[str, Any]:
        histories = [direction.history.state_dict() for direction in self.directions]
        return {"histories": histories, "features": self.features.digest if self.features else None}

    def load_own_state(self, state: dict[str, Any]) -> None:
        digest = self.features.digest if self.features else None
        if state["features"] != digest and None not in (state["features"], digest):
            raise InputError(
                f"the run was trained with the features {state['features'][:12]}, these are {digest[:12]}: "
                "give the same --feature-weights"
            )
        for direction, saved in zip(self.directions, state["histories"], strict=True):
            direction.history.load_state_dict(saved)


# name of every network -> what it does; its place in this list decides the seed of its start values
_NETWORKS = {
    "generator": "refine",
    "discriminator": "judge",
    "back": "refine",
    "back_discriminator": "judge",
    "parts": "judge",
}


def build_refiner(config: SimganConfig) -> SimganRefiner:
    """Build R or B of a configuration; its weights are not set."""
    shape = {"blocks": config.blocks, "padding": config.padding}
    return SimganRefiner(config.filters, config.channels, **shape, fused=config.fused)


def _by_image_set(logits: Tensor, real: int) -> tuple[Tensor, Tensor]:
    """Split logits of [real; refined] images, each of which may come several times (two eyes), by image set."""
    copies = logits.unflatten(0, (-1, 2 * real))
    return copies[:, :real].flatten(0, 1), copies[:, real:].flatten(0, 1)
