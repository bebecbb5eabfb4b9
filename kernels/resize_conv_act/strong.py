"""resize_conv_act by the best known library parts: what a reader who knows the algebra writes without kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import gradient_from

# rows: the four taps of the stride-2 transposed convolution; columns: the three of the convolution after nearest x2
FOLD = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))
# in place: the convolution keeps its inputs for backward, each activation its output, and neither the sum between them
ACTIVATIONS = {
    "none": lambda y, slope: y,
    "elu": lambda y, slope: F.elu(y, inplace=True),
    "relu": lambda y, slope: F.relu(y, inplace=True),
    "leaky_relu": lambda y, slope: F.leaky_relu(y, slope, inplace=True),
    "tanh": lambda y, slope: y.tanh_(),
    "sigmoid": lambda y, slope: y.sigmoid_(),
    "silu": lambda y, slope: F.silu(y),  # its derivative needs the sum
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
    """The same signature and result as the public operator; `exact` changes nothing here.

    "up" is one 4x4 transposed convolution of stride 2 on folded weights, 16 products per pixel of x where the reference
    takes 36; "down" is the convolution at stride 2, a quarter of the reference's products.
    """
    x, second = gradient_from(x, input_grad_from), gradient_from(second, input_grad_from)
    if grad_scale is None:
        y = _convolution(x, weight, bias, second, resize)
    else:
        # as the reference: the parameters' gradient passes through the scaled zero
        held = [None if t is None else t.detach() for t in (x, weight, bias, second)]
        for_weights = _convolution(held[0], weight, bias, held[3], resize)
        for_input = _convolution(x, held[1], held[2], second, resize)
        y = for_input + grad_scale.to(x.dtype).view(-1, 1, 1, 1) * (for_weights - for_weights.detach())
    return ACTIVATIONS[activation](y, negative_slope)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, second: Tensor | None, resize: str) -> Tensor:
    if resize == "up":
        channels = x.shape[1]
        y = F.conv_transpose2d(x, folded(weight[:, :channels]), bias, stride=2, padding=1)
        return y if second is None else y.add_(F.conv2d(second, weight[:, channels:], padding=1))
    if second is not None:
        x = torch.cat([x, second], dim=1)
    return F.conv2d(x, weight, bias, stride=2 if resize == "down" else 1, padding=1)


def folded(weight: Tensor) -> Tensor:
    """(Cout, C, 3, 3) -> (C, Cout, 4, 4): nearest x2, then conv3x3, as a transposed convolution."""
    fold = weight.new_tensor(FOLD)
    taps = torch.kron(fold, fold)
    return (weight.transpose(0, 1).flatten(2) @ taps.T).unflatten(2, (4, 4))
