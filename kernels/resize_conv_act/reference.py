"""resize_conv_act in plain differentiable PyTorch: the oracle, the baseline and the --eager path."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .._grad_scale import weigh_samples

ACTIVATIONS = {
    "none": lambda y, slope: y,
    "elu": lambda y, slope: F.elu(y),
    "relu": lambda y, slope: F.relu(y),
    "leaky_relu": lambda y, slope: F.leaky_relu(y, slope),
    "tanh": lambda y, slope: torch.tanh(y),
    "sigmoid": lambda y, slope: torch.sigmoid(y),
    "silu": lambda y, slope: F.silu(y),
}


def resize_conv_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    resize: str = "none",
    stride: int = 1,
    padding: int | None = None,
    padding_mode: str = "zeros",
    transposed: bool = False,
    output_padding: int = 0,
    activation: str = "none",
    second: Tensor | None = None,
    residual: Tensor | None = None,
    grad_scale: Tensor | None = None,
    negative_slope: float = 0.2,
    exact: bool | None = None,
    input_grad_from: int = 0,
) -> Tensor:
    """The same signature and result as the public operator; `exact` changes nothing here."""
    x, second = gradient_from(x, input_grad_from), gradient_from(second, input_grad_from)
    weight = weight if scale is None else scaled(weight, scale, transposed)
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if resize == "up":
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    if second is not None:
        x = torch.cat([x, second], dim=1)
    padding = same_padding(weight) if padding is None else padding
    if transposed:
        layer = partial(F.conv_transpose2d, stride=stride, padding=padding, output_padding=output_padding)
    else:
        layer = partial(convolve, stride=stride, padding=padding, padding_mode=padding_mode)
    y = weigh_samples(layer, [x], weight, bias, grad_scale, x.dtype)
    if residual is not None:  # it is as large as the result
        return ACTIVATIONS[activation]((y[:, :, ::2, ::2] if resize == "down" else y) + residual, negative_slope)
    y = ACTIVATIONS[activation](y, negative_slope)
    return y[:, :, ::2, ::2] if resize == "down" else y


def scaled(weight: Tensor, scale: Tensor, transposed: bool) -> Tensor:
    """The weight of a convolution whose output channels are multiplied by a scale (Cout,)."""
    return weight * scale.view((-1, 1, 1) if transposed else (-1, 1, 1, 1))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, padding: int, padding_mode: str) -> Tensor:
    """conv2d whose border is one of zeros, reflect, replicate and circular."""
    if padding_mode == "zeros":
        return F.conv2d(x, weight, bias, stride, padding)
    return F.conv2d(F.pad(x, [padding] * 4, mode=padding_mode), weight, bias, stride)


def same_padding(weight: Tensor) -> int:
    """The padding that keeps the size at stride 1, or with an even kernel halves it at stride 2."""
    return (weight.shape[-1] - 1) // 2


def gradient_from(tensor: Tensor | None, first: int) -> Tensor | None:
    """The tensor, its samples before `first` without gradient."""
    if tensor is None or not first:
        return tensor
    return torch.cat([tensor[:first].detach(), tensor[first:]])
