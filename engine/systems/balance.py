"""What refiner and began share: an autoencoder D as discriminator, and k, which balances the two losses of D.

    L(v)  = |v - D(v)|                                          BalancedSystem.autoencoder_loss
    L_D   = L(x) - k L(G(z))                                    BalancedSystem.discriminate_once: its gradient
    k    <- clamp(k + lambda_k (gamma L(x) - L(G(z))), 0, 1)    BalancedSystem.balance

x is a photo, G(z) a generated image. Source: Berthelot et al. 2017 (BEGAN), section 3.
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
    """A system with `discriminator`, an autoencoder, and `k`, () float32. Its configuration has gamma and lambda_k."""

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
