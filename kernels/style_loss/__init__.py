"""The style loss: the Frobenius norm of the difference of two Gram matrices, per image."""

import torch
from torch import Tensor

from .._availability import gpu_function
from .._checks import DTYPES, require, require_dtype, require_like, require_need
from .._contract import define, publish
from .._gradients import Gradients, empty_gradients
from .._layout import dense_order, float32, in_order
from .._native import native_function
from . import reference

NAME = "style_loss"
_native_forward, _native_backward = native_function(f"{NAME}_forward"), native_function(f"{NAME}_backward")


@publish(reference.style_loss)
def style_loss(a: Tensor, b: Tensor, *, squared: bool = False) -> tuple[Tensor, Tensor]:
    """||Gram(a) - Gram(b)||_F of each image, and its mean over the batch; Gram as in `gram`.

    a, b:    (B, C, H, W) float32, bfloat16 or float16, same shape and dtype; any strides (channels_last and contiguous
             are read in place)
    squared: the squared norm instead
    returns: per_sample (B,) float32 and mean () float32. Sums are float32 over blocks of pixels.

    Both Gram matrices are one set of products, half of them by symmetry; only their difference is kept, and only for
    backward, which is one product for each argument that needs it. The gradient is 0 where the norm is. Gradients of
    first order are fused; under create_graph=True they come from the reference, for any order. Raises ValueError when
    shapes or dtypes differ or do not fit. Source: Gatys et al. 2016, equations 3 to 5; per image, as the perceptual
    loss of the reenactment system takes it.
    """
    needs_gradient = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    per_sample, mean, _ = _forward(a, b, squared, needs_gradient)
    return per_sample, mean


def check(a: Tensor, b: Tensor, squared: bool, with_difference: bool) -> None:
    shape = a.shape
    fits = len(shape) == 4 and shape == b.shape and a.dtype == b.dtype and a.dtype in DTYPES
    if fits and a.numel():
        return
    require(len(shape) == 4, NAME, f"a must be (B, C, H, W), not {tuple(shape)}")
    require(shape == b.shape, NAME, f"a is {tuple(shape)} and b {tuple(b.shape)}; they must be equal")
    require(shape[1:].numel() > 0, NAME, f"no empty channels or sides: a is {tuple(shape)}")
    require_dtype(NAME, "a", a.dtype)
    require(a.dtype == b.dtype, NAME, f"b is {b.dtype} but a is {a.dtype}")


def check_backward(
    a: Tensor,
    b: Tensor,
    difference: Tensor,
    per_sample: Tensor,
    grad_per_sample: Tensor | None,
    grad_mean: Tensor | None,
    squared: bool,
    need: list[bool],
) -> None:
    check(a, b, squared, True)
    batch, channels = a.shape[:2]
    of_batch = {"per_sample": per_sample, "grad_per_sample": grad_per_sample}
    shapes = {"difference": (batch, channels, channels), "grad_mean": ()}
    for name, tensor in {"difference": difference, "grad_mean": grad_mean, **of_batch}.items():
        if tensor is not None:
            require_like(NAME, name, tensor, shapes.get(name, (batch,)), torch.float32)
    require_need(NAME, need, [a, b])


def _dense(a: Tensor, b: Tensor) -> dict[str, Tensor | int]:
    """Both as they are read in place, and their sizes, as the native functions take them."""
    batch, channels, height, width = a.shape
    of_a, of_b = dense_order(a), dense_order(b)
    features = {"a": in_order(a, of_a), "b": in_order(b, of_b)}
    planar = {"a_planar": of_a == torch.contiguous_format, "b_planar": of_b == torch.contiguous_format}
    sizes = {"batch": batch, "pixels": height * width, "channels": channels}
    return {"dtype": DTYPES[a.dtype], **features, **planar, **sizes}


def outputs(a: Tensor, with_difference: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, side = a.shape[0], a.shape[1] if with_difference else 0
    shapes = ((batch,), (), (batch, side, side))
    per_sample, mean, difference = (torch.empty(s, dtype=torch.float32, device=a.device) for s in shapes)
    return per_sample, mean, difference


def _forward_cpu(a, b, squared, with_difference):
    results = outputs(a, with_difference)
    per_sample, mean, difference = results
    written = {"per_sample": per_sample, "mean": mean, "difference": difference if with_difference else None}
    _native_forward(**_dense(a, b), **written, squared=squared)
    return results


def _forward_fake(a, b, squared, with_difference):
    return outputs(a, with_difference)


def gradients(a: Tensor, b: Tensor, need: list[bool]) -> list[Tensor]:
    """Empty gradients of a and b; one not needed has no elements."""
    orders = [dense_order(t) if n else torch.contiguous_format for t, n in zip((a, b), need, strict=True)]
    return empty_gradients([a, b], need, orders)


def _backward_cpu(a, b, difference, per_sample, grad_per_sample, grad_mean, squared, need):
    da, db = gradients(a, b, need)
    _native_backward(
        **_dense(a, b),
        difference=difference.contiguous(),
        per_sample=per_sample.contiguous(),
        grad_per_sample=float32(grad_per_sample),
        grad_mean=float32(grad_mean),
        da=da if need[0] else None,
        db=db if need[1] else None,
        squared=squared,
    )
    return da, db


def _backward_fake(a, b, difference, per_sample, grad_per_sample, grad_mean, squared, need):
    return tuple(gradients(a, b, need))


def _reference(a, b, squared, with_difference):
    # the difference is for this operator's own backward only
    return *reference.style_loss(a, b, squared=squared), a.new_empty((a.shape[0], 0, 0), dtype=torch.float32)


_backward = define(
    f"{NAME}_backward(Tensor a, Tensor b, Tensor difference, Tensor per_sample, Tensor? grad_per_sample, "
    "Tensor? grad_mean, bool squared, bool[] need) -> (Tensor, Tensor)",
    check=check_backward,
    cpu=_backward_cpu,
    cuda=gpu_function(__name__, "backward"),
    fake=_backward_fake,
)
_forward = define(
    f"{NAME}(Tensor a, Tensor b, bool squared, bool with_difference) -> (Tensor, Tensor, Tensor)",
    check=check,
    cpu=_forward_cpu,
    cuda=gpu_function(__name__, "forward"),
    fake=_forward_fake,
    reference=_reference,
    gradients=Gradients(_backward, ["a", "b"], ["per_sample", "mean", "difference"]),
)
