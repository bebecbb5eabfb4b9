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
    resize: str = "none",
    activation: str = "none",
    second: Tensor | None = None,
    grad_scale: Tensor | None = None,
    negative_slope: float = 0.2,
    exact: bool | None = None,
    input_grad_from: int = 0,
) -> Tensor:
    """The same signature and result as the public operator; `exact` changes nothing here."""
    x, second = gradient_from(x, input_grad_from), gradient_from(second, input_grad_from)
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if resize == "up":
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    if second is not None:
        x = torch.cat([x, second], dim=1)
    y = weigh_samples(partial(F.conv2d, padding=1), [x], weight, bias, grad_scale, x.dtype)
    y = ACTIVATIONS[activation](y, negative_slope)
    return y[:, :, ::2, ::2] if resize == "down" else y


def gradient_from(tensor: Tensor | None, first: int) -> Tensor | None:
    """The tensor, its samples before `first` without gradient."""
    if tensor is None or not first:
        return tensor
    return torch.cat([tensor[:first].detach(), tensor[first:]])
