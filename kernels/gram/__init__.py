"""The Gram matrix of each image's features, half of it computed."""

import torch
from torch import Tensor

from .._availability import gpu_function
from .._checks import DTYPES, require, require_dtype, require_like
from .._contract import define, publish
from .._gradients import Gradients
from .._layout import dense_order, in_order
from .._native import native_function
from . import reference

NAME = "gram"
_native_forward, _native_backward = native_function(f"{NAME}_forward"), native_function(f"{NAME}_backward")


@publish(reference.gram)
def gram(features: Tensor) -> Tensor:
    """Gram matrix of each image's features: G = F F^T / (C H W).

    features: (B, C, H, W) float32, bfloat16 or float16; any strides (channels_last and contiguous: in place).
    returns:  (B, C, C) float32, symmetric. Sums are float32 over blocks of pixels.

    The products are those of one half; backward is one product, (dG + dG^T) F / (C H W). Gradients of first order are
    fused; under create_graph=True they come from the reference, for any order. Raises ValueError when the shape or
    dtype does not fit. Source: Gatys et al. 2016, equation 3; normalised as in Johnson et al. 2016.
    """
    return _forward(features)


def check(features: Tensor) -> None:
    shape = features.shape
    if len(shape) == 4 and features.dtype in DTYPES and features.numel():
        return
    require(len(shape) == 4, NAME, f"features must be (B, C, H, W), not {tuple(shape)}")
    require_dtype(NAME, "features", features.dtype)
    require(shape[1:].numel() > 0, NAME, f"no empty channels or sides: features is {tuple(shape)}")


def check_backward(grad: Tensor, features: Tensor) -> None:
    check(features)
    batch, channels = features.shape[:2]
    require_like(NAME, "grad", grad, (batch, channels, channels), torch.float32)


def output(features: Tensor) -> Tensor:
    batch, channels, _, _ = features.shape
    return features.new_empty((batch, channels, channels), dtype=torch.float32)


def _sizes(features: Tensor, order: torch.memory_format) -> dict[str, int]:
    batch, channels, height, width = features.shape
    return {
        "dtype": DTYPES[features.dtype],
        "batch": batch,
        "pixels": height * width,
        "channels": channels,
        "planar": order == torch.contiguous_format,
    }


def _forward_cpu(features):
    result = output(features)
    order = dense_order(features)
    dense = in_order(features, order)
    _native_forward(features=dense, result=result, **_sizes(dense, order))
    return result


def _forward_fake(features):
    return output(features)


def _backward_cpu(grad, features):
    order = dense_order(features)
    dense, grad = in_order(features, order), grad.contiguous()
    result = torch.empty_like(dense, memory_format=order)
    _native_backward(features=dense, grad=grad, dfeatures=result, **_sizes(dense, order))
    return result


def _backward_fake(grad, features):
    return torch.empty_like(features, memory_format=dense_order(features))


_backward = define(
    f"{NAME}_backward(Tensor grad, Tensor features) -> Tensor",
    check=check_backward,
    cpu=_backward_cpu,
    cuda=gpu_function(__name__, "backward"),
    fake=_backward_fake,
)
_forward = define(
    f"{NAME}(Tensor features) -> Tensor",
    check=check,
    cpu=_forward_cpu,
    cuda=gpu_function(__name__, "forward"),
    fake=_forward_fake,
    reference=reference.gram,
    gradients=Gradients(_backward, ["features"]),
)
