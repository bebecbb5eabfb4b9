"""Each sample times a factor of its own: the operator to copy. This file is its face: function, checks, two calls.

A new operator is a copy of this folder under another name, with the word `skeleton` replaced by that name in its five
files. Nothing else has to change: the build, `engine.ops`, `explain`, tests and benchmark read the folders of kernels/.
The underscore keeps this one out of `engine.ops`; it is built and tested as all others are.
"""

import torch
from torch import Tensor

from .._availability import gpu_function
from .._checks import DTYPES, require, require_dtype, require_like, require_need
from .._contract import define, publish
from .._gradients import Gradients, empty_gradients, float32_sums, round_sums
from .._layout import float32
from .._native import native_function
from . import reference

NAME = "skeleton"
_native_forward, _native_backward = native_function(f"{NAME}_forward"), native_function(f"{NAME}_backward")


@publish(reference.skeleton)
def skeleton(x: Tensor, scale: Tensor) -> Tensor:
    """y[b] = scale[b] x[b].

    x:       (B, ...) float32, bfloat16 or float16; any strides
    scale:   (B,) of x's dtype
    returns: (B, ...) of x's dtype, contiguous

    Gradients of first order are fused, their sums float32; under create_graph=True they come from the reference, for
    any order. Raises ValueError when a shape, dtype or device does not fit.
    """
    return _forward(x, scale)


def check(x: Tensor, scale: Tensor) -> None:
    """Whether the arguments of the forward pass fit: `define` has it called before every way to run the operator."""
    require(x.dim() >= 1, NAME, f"x must be (B, ...), not {tuple(x.shape)}")
    require_dtype(NAME, "x", x.dtype)
    require(scale.shape == x.shape[:1], NAME, f"scale is {tuple(scale.shape)}; it must be ({len(x)},)")
    require(scale.dtype == x.dtype, NAME, f"scale is {scale.dtype} but x is {x.dtype}")


def check_backward(grad: Tensor, x: Tensor, scale: Tensor, need: list[bool]) -> None:
    """The same of the backward pass, which anybody can call as torch.ops.kiln.skeleton_backward."""
    check(x, scale)
    require_like(NAME, "grad", grad, x.shape, x.dtype)
    require_need(NAME, need, [x, scale])


def output(x: Tensor) -> Tensor:
    """An empty result: the real implementations fill it, the fake one shows its strides to compilers."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def gradients(x: Tensor, scale: Tensor, need: list[bool]) -> list[Tensor]:
    """Empty gradients of x and scale; one not needed has no elements."""
    return empty_gradients([x, scale], need, [torch.contiguous_format] * 2)


def _sizes(x: Tensor) -> dict[str, int]:
    return {"dtype": DTYPES[x.dtype], "batch": len(x), "size": x.shape[1:].numel()}


def _forward_cpu(x, scale):
    y = output(x)
    _native_forward(x=x.contiguous(), scale=float32(scale), y=y, **_sizes(x))
    return y


def _forward_fake(x, scale):
    return output(x)


def _backward_cpu(grad, x, scale, need):
    dx, dscale = gradients(x, scale, need)
    (sums,) = float32_sums([dscale], need[1:])
    read = {"grad": grad.contiguous(), "x": x.contiguous(), "scale": float32(scale)}
    _native_backward(**read, dx=dx if need[0] else None, dscale=sums, **_sizes(x))
    round_sums([sums], [dscale])
    return dx, dscale


def _backward_fake(grad, x, scale, need):
    return tuple(gradients(x, scale, need))


_backward = define(
    f"{NAME}_backward(Tensor grad, Tensor x, Tensor scale, bool[] need) -> (Tensor, Tensor)",
    check=check_backward,
    cpu=_backward_cpu,
    cuda=gpu_function(__name__, "backward"),
    fake=_backward_fake,
)
_forward = define(
    f"{NAME}(Tensor x, Tensor scale) -> Tensor",
    check=check,
    cpu=_forward_cpu,
    cuda=gpu_function(__name__, "forward"),
    fake=_forward_fake,
    reference=reference.skeleton,
    gradients=Gradients(_backward, ["x", "scale"]),
)
