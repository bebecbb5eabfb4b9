"""A fully connected layer whose weight gradient can weigh each sample: the library's GEMM, one extra row scaling."""

import torch
from torch import Tensor

from .._availability import Implementation
from .._checks import require, require_factors
from .._contract import define, publish
from .._gradients import Gradients
from . import reference

NAME = "linear"


def _implementations() -> list[Implementation]:
    why = "PyTorch's BLAS is at the machine's limit; grad_scale is one row scaling more"
    rows = [Implementation(NAME, device, "library GEMM", why) for device in ("cpu", "cuda")]
    if not torch.cuda.is_available():
        rows[1] = Implementation(NAME, "cuda", "none", "PyTorch's cuBLAS runs it on an NVIDIA GPU; there is none")
    return rows


@publish(reference.linear, _implementations)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, grad_scale: Tensor | None = None) -> Tensor:
    """x weight^T + bias.

    x:          (B, in) float32, bfloat16 or float16
    weight:     (out, in), bias: (out,) or None, of x's dtype
    grad_scale: (B,) float32: factor of each sample in the gradients of weight and bias only (not of x)

    Returns (B, out). Gradients of any order (with grad_scale, past the first, those of the
    reference). Raises ValueError when a shape or dtype does not fit.
    Source: the one-pass step of the BEGAN discriminator (its fully connected layers).
    """
    if grad_scale is None:
        check(x, weight, bias, None)
        return torch.nn.functional.linear(x, weight, bias)
    return _forward(x, weight, bias, grad_scale)


def check(x: Tensor, weight: Tensor, bias: Tensor | None, grad_scale: Tensor | None) -> None:
    fits = x.dim() == 2 and weight.dim() == 2 and x.shape[1] == weight.shape[1]
    require(fits, NAME, f"x {tuple(x.shape)} and weight {tuple(weight.shape)} must be (B, in) and (out, in)")
    require(bias is None or bias.shape == weight.shape[:1], NAME, f"bias must be ({weight.shape[0]},)")
    require_factors(NAME, grad_scale, x.shape[0])


def _forward_any(x, weight, bias, grad_scale):
    return torch.nn.functional.linear(x, weight, bias)


def _forward_fake(x, weight, bias, grad_scale):
    return x.new_empty((x.shape[0], weight.shape[0]))


def _backward(grad, x, weight, grad_scale, need):
    scaled = (grad * grad_scale.unsqueeze(1)).to(grad.dtype)
    return grad @ weight if need[0] else None, scaled.t() @ x if need[1] else None, scaled.sum(0) if need[2] else None


_forward = define(
    f"{NAME}(Tensor x, Tensor weight, Tensor? bias, Tensor grad_scale) -> Tensor",
    check=check,
    cpu=_forward_any,
    cuda=_forward_any,
    fake=_forward_fake,
    reference=reference.linear,
    gradients=Gradients(_backward, ["x", "weight", "bias"], along={"bias": "weight"}),
    autocast=(),
    triton=False,
)
