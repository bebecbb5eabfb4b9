"""What refiner and began share: an autoencoder D as discriminator, k, which balances its two losses, and a critic.

    L(v)  = |v - D(v)|                                          BalancedSystem.autoencoder_loss
    L_D   = L(x) - k L(G(z))                                    BalancedSystem.discriminate_once: its gradient
    k    <- clamp(k + lambda_k (gamma L(x) - L(G(z))), 0, 1)    BalancedSystem.balance

x is a photo, G(z) a generated image. Source: Berthelot et al. 2017 (BEGAN), section 3.

D reconstructs a soft image better than a photo, so L(G(z)) forgives blur. With --critic-weight w a second discriminator
C judges patches of 23x23 pixels (that of simgan) or the whole image (that of dcgan), and w times its verdict joins L_G:

    L_C   = -log C(x) - log(1 - C(G(z)))                        BalancedSystem.criticise: its gradient
    L_G  += w (-log C(G(z)))                                    C: probability of being of a photo

With --critic-pack C judges several images as one of more channels. Source: Lin et al. 2018 (PacGAN).
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine import distributed
from engine.config import Origins, Sizes, TrainConfig
from engine.errors import InputError
from engine.networks.autoencoder import Autoencoder, check_levels
from engine.networks.dcgan import DcganCritic
from engine.networks.initialisation import initialise
from engine.networks.layers import Balance, began_balance, l1_autoencoder_loss, level_sizes
from engine.networks.patchgan import REAL, REFINED, LocalDiscriminator, frozen
from engine.pages.panels import chart
from engine.systems.base import System

CRITIC_BETAS = (0.5, 0.99)


@dataclass(frozen=True)
class BalancedConfig(TrainConfig):
    """Options that refiner and began share."""

    FIXED: ClassVar[tuple[str, ...]] = (
        *TrainConfig.FIXED,
        "hidden",
        "g_widths",
        "g_depths",
        "d_filters",
        "critic_sees",
        "critic_filters",
        "critic_pack",
    )
    JUDGED: ClassVar[bool] = True
    SMALL: ClassVar[dict[str, Any]] = {
        **TrainConfig.SMALL,
        "gamma": 0.9,
        "lambda_k": 0.05,
        "hidden": 16,
        "critic_weight": 0.1,
        "critic_filters": 8,
    }

    hidden: int = 64
    """h: how many numbers the discriminator encodes an image to."""
    gamma: float = 0.5
    """BEGAN's balance L(G(z)) / L(x): higher gives more variety."""
    lambda_k: float = 0.001
    """Rate of k, the weight of L(G(z)) in the discriminator's loss."""
    g_widths: Sizes = ()
    """The generator's filters at each level, from 8x8 up, as 96,96,64,64; default --filters at each."""
    g_depths: Sizes = ()
    """The generator's convolutions at each level, as 2,4,3,2; default two, as in the paper."""
    d_filters: int = 0
    """The width of the discriminator; 0 = --filters."""
    critic_weight: float = 0.0
    """Weight of a second discriminator in the generator's loss: it does not forgive blur, as an autoencoder does. 0 =
    none, as in the paper."""
    critic_sees: Literal["patches", "whole"] = "patches"
    """Whether it judges each patch of 23x23 pixels (that of simgan) or the whole image (that of dcgan)."""
    critic_filters: int = 32
    """The width of that second discriminator."""
    critic_pack: int = 1
    """How many images it judges together; several show it when a generator makes the same image again and again."""

    def completed(self, given: set[str], origins: Origins) -> "BalancedConfig":
        """Give lists of levels that a preset has for another resolution one number for each level of this one.

        The last level's number stands for further levels too.
        """
        config = super().completed(given, origins)
        levels = len(level_sizes(self.resolution))
        fitted = {}
        for name in ("g_widths", "g_depths"):
            numbers = getattr(self, name)
            if numbers and origins[name].startswith("preset"):
                fitted[name] = (*numbers, *numbers[-1:] * levels)[:levels]
        return replace(config, **fitted)

    def check(self) -> None:
        super().check()
        self.at_least(1, "hidden", "critic_filters", "critic_pack")
        self.at_most(1 << 16, "hidden")
        self.at_most(1 << 14, "d_filters", "critic_filters")
        self.at_least(0, "lambda_k", "d_filters", "critic_weight")
        self.between(0, 1, "gamma")
        of_rank = self.batch_size // self.ranks
        if of_rank % self.critic_pack:
            raise InputError(f"--critic-pack {self.critic_pack} does not divide the {of_rank} images of a rank's batch")
        if self.augment_judged and not self.critic_weight:
            raise InputError("--augment-judged is for what the critic sees: add --critic-weight, or leave it out")
        check_levels(self.g_widths, self.g_depths, self.resolution)

    def check_resumed(self, saved: "TrainConfig") -> None:
        super().check_resumed(saved)
        if bool(self.critic_weight) != bool(getattr(saved, "critic_weight", 0)):
            raise InputError("the critic cannot be switched on or off in a resumed run; start another --out")


class BalancedSystem(System):
    """A system with `discriminator`, an autoencoder, and `k`, () float32; its configuration is a BalancedConfig.

    critic: the second discriminator; None without --critic-weight
    """

    headline = ("l_real", "l_fake", "k", "measure")
    charts = (
        chart(
            "Autoencoder error",
            "How far the discriminator's reconstruction is from real and from generated images.",
            l_real="L(x), real",
            l_fake="L(G(z)), generated",
        ),
        chart("Balance", "Weight of generated images in the discriminator's loss.", noisy=False, k="k"),
        chart("Convergence", "L(x) + |gamma L(x) - L(G(z))|: lower is better.", measure="M"),
        chart("Losses", "What is minimised.", zero=False, loss_d="discriminator", loss_g="generator"),
        chart(
            "Critic",
            "Cross-entropy: guessing is 1.39 for the critic, 0.69 for the generator.",
            l_critic="critic",
            l_realism="generator",
        ),
    )
    discriminator: Autoencoder

    def __init__(self, config: BalancedConfig, device: str | torch.device):
        super().__init__(config, device)
        self.k = torch.zeros((), dtype=torch.float32, device=self.device)
        self.critic: LocalDiscriminator | DcganCritic | None = None
        if config.critic_weight:
            width, channels = config.critic_filters, config.critic_pack * config.channels
            if config.critic_sees == "patches":
                self.critic = LocalDiscriminator(width, channels, fused=config.fused)
            else:
                self.critic = DcganCritic(config.resolution, width, channels, norm="layer", fused=config.fused)

    def prepare(self, betas: tuple[float, float]) -> None:
        """Set the start values of all networks, move them to the device, and give each its Adam.

        betas: of all but the critic
        """
        for offset, (name, network) in enumerate(self.networks().items()):
            # each network draws from a seed of its own, so D and G start alike with and without the others
            initialise(network, 1000 * self.config.seed + offset)
            network.to(self.device)
            self.add_optimiser(name, network, betas=CRITIC_BETAS if name == "critic" else betas)

    def critics(self) -> dict[str, nn.Module]:
        """The critic by its name, for `networks`; nothing where there is none."""
        return {"critic": self.critic} if self.critic else {}

    def critic_passes(self) -> list[tuple[nn.Module, tuple[Any, ...], int]]:
        """What a step keeps of the critic, for `passes`; nothing where there is none."""
        if not self.critic:
            return []
        pack, side = self.config.critic_pack, self.config.resolution
        return [(self.critic, (torch.empty(1, pack * self.config.channels, side, side, device=self.device),), 2)]

    def autoencoder_loss(
        self, v: Tensor, grad_scale: Tensor | None = None, input_grad_from: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Compute L(v) of each sample (B,), and the mean () of all.

        v:               (B, C, R, R) in [-1, 1]
        grad_scale:      (B,) float32, how much each sample counts in the gradients of D's parameters; None: 1
        input_grad_from: samples before it get no gradient through D, because nothing reads the gradient of a photo
        """
        with self.precision():
            reconstruction = self.discriminator(v, grad_scale, input_grad_from).to(v.dtype)
        return l1_autoencoder_loss(v, reconstruction, fused=self.config.fused)

    def discriminate_once(self, images: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Run D once, forward and backward, on [x; G(z)]; D's parameters get the gradient of L_D.

        images:  x (B, C, R, R)
        fake:    G(z) (B, C, R, R); its graph is not entered
        returns: L of all samples (2B,), and the gradient of the mean L(G(z)) at G(z), (B, C, R, R), for the generator
        Every sample has the upstream weight 1/B, so the gradient of the input is that of L(x) and L(G(z)). Where the
        gradients of D's parameters are formed, the samples of G(z) count -k times. This is exactly the gradient of L_D.
        """
        n = len(images)
        ones = torch.ones_like(self.k).expand(n)
        both = torch.cat([images, fake.detach()]).requires_grad_()
        per_sample, _ = self.autoencoder_loss(both, torch.cat([ones, -self.k.expand(n)]), input_grad_from=n)
        (per_sample.sum() / n).backward()
        return per_sample.detach(), both.grad[n:]

    def criticise(self, images: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run C on [x; G(z)], forward and backward; C's parameters get the gradient of L_C.

        images:  x (B, C, R, R)
        fake:    G(z) (B, C, R, R); its graph is not entered
        returns: the gradient of w (-log C(G(z))) at G(z), (B, C, R, R), for the generator; and the two losses
        """
        l_critic = self.critic_loss(images, fake.detach())
        l_critic.backward()
        seen = fake.detach().requires_grad_()
        l_realism = self.realism(seen)
        (self.config.critic_weight * l_realism).backward()
        return seen.grad, {"l_critic": l_critic.detach(), "l_realism": l_realism.detach()}

    def critic_loss(self, images: Tensor, fake: Tensor) -> Tensor:
        """Compute L_C = -log C(x) - log(1 - C(G(z))), means over patches or images, ()."""
        of_real, of_fake = self._verdict(torch.cat([images, fake])).chunk(2)
        return F.softplus(-of_real).mean() + F.softplus(of_fake).mean()

    def realism(self, fake: Tensor) -> Tensor:
        """Compute -log C(G(z)), the mean over patches or images, (); C's parameters get no gradient of it."""
        with frozen([self.critic]):
            return F.softplus(-self._verdict(fake)).mean()

    def _verdict(self, images: Tensor) -> Tensor:
        """How sure C is that images are photos: logits, a row for each pack; images: (B, C, R, R), pack after pack."""
        pack, seen = self.config.critic_pack, self.judged(images)
        with self.precision():
            logits = self.critic(seen if pack == 1 else seen.unflatten(0, (-1, pack)).flatten(1, 2)).float()
        return logits[:, REAL] - logits[:, REFINED] if self.config.critic_sees == "patches" else logits

    def balance(self, per_sample: Tensor, content: Tensor, lambda_r: float) -> Balance:
        """Compute the losses of the global batch, and set k for the next step.

        per_sample: L of this rank's samples, (2B,): photos, then G(z)
        content:    L_RCN of this rank's samples, ()
        lambda_r:   share of L_RCN in L_G
        returns:    l_real, l_fake, loss_d, loss_g, the new k and the measure M, () float32 each
        """
        if distributed.size() > 1:
            losses = [half.mean() for half in per_sample.float().chunk(2)]
            means = distributed.mean_(torch.stack([*losses, content.float()]))
            per_sample, content = means[:2], means[2]
        constants = {"gamma": self.config.gamma, "lambda_k": self.config.lambda_k, "lambda_r": lambda_r}
        balance = began_balance(per_sample, content, self.k, fused=self.config.fused, **constants)
        self.k.copy_(balance.k)
        return balance

    def own_state(self) -> dict[str, Any]:
        return {"k": self.k.clone()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.k.copy_(state["k"])
