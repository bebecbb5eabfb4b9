"""Start values of networks that are not all ELU: from a seed alone, the same for fused and eager, on every device."""

import math

import torch
from torch import Tensor, nn

from engine.networks.layers import Conv

LAYERS = (Conv, nn.Conv2d, nn.ConvTranspose2d)


def he_normal(network: nn.Module, seed: int) -> None:
    """Weights normal with variance gain / fan_in, biases zero.

    gain: the layer's attribute `start_gain` where it has one; else 2 where its attribute `activation` is "relu" (half
    of a centred input's mean square goes), 1 without activation. Source: He et al. 2015, equation 10.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, LAYERS):
            gain = getattr(layer, "start_gain", 2.0 if getattr(layer, "activation", "none") == "relu" else 1.0)
            _draw(layer.weight, layer.bias, math.sqrt(gain / layer.weight[0].numel()), generator)


def normal(network: nn.Module, seed: int, std: float = 0.02) -> None:
    """Weights normal with that standard deviation, biases zero. Source: CycleGAN, appendix (after DCGAN)."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, LAYERS):
            _draw(layer.weight, layer.bias, std, generator)


@torch.no_grad()
def _draw(weight: Tensor, bias: Tensor | None, std: float, generator: torch.Generator) -> None:
    weight.copy_(torch.randn(weight.shape, generator=generator) * std)
    if bias is not None:
        bias.zero_()
