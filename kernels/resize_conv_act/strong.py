"""resize_conv_act by the best known library parts: what a reader who knows the algebra writes without kernels."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .._constants import constant
from .._grad_scale import weigh_samples
from .reference import convolve, gradient_from, same_padding, scaled

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
    """The same signature and result as the public operator; `exact` changes nothing here.

    "up" is one 4x4 transposed convolution of stride 2 on folded weights, 16 products per pixel of x where the reference
    takes 36; "down" is the convolution at stride 2, a quarter of the reference's products.
    """
    x, second = gradient_from(x, input_grad_from), gradient_from(second, input_grad_from)
    weight = weight if scale is None else scaled(weight, scale, transposed)
    if resize == "up":
        layer = _enlarged
    else:
        x = x if second is None else torch.cat([x, second], dim=1)
        second = None
        where = {"stride": 2 if resize == "down" else stride}
        where["padding"] = same_padding(weight) if padding is None else padding
        if transposed:
            library = partial(F.conv_transpose2d, **where, output_padding=output_padding)
        else:
            library = partial(convolve, **where, padding_mode=padding_mode)
        layer = partial(_apart, library)
    y = weigh_samples(layer, [x, second], weight, bias, grad_scale, x.dtype)
    y = y if residual is None else y.add_(residual)
    return ACTIVATIONS[activation](y, negative_slope)


def _apart(layer: Callable[..., Tensor], x: Tensor, second: None, weight: Tensor, bias: Tensor | None) -> Tensor:
    return layer(x, weight, bias)


def _enlarged(x: Tensor, second: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    channels = x.shape[1]
    y = F.conv_transpose2d(x, folded(weight[:, :channels]), bias, stride=2, padding=1)
    return y if second is None else y.add_(F.conv2d(second, weight[:, channels:], padding=1))


def folded(weight: Tensor) -> Tensor:
    """(Cout, C, 3, 3) -> (C, Cout, 4, 4): nearest x2, then conv3x3, as a transposed convolution."""
    fold = constant(FOLD, weight)
    taps = torch.kron(fold, fold)
    return (weight.transpose(0, 1).flatten(2) @ taps.T).unflatten(2, (4, 4))
