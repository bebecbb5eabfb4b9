"""The L1 loss of an autoencoder, per sample and mean, with its gradient formed in the same pass."""

import torch
from torch import Tensor

from .. import _native, _op
from .reference import l1_autoencoder_loss as reference

NAME = "l1_autoencoder_loss"


def l1_autoencoder_loss(target: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    """L(v) = mean |v - D(v)| of each sample, and its mean over the batch.

    target, reconstruction: (B, ...) float32, bfloat16 or float16, same shape and dtype; any strides
    returns: per_sample (B,) float32 and mean () float32. Sums are float32 in blocks, then float64.

    The forward pass reads both tensors once and writes the sign of their difference; backward multiplies it by each
    sample's coefficient. Gradients reach both arguments (0 where they are equal); under create_graph=True they
    come from the reference. Raises ValueError when shapes or dtypes differ. Source: Nasser 2022, equation (1).
    """
    needs_gradient = torch.is_grad_enabled() and (target.requires_grad or reconstruction.requires_grad)
    per_sample, mean, _ = _forward(target, reconstruction, needs_gradient)
    return per_sample, mean


def _check(target: Tensor, reconstruction: Tensor) -> None:
    shapes = f"target is {tuple(target.shape)} and reconstruction {tuple(reconstruction.shape)}"
    _op.require(target.shape == reconstruction.shape, NAME, f"{shapes}; they must be equal")
    _op.require(target.dim() >= 1 and target[:1].numel() + (len(target) == 0) > 0, NAME, f"samples are empty: {shapes}")
    _op.require(
        target.dtype in _op.DTYPES, NAME, f"target is {target.dtype}; float32, bfloat16 and float16 are supported"
    )
    _op.require(
        target.dtype == reconstruction.dtype, NAME, f"reconstruction is {reconstruction.dtype}, target {target.dtype}"
    )
    _op.require(target.device == reconstruction.device, NAME, "target and reconstruction are on different devices")


def _order(tensor: Tensor) -> torch.memory_format:
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _outputs(reconstruction: Tensor, with_sign: bool) -> tuple[Tensor, Tensor, Tensor]:
    shape = reconstruction.shape if with_sign else (0,)
    order = _order(reconstruction) if with_sign else torch.contiguous_format
    sign = torch.empty(shape, dtype=reconstruction.dtype, device=reconstruction.device, memory_format=order)
    per_sample = torch.empty(len(reconstruction), dtype=torch.float32, device=reconstruction.device)
    return per_sample, per_sample.new_empty(()), sign


def _forward_cpu(target, reconstruction, with_sign):
    _check(target, reconstruction)
    per_sample, mean, sign = _outputs(reconstruction, with_sign)
    batch, size = len(target), target[:1].numel()
    if batch:
        order = _order(reconstruction)
        tensors = [target.contiguous(memory_format=order), reconstruction.contiguous(memory_format=order)]
        pointers = [_native.address(t) for t in (*tensors, per_sample, sign if with_sign else None)]
        _native.call(f"{NAME}_forward", pointers, [_op.DTYPES[target.dtype], batch, size], [])
    torch.mean(per_sample, dim=0, out=mean)
    return per_sample, mean, sign


def _forward_fake(target, reconstruction, with_sign):
    _check(target, reconstruction)
    return _outputs(reconstruction, with_sign)


def _scale_cpu(sign, coefficient):
    order = _order(sign)
    sign, coefficient = sign.contiguous(memory_format=order), coefficient.float().contiguous()
    result = torch.empty(sign.shape, dtype=sign.dtype, memory_format=order)
    if len(sign):
        pointers = [_native.address(t) for t in (sign, coefficient, result)]
        _native.call(f"{NAME}_scale", pointers, [_op.DTYPES[sign.dtype], len(sign), sign[:1].numel()], [])
    return result


def _scale_fake(sign, coefficient):
    return torch.empty(sign.shape, dtype=sign.dtype, device=sign.device, memory_format=_order(sign))


def _setup_context(ctx, inputs, output):
    target, reconstruction, ctx.with_sign = inputs
    # the arguments are kept for second derivatives only: no copies, just references to what lives anyway
    ctx.save_for_backward(target, reconstruction, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad_per_sample, grad_mean, _):
    target, reconstruction, sign = ctx.saved_tensors
    need = list(ctx.needs_input_grad[:2])
    if torch.is_grad_enabled():
        upstream = [grad_per_sample, grad_mean]
        return *_op.differentiable_gradients(reference, [target, reconstruction], need, upstream), None
    if grad_per_sample is None and grad_mean is None:
        return None, None, None
    coefficient = sign.new_zeros(len(target), dtype=torch.float32)
    if grad_mean is not None:
        coefficient = coefficient + grad_mean / len(target)
    if grad_per_sample is not None:
        coefficient = coefficient + grad_per_sample
    coefficient = coefficient / (target[:1].numel() or 1)
    for_target = _scale(sign, -coefficient) if need[0] else None
    for_reconstruction = _scale(sign, coefficient) if need[1] else None
    return for_target, for_reconstruction, None


_scale = _op.define(
    f"{NAME}_scale(Tensor sign, Tensor coefficient) -> Tensor",
    cpu=_scale_cpu,
    fake=_scale_fake,
)
_forward = _op.define(
    f"{NAME}(Tensor target, Tensor reconstruction, bool with_sign) -> (Tensor, Tensor, Tensor)",
    cpu=_forward_cpu,
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_autograd,
)
_op.publish(l1_autoencoder_loss, reference, lambda: _op.native_implementation(NAME))
