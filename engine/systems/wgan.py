"""The baseline WGAN (Arjovsky et al. 2017), with the gradient penalty of Gulrajani et al. 2017 as an option.

    L_D = D(G(z)) - D(x)                    weights clipped to [-c, c] before every critic step, or
    L_D = D(G(z)) - D(x) + lambda (|grad D(v)| - 1)^2      v between a photo and a generated image
    L_G = -D(G(z))

x is a photo, z normal noise.

One step: critic_steps times (clip -> z -> G -> D(x), D(G(z)) -> dL_D -> RMSprop), then z -> G -> D -> dL_G -> RMSprop
-> EMA. Which function does what:

    one part of the batch for each critic step    WganSystem.update
    clip, z, G(z), D(x), D(G(z)), L_D, RMSprop    WganSystem._critic_step: noise of its own each time
    (|grad D(v)| - 1)^2                           gradient_penalty, in place of clipping
    z, G(z), D(G(z)), L_G                         WganSystem.update
    dL_G, RMSprop, moving average                 NoiseSystem.train_generator
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from engine import distributed
from engine.config import Origins
from engine.data import Batch
from engine.data.needs import Needs
from engine.errors import InputError
from engine.networks.dcgan import DcganCritic
from engine.networks.initialisation import normal
from engine.pages.panels import chart
from engine.systems.dcgan import DcganLike, DcganOptions

ADAM_BETAS = (0.0, 0.9)  # Gulrajani et al. 2017, algorithm 1


@dataclass(frozen=True)
class WganConfig(DcganOptions):
    """Options of wgan."""

    FIXED: ClassVar[tuple[str, ...]] = (*DcganOptions.FIXED, "critic_norm", "optimiser")
    # G's gradient is taken after the critic's step, and RMSprop's first step is as large for a gradient that is only
    # rounding as for any other gradient. So lr is so small that the critic's step does not show in G's gradient
    SMALL: ClassVar[dict[str, Any]] = {**DcganOptions.SMALL, "critic_steps": 2, "lr": 1e-7}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # for 2 CPU cores and a few minutes; short runs of small networks bear a higher learning rate and need fewer
        # critic steps
        "quick": {
            "steps": 1500,
            "resolution": 32,
            "batch_size": 32,
            "filters": 24,
            "critic_steps": 3,
            "lr": 2e-4,
            "ema": 0.99,
            "sample_every": 100,
            "checkpoint_every": 500,
        },
        # an hour of one core; with clipped weights faces stay ragged. What the critic sees is altered, because a
        # thousand photos are soon known by heart
        "good": {
            "steps": 6000,
            "batch_size": 32,
            "filters": 24,
            "critic_steps": 2,
            "gradient_penalty": 10.0,
            "optimiser": "adam",
            "lr": 3e-4,
            "lr_schedule": "cosine",
            "ema": 0.998,
            "augment_judged": 0.5,
            "hold_out": 20,
            "sample_every": 500,
            "checkpoint_every": 500,
        },
        # Arjovsky et al. 2017, section 4, and the authors' code: 25 epochs of CelebA
        "paper": {
            "steps": 16_000,
            "batch_size": 64,
            "filters": 64,
            "lr": 5e-5,
            "ema": 0.999,
            "sample_every": 500,
            "checkpoint_every": 1000,
        },
    }

    system: str = "wgan"
    lr: float = 5e-5
    """Learning rate."""
    critic_steps: int = 5
    """Critic steps before each generator step; a training step reads this many batches."""
    clip: float = 0.01
    """Largest absolute value of the critic's weights (without --gradient-penalty)."""
    gradient_penalty: float = 0.0
    """Weight of the penalty for gradients of the critic whose length is not 1, usually 10; 0 = clip weights instead."""
    critic_norm: Literal["batch", "layer", "none"] = "batch"
    """Normalisation in the critic: BatchNorm, over each image alone, or none. The gradient penalty does not work with
    BatchNorm; with it layer is the default."""
    optimiser: Literal["rmsprop", "adam"] = "rmsprop"
    """Optimiser of both networks: RMSprop, or Adam with betas 0 and 0.9 (usual with --gradient-penalty, at --lr 1e-4;
    small networks bear 5e-4)."""

    def completed(self, given: set[str], origins: Origins) -> "WganConfig":
        """Make the critic's norm layer when there is a gradient penalty and nobody chose a norm."""
        not_chosen = "critic_norm" not in given and origins["critic_norm"] != "checkpoint"
        if self.gradient_penalty and self.critic_norm == "batch" and not_chosen:
            origins["critic_norm"] = origins["gradient_penalty"]
            return replace(self, critic_norm="layer")
        return self

    def check(self) -> None:
        super().check()
        self.at_least(1, "critic_steps")
        self.at_least(0, "gradient_penalty")
        if not self.clip > 0:
            raise InputError(f"--clip must be positive, got {self.clip}")
        if self.gradient_penalty and self.critic_norm == "batch":
            raise InputError(
                "--gradient-penalty looks at each image alone, BatchNorm mixes images; add --critic-norm none or layer"
            )


class WganSystem(DcganLike):
    """wgan in training: the critic, G and the moving average of G."""

    name = "wgan"
    config_class = WganConfig
    headline = ("loss_d", "loss_g", "distance")
    charts = (
        chart(
            "Distance",
            "The critic's estimate of the Wasserstein distance: it falls as samples improve.",
            distance="D(x) - D(G(z))",
        ),
        chart("Losses", "What is minimised.", zero=False, loss_d="critic", loss_g="generator"),
        chart("Gradient penalty", "(|gradient| - 1)^2 between real and generated images.", penalty="penalty"),
    )

    def __init__(self, config: WganConfig, device: str | torch.device):
        super().__init__(config, device)
        shape = (config.resolution, config.filters, config.channels)
        style = {"norm": config.critic_norm, "layers": config.layers, "fused": config.fused}
        self.critic = DcganCritic(*shape, **style)
        self.generator = self.build_generator(config)
        for offset, (name, network) in enumerate(self.networks().items()):
            normal(network, 1000 * config.seed + offset)
            network.to(self.device)
            options = {"betas": ADAM_BETAS} if config.optimiser == "adam" else {}
            self.add_optimiser(name, network, config.optimiser, **options)
        self.start_average()

    @classmethod
    def needs(cls, config: WganConfig) -> tuple[Needs, ...]:
        return (Needs(config.critic_steps * config.batch_size, batches=config.critic_steps),)

    def networks(self) -> dict[str, nn.Module]:
        return {"critic": self.critic, "generator": self.generator}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Update the critic on each of critic_steps parts of the batch (its losses are means over them), then G."""
        parts = [self._critic_step(images) for images in batch.images.chunk(self.config.critic_steps)]
        losses = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        loss_g = -self._score(self.generate(self.config.batch_size)).mean()
        self.train_generator(loss_g)
        return {"loss_d": losses.pop("loss_d"), "loss_g": loss_g.detach(), **losses}

    def _critic_step(self, images: Tensor) -> dict[str, Tensor]:
        """Update the critic on photos (B, C, R, R) and as many generated images; returns name -> loss, ()."""
        config = self.config
        if not config.gradient_penalty:
            clip_weights(self.critic, config.clip)
        with torch.no_grad():
            fake = self.generate(len(images))
        distance = self._score(images).mean() - self._score(fake).mean()
        losses = {"distance": distance.detach()}
        loss = -distance
        if config.gradient_penalty:
            penalty = gradient_penalty(self._score, images, fake)
            loss = loss + config.gradient_penalty * penalty
            losses["penalty"] = penalty.detach()
        self.descend(loss, "critic")
        return {"loss_d": loss.detach(), **losses}

    def _score(self, images: Tensor) -> Tensor:
        return self.score(self.critic, images)

    def passes(self, fused: bool) -> list[tuple[nn.Module, tuple, int]]:
        # the penalty adds a forward pass of the critic, and the gradient of that pass, which counts as another
        return self.kept(self.critic, 4 if self.config.gradient_penalty else 2)


@torch.no_grad()
def clip_weights(network: nn.Module, limit: float) -> None:
    """Clamp every parameter that learns to [-limit, limit], in place."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    torch._foreach_clamp_min_(parameters, -limit)
    torch._foreach_clamp_max_(parameters, limit)


def gradient_penalty(score, images: Tensor, fake: Tensor) -> Tensor:
    """Compute the mean of (|gradient of the score at v| - 1)^2, v drawn evenly between a photo and a generated image.

    score:        (B, C, R, R) -> (B,), each score from its image alone
    images, fake: photos and generated images, (B, C, R, R), without gradient
    returns:      () float32
    Source: Gulrajani et al. 2017, equation (3).
    """
    share = distributed.drawn(lambda rows: torch.rand(rows, 1, 1, 1, device=images.device), len(images))
    v = torch.lerp(fake, images, share).requires_grad_()
    (gradient,) = torch.autograd.grad(score(v).sum(), v, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
