"""Start values of every network: from a seed alone, the same for fused and eager, on every device.

    initialise  weights scaled to each layer's activation: refiner, began, simgan, reenact, and the fixed VGG and ResNet
    he_normal   He's scale, whatever the rectifier, also for transposed convolutions: ggb
    normal      one standard deviation for all weights: dcgan, wgan, cyclegan

A layer that starts otherwise says so in an attribute: `start_gain`, which `initialise` and `he_normal` read, replaces
the gain of its activation; `heatmap_scale`, which `initialise` reads, multiplies the weights of a LandmarkConv that
meet heatmaps.
"""

import math

import torch
from torch import Tensor, nn

from engine.networks.layers import Conv, LandmarkConv, Linear

# activation -> variance of the weights times fan_in that keeps the mean square of a signal from layer to layer. ELU
# halves the mean square of a centred input; a gain of 1.5 keeps the scale of a dozen layers without normalisation
GAINS = {"none": 1.0, "elu": 1.5, "relu": 2.0, "leaky_relu": 2 / 1.04, "tanh": 1.0, "sigmoid": 1.0, "silu": 2.8}


def initialise(network: nn.Module, seed: int) -> None:
    """Draw normal weights of variance gain / fan_in, and set biases to zero.

    gain: by the layer's `activation` (GAINS); 1 for a layer without one, such as the two FC and the outputs; the
          layer's `start_gain` where it has that attribute.
    PyTorch's default, variance 1 / (3 fan_in), lets the signal fade to nothing. Source: He et al. 2015, equation 10.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, (Conv, LandmarkConv, Linear)):
            gain = getattr(layer, "start_gain", GAINS[getattr(layer, "activation", "none")])
            drawn = torch.randn(layer.weight.shape, generator=generator)
            if hasattr(layer, "heatmap_scale"):
                drawn[:, -layer.points :] *= layer.heatmap_scale
            _set(layer.weight, drawn * math.sqrt(gain / _fan_in(layer)), layer.bias)


def he_normal(network: nn.Module, seed: int) -> None:
    """Draw normal weights of variance 2 / fan_in, and set biases to zero and normalisations to one.

    The variance is 1 / fan_in where no rectifier follows: before tanh, and in a layer whose name ends with "last".
    pix2pix takes a standard deviation of 0.02 whatever the width: narrow layers without normalisation would fade.
    Source: He et al. 2015, equation 10.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, layer in network.named_modules():
        if isinstance(layer, (Conv, LandmarkConv)):
            linear = name.endswith("last") or getattr(layer, "activation", "") == "tanh"
            gain = getattr(layer, "start_gain", 1 if linear else 2)
            drawn = torch.randn(layer.weight.shape, generator=generator)
            _set(layer.weight, drawn * math.sqrt(gain / _fan_in(layer)), layer.bias)
        elif isinstance(layer, (nn.BatchNorm2d, nn.InstanceNorm2d)):
            layer.reset_parameters()


def normal(network: nn.Module, seed: int) -> None:
    """Draw weights from N(0, 0.02), weights of normalisations from N(1, 0.02), and set biases to zero.

    Source: Radford et al. 2016, section 4, and pytorch/examples; Zhu et al. 2017 (CycleGAN), appendix.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if getattr(layer, "weight", None) is not None:
            mean = 1.0 if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)) else 0.0
            _set(layer.weight, mean + 0.02 * torch.randn(layer.weight.shape, generator=generator), layer.bias)


def _fan_in(layer: nn.Module) -> int:
    """How many weights reach one element of the layer's output."""
    if getattr(layer, "transposed", False):
        # of 4x4 taps with stride 2 a quarter reaches an element
        taps = layer.weight[0, 0].numel() / layer.stride**2
        return int(taps * layer.weight.shape[0])
    return layer.weight[0].numel()


@torch.no_grad()
def _set(weight: Tensor, values: Tensor, bias: Tensor | None) -> None:
    weight.copy_(values)
    if bias is not None:
        bias.zero_()
