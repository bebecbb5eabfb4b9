"""The baseline `strong` of the suite `step`: what a careful user of PyTorch reaches without writing kernels."""

import torch
from torch import Tensor

from engine.config import TrainConfig
from engine.data import Batch
from engine.kernels import _spec
from engine.kernels.l1_autoencoder_loss.reference import l1_autoencoder_loss
from engine.networks.layers import Conv
from engine.systems.refiner import RefinerSystem


class StrongConv(Conv):
    """A convolution layer that calls its operator's Spec.strong: folded weights, stride 2, activation in place."""

    def forward(self, x: Tensor, second: Tensor | None = None, **options: Tensor | int | None) -> Tensor:
        run = _spec.specs()["resize_conv_act"].strong
        options |= {"resize": self.resize, "activation": self.activation, "second": second}
        return run(x, self.weight, self.bias, **options)


class StrongRefiner(RefinerSystem):
    """The eager refiner with strong layers in channels_last, two forward passes of D, and no gradient that is not read.

    It lacks the one-pass algebra of the fused step: both losses share L(G(z)), but each has its own backward pass.
    """

    def __init__(self, config: TrainConfig, device: str | torch.device):
        super().__init__(config, device)
        for network in self.networks().values():
            network.to(memory_format=torch.channels_last)
            for layer in network.modules():
                if isinstance(layer, Conv):
                    layer.__class__ = StrongConv  # keeps parameters, initial values and optimiser
        self._gradients = self._shared_forward

    def _shared_forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch.images
        d, g = (list(network.parameters()) for network in (self.discriminator, self.generator))
        of_real, l_real = self.autoencoder_loss(images)
        l_real.backward()  # here, so that its activations are free before those of G(z) are made
        fake = self._refine(batch, self.generator)
        of_fake, l_fake = self.autoencoder_loss(fake)
        torch.autograd.backward(-self.k * l_fake, inputs=d, retain_graph=True)
        _, l_content = l1_autoencoder_loss(images, fake)
        loss_g = (1 - self.lambda_r) * l_fake + self.lambda_r * l_content
        torch.autograd.backward(loss_g, inputs=g)  # without gradients of D's weights
        return torch.cat([of_real, of_fake]).detach(), {"l_content": l_content.detach()}
