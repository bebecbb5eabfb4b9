"""The face generator (Zhang et al., Realistic Face Image Generation Based on GAN): BEGAN from noise.

    L(v)  = |v - D(v)|
    L_D   = L(x) - k L(G(z))
    L_G   = L(G(z))
    k    <- clamp(k + lambda_k (gamma L(x) - L(G(z))), 0, 1)

x is a photo, z noise in [-1, 1]^h. Both networks learn from the same noise. Equation (2) of the paper is garbled;
BEGAN's equation is meant (Berthelot et al. 2017, section 3.4), with the paper's gamma.

One step: z -> G -> D([x; G(z)]) -> dD -> dG -> Adam -> EMA -> k. Which function does what, in order:

    z, G(z)              NoiseSystem.generate
    L(x), L(G(z)), dL_D  BalancedSystem.discriminate_once: D once over [x; G(z)], forward and backward
    dL_G                 BeganSystem._one_pass: the gradient at G(z) goes backward through G
    Adam of D and G      BeganSystem.update
    moving average of G  System.average
    dL_C, -log C(G(z))   BalancedSystem.criticise, with --critic-weight
    L_D, L_G, k          BalancedSystem.balance: the losses that are shown, and k of the next step

With --eager, BeganSystem._textbook takes the place of _one_pass: every loss as its equation, D three times.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from engine.data import Batch
from engine.errors import InputError
from engine.networks.autoencoder import Autoencoder
from engine.networks.began import BeganGenerator
from engine.systems.balance import BalancedConfig, BalancedSystem
from engine.systems.generation import NoiseSystem

BETA2 = 0.999
Output = Literal["none", "tanh", "sigmoid"]


@dataclass(frozen=True)
class BeganConfig(BalancedConfig):
    """Options of began."""

    FIXED: ClassVar[tuple[str, ...]] = (
        *BalancedConfig.FIXED,
        "activation",
        "generator_output",
        "discriminator_output",
        "upsample",
        "downsample",
    )
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # for 2 CPU cores and a few minutes. With gamma 0.5 and lambda_k 0.001, k stays near 0 in 2,500 steps, and G
        # makes one mean face, which D reconstructs well. A gamma near 1, a larger lambda_k and a beta1 of 0.5 bring
        # variety
        "quick": {
            "steps": 2500,
            "resolution": 32,
            "batch_size": 16,
            "filters": 24,
            "hidden": 64,
            "gamma": 0.95,
            "lambda_k": 0.05,
            "beta1": 0.5,
            "lr": 1e-3,
            "lr_schedule": "cosine",
            "ema": 0.995,
            "sample_every": 200,
            "checkpoint_every": 500,
        },
        # an hour and a quarter of one core. An autoencoder alone makes one face at this size: a second discriminator,
        # which sees whole images in pairs, brings variety. The runs that chose these values are in docs/systems.md
        "good": {
            "steps": 12_000,
            "batch_size": 16,
            "filters": 32,
            "d_filters": 24,
            "g_widths": (64, 96, 64, 32),
            "g_depths": (2, 2, 2, 2),
            "hidden": 64,
            "gamma": 0.8,
            "lambda_k": 0.02,
            "beta1": 0.5,
            "critic_weight": 0.3,
            "critic_sees": "whole",
            "critic_filters": 24,
            "critic_pack": 2,
            "augment_judged": 0.7,
            "lr": 5e-4,
            "lr_schedule": "cosine",
            "lr_floor": 0.05,
            "ema": 0.998,
            "hold_out": 20,
            "sample_every": 1000,
            "checkpoint_every": 1000,
        },
        # section 4.2 of the paper; gamma, lambda_k, the batch and the widths are those of BEGAN, which the paper keeps
        "paper": {
            "steps": 100_000,
            "batch_size": 16,
            "filters": 64,
            "lr": 1e-4,
            "lr_schedule": "step",
            "lr_every": 2000,
            "lr_decay": 0.9,
            "ema": 0.999,
            "sample_every": 2000,
            "checkpoint_every": 5000,
        },
    }

    system: str = "began"
    hidden: int = 64
    """h: the length of the noise, and how many numbers the discriminator encodes an image to."""
    beta1: float = 0.9
    """Adam's decay of the mean gradient; 0.5 lets variety come sooner in short runs."""
    activation: Literal["elu", "relu"] = "elu"
    """Activation after every convolution but the last; the paper's text has relu."""
    generator_output: Output = "none"
    """What ends the generator; the paper's text has tanh. sigmoid is spread to [-1, 1]."""
    discriminator_output: Output = "none"
    """What ends the discriminator's decoder; the paper's text has sigmoid."""
    upsample: Literal["nearest", "deconv"] = "nearest"
    """How decoders enlarge: nearest before a 3x3 convolution, or a transposed 4x4 convolution (the paper's text)."""
    downsample: Literal["stride", "average"] = "stride"
    """How the encoder shrinks: convolutions of stride 2, or the mean of 2x2 pixels."""

    def check(self) -> None:
        super().check()
        if not 0 <= self.beta1 < 1:
            raise InputError(f"--beta1 must be at least 0 and below 1, got {self.beta1}")


class BeganSystem(BalancedSystem, NoiseSystem):
    """began in training: D, G and the moving average of G."""

    name = "began"
    config_class = BeganConfig
    distribution = "uniform"

    def __init__(self, config: BeganConfig, device: str | torch.device):
        super().__init__(config, device)
        self.discriminator = Autoencoder(
            config.resolution,
            config.d_filters or config.filters,
            config.channels,
            hidden=config.hidden,
            activation=config.activation,
            output=config.discriminator_output,
            upsample=config.upsample,
            downsample=config.downsample,
            fused=config.fused,
        )
        self.generator = self.build_generator(config)
        self.prepare((config.beta1, BETA2))
        self.start_average()
        # began_balance takes a content loss; this system has none
        self.no_content = torch.zeros_like(self.k)
        self._gradients = self._one_pass if config.fused else self._textbook

    @staticmethod
    def noise_size(config: BeganConfig) -> int:
        return config.hidden

    @staticmethod
    def build_generator(config: BeganConfig) -> BeganGenerator:
        return BeganGenerator(
            config.resolution,
            config.filters,
            config.channels,
            hidden=config.hidden,
            widths=config.g_widths,
            depths=config.g_depths,
            activation=config.activation,
            output=config.generator_output,
            upsample=config.upsample,
            fused=config.fused,
        )

    def networks(self) -> dict[str, nn.Module]:
        return {"discriminator": self.discriminator, "generator": self.generator, **self.critics()}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Update D and G, both from the same old weights and the same k, then update k."""
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        per_sample, verdicts = self._gradients(batch.images, self.generate(len(batch.images)))
        for optimiser in self.optimisers.values():
            optimiser.step()
        self.average("ema", self.generator)
        losses = self.balance(per_sample, self.no_content, lambda_r=0.0)._asdict() | verdicts
        if self.critic:
            losses["loss_g"] = losses["loss_g"] + self.config.critic_weight * losses["l_realism"]
        return losses

    def _one_pass(self, images: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Form the gradients of all networks from one pass of D over [x; G(z)].

        returns: L of the samples (2B,), and name -> () of the critic's losses
        """
        per_sample, to_fake = self.discriminate_once(images, fake)
        verdicts: dict[str, Tensor] = {}
        if self.critic:
            of_critic, verdicts = self.criticise(images, fake)
            to_fake = to_fake + of_critic
        fake.backward(to_fake)
        return per_sample, verdicts

    def _textbook(self, images: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Form all gradients as textbooks do: D three times, L(G(z)) once for each network. Returns as _one_pass."""
        of_real, l_real = self.autoencoder_loss(images)
        _, l_fake_for_d = self.autoencoder_loss(fake.detach())
        of_fake, loss_g = self.autoencoder_loss(fake)
        loss_d = l_real - self.k * l_fake_for_d
        verdicts = {}
        if self.critic:
            l_critic, l_realism = self.critic_loss(images, fake.detach()), self.realism(fake)
            loss_g = loss_g + self.config.critic_weight * l_realism
            verdicts = {"l_critic": l_critic.detach(), "l_realism": l_realism.detach()}
        loss_g.backward()
        self.optimisers["discriminator"].zero_grad(set_to_none=True)
        loss_d.backward()
        if self.critic:
            l_critic.backward()
        return torch.cat([of_real, of_fake]).detach(), verdicts

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Rows: images from fixed noise, what D makes of them, photos, what D makes of them."""
        rows = self.generated_rows(len(batch.images))
        for label, images in (("generated", rows["generated"]), ("real", batch.images)):
            rows[label] = images
            with self.precision():
                rows[f"D({label})"] = self.discriminator(images).float().clamp(-1, 1)
        return rows

    def passes(self, fused: bool) -> list[tuple[nn.Module, tuple, int]]:
        side = self.config.resolution
        image = torch.empty(1, self.config.channels, side, side, device=self.device)
        noise = torch.empty(1, self.config.hidden, device=self.device)
        passes = [(self.discriminator, (image,), 2 if fused else 3), (self.generator, (noise,), 1)]
        return passes + self.critic_passes()
