"""The style loss: the Frobenius norm of the difference of two Gram matrices, per image."""

import torch
from torch import Tensor

from .. import _native, _op
from .reference import style_loss as reference

NAME = "style_loss"


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


def check(a: Tensor, b: Tensor) -> None:
    shape = a.shape
    fits = len(shape) == 4 and shape == b.shape and a.dtype == b.dtype and a.dtype in _op.DTYPES
    if fits and a.numel() and a.device == b.device:
        return
    _op.require(len(shape) == 4, NAME, f"a must be (B, C, H, W), not {tuple(shape)}")
    _op.require(shape == b.shape, NAME, f"a is {tuple(shape)} and b {tuple(b.shape)}; they must be equal")
    _op.require(shape[1:].numel() > 0, NAME, f"no empty channels or sides: a is {tuple(shape)}")
    _op.require(a.dtype in _op.DTYPES, NAME, f"a is {a.dtype}; float32, bfloat16 and float16 are supported")
    _op.require(a.dtype == b.dtype, NAME, f"b is {b.dtype} but a is {a.dtype}")
    _op.require(a.device == b.device, NAME, f"b is on {b.device} but a on {a.device}")


def _dense(a: Tensor, b: Tensor, squared: bool) -> tuple[Tensor, Tensor, list[int]]:
    """Both to be read in place, and the integers that the native functions take."""
    batch, channels, height, width = a.shape
    orders = _op.order(a), _op.order(b)
    planar = [order == torch.contiguous_format for order in orders]
    sizes = [_op.DTYPES[a.dtype], batch, height * width, channels, squared, *planar]
    return a.contiguous(memory_format=orders[0]), b.contiguous(memory_format=orders[1]), sizes


def outputs(a: Tensor, with_difference: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, side = a.shape[0], a.shape[1] if with_difference else 0
    shapes = ((batch,), (), (batch, side, side))
    per_sample, mean, difference = (torch.empty(s, dtype=torch.float32, device=a.device) for s in shapes)
    return per_sample, mean, difference


def _forward_cpu(a, b, squared, with_difference):
    check(a, b)
    found = outputs(a, with_difference)
    a, b, sizes = _dense(a, b, squared)
    tensors = (a, b, *found[:2], found[2] if with_difference else None)
    _native.call(f"{NAME}_forward", [_native.address(t) for t in tensors], sizes, [])
    return found


def _forward_fake(a, b, squared, with_difference):
    check(a, b)
    return outputs(a, with_difference)


def gradients(a: Tensor, b: Tensor, need: list[bool]) -> list[Tensor]:
    """Empty gradients of a and b; one not needed has no elements."""
    pairs = zip((a, b), need, strict=True)
    return [torch.empty_like(t, memory_format=_op.order(t)) if n else t.new_empty(0) for t, n in pairs]


def _backward_cpu(a, b, difference, per_sample, grad_per_sample, grad_mean, squared, need):
    found = gradients(a, b, need)
    a, b, sizes = _dense(a, b, squared)
    upstream = [None if g is None else g.float().contiguous() for g in (grad_per_sample, grad_mean)]
    results = [g if n else None for g, n in zip(found, need, strict=True)]
    tensors = (a, b, difference.contiguous(), per_sample.contiguous(), *upstream, *results)
    _native.call(f"{NAME}_backward", [_native.address(t) for t in tensors], sizes, [])
    return tuple(found)


def _backward_fake(a, b, difference, per_sample, grad_per_sample, grad_mean, squared, need):
    return tuple(gradients(a, b, need))


def _setup_context(ctx, inputs, output):
    a, b, ctx.squared, _ = inputs
    per_sample, _, difference = output
    ctx.save_for_backward(a, b, difference, per_sample)
    ctx.mark_non_differentiable(difference)
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad_per_sample, grad_mean, _):
    a, b, difference, per_sample = ctx.saved_tensors
    need, squared = list(ctx.needs_input_grad[:2]), ctx.squared
    if torch.is_grad_enabled():

        def of(a, b):
            return reference(a, b, squared=squared)

        upstream = [grad_per_sample, grad_mean]
        return *_op.differentiable_gradients(of, [a, b], need, upstream), None, None
    if grad_per_sample is None and grad_mean is None:
        return None, None, None, None
    for_a, for_b = _backward(a, b, difference, per_sample, grad_per_sample, grad_mean, squared, need)
    return for_a if need[0] else None, for_b if need[1] else None, None, None


_backward = _op.define(
    f"{NAME}_backward(Tensor a, Tensor b, Tensor difference, Tensor per_sample, Tensor? grad_per_sample, "
    "Tensor? grad_mean, bool squared, bool[] need) -> (Tensor, Tensor)",
    cpu=_backward_cpu,
    cuda=_op.gpu(__name__, "backward"),
    fake=_backward_fake,
)
_forward = _op.define(
    f"{NAME}(Tensor a, Tensor b, bool squared, bool with_difference) -> (Tensor, Tensor, Tensor)",
    cpu=_forward_cpu,
    cuda=_op.gpu(__name__, "forward"),
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_autograd,
)


def _decomposition(a, b, squared, with_difference):
    # the difference is for this operator's own backward only
    return *reference(a, b, squared=squared), a.new_empty((len(a), 0, 0), dtype=torch.float32)


_op.publish(style_loss, reference, lambda: _op.own_implementations(NAME), _decomposition)
