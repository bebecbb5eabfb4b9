"""What the BEGAN-like systems share: an autoencoder as discriminator, and k that balances its two losses.

    L(v)  = |v - D(v)|
    L_D   = L(x) - k L(G(z))
    k    <- clamp(k + lambda_k (gamma L(x) - L(G(z))), 0, 1)

Source: Berthelot et al. 2017 (BEGAN), section 3.
"""

from typing import Any

import torch
from torch import Tensor

from engine import distributed
from engine.networks.autoencoder import Autoencoder
from engine.networks.layers import Balance, began_balance, l1_autoencoder_loss
from engine.pages.panels import chart
from engine.systems.base import System


class BalancedSystem(System):
    """A system with `discriminator`, an autoencoder, and `k`. Its configuration has gamma and lambda_k."""

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
    )
    discriminator: Autoencoder

    def __init__(self, config, device: str | torch.device):
        super().__init__(config, device)
        self.k = torch.zeros((), dtype=torch.float32, device=self.device)

    def autoencoder_loss(
        self, v: Tensor, grad_scale: Tensor | None = None, input_grad_from: int = 0
    ) -> tuple[Tensor, Tensor]:
        """L(v) per sample (B,) and its mean; grad_scale (B,) scales D's parameter gradients.

        Samples before input_grad_from get no gradient through D (nobody reads that of a photo).
        """
        with self.precision():
            reconstruction = self.discriminator(v, grad_scale, input_grad_from).to(v.dtype)
        return l1_autoencoder_loss(v, reconstruction, fused=self.config.fused)

    def discriminate_once(self, images: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """D once, forward and backward, on [x; G(z)]: D's parameters get the gradient of L_D.

        Returns L of the samples (2B,), and the gradient of mean L(G(z)) with respect to G(z), for the generator.

        Every sample has upstream weight 1/B, so that the gradient of the input is that of L(x) and L(G(z)); where D's
        parameter gradients are formed, the samples of G(z) count -k times. This is L_D's gradient, exactly.
        """
        n = len(images)
        ones = torch.ones_like(self.k).expand(n)
        both = torch.cat([images, fake.detach()]).requires_grad_()
        per_sample, _ = self.autoencoder_loss(both, torch.cat([ones, -self.k.expand(n)]), input_grad_from=n)
        (per_sample.sum() / n).backward()
        return per_sample.detach(), both.grad[n:]

    def balance(self, per_sample: Tensor, content: Tensor, lambda_r: float) -> Balance:
        """The global batch's losses from L of this rank's samples (2B,), and k of the next step, which is set."""
        if distributed.size() > 1:
            losses = [half.mean() for half in per_sample.float().chunk(2)]
            means = distributed.mean_(torch.stack([*losses, content.float()]))
            per_sample, content = means[:2], means[2]
        constants = {"gamma": self.config.gamma, "lambda_k": self.config.lambda_k, "lambda_r": lambda_r}
        found = began_balance(per_sample, content, self.k, fused=self.config.fused, **constants)
        self.k.copy_(found.k)
        return found

    def own_state(self) -> dict[str, Any]:
        return {"k": self.k.clone()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.k.copy_(state["k"])
