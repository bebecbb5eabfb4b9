"""The L1 loss of an autoencoder, per sample and mean; its gradient comes from two bits per element."""

import torch
from torch import Tensor

from .._availability import gpu_function
from .._checks import DTYPES, require, require_dtype, require_like, require_need
from .._contract import define, publish
from .._gradients import Gradients, empty_gradients
from .._layout import float32
from .._native import native_function
from . import reference

NAME = "l1_autoencoder_loss"
SIGNS_OF, IN_BYTES = 64, 16  # elements whose signs are packed together, and the bytes they take
_native_forward, _native_backward = native_function(f"{NAME}_forward"), native_function(f"{NAME}_backward")


@publish(reference.l1_autoencoder_loss)
def l1_autoencoder_loss(target: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    """L(v) = mean |v - D(v)| of each sample, and its mean over the batch.

    target, reconstruction: (B, ...) float32, bfloat16 or float16, same shape and dtype; any strides
    returns: per_sample (B,) float32 and mean () float32. Sums are float32 in blocks, then float64.

    The forward pass reads both tensors once and packs the sign of their difference into two bits per element; backward
    reads only these and writes the gradients. They reach both arguments (0 where they are equal); under
    create_graph=True they come from the reference. Raises ValueError when shapes or dtypes differ.
    Source: Nasser 2022, equation (1).
    """
    needs_gradient = torch.is_grad_enabled() and (target.requires_grad or reconstruction.requires_grad)
    per_sample, mean, _ = _forward(target, reconstruction, needs_gradient)
    return per_sample, mean


def check(target: Tensor, reconstruction: Tensor, with_signs: bool) -> None:
    shape = target.shape
    fits = shape == reconstruction.shape and target.dtype == reconstruction.dtype and target.dtype in DTYPES
    if fits and shape and target.numel() > 0:
        return
    shapes = f"target is {tuple(shape)} and reconstruction {tuple(reconstruction.shape)}"
    require(shape == reconstruction.shape, NAME, f"{shapes}; they must be equal")
    require(len(shape) >= 1 and shape[1:].numel() > 0, NAME, f"samples are empty: {shapes}")
    require_dtype(NAME, "target", target.dtype)
    same = target.dtype == reconstruction.dtype
    require(same, NAME, f"reconstruction is {reconstruction.dtype}, target {target.dtype}")


def check_backward(
    signs: Tensor, like: Tensor, grad_per_sample: Tensor | None, grad_mean: Tensor | None, need: list[bool]
) -> None:
    check(like, like, True)
    require_like(NAME, "signs", signs, signs_shape(like), torch.uint8)
    for name, grad, shape in (("grad_per_sample", grad_per_sample, like.shape[:1]), ("grad_mean", grad_mean, ())):
        if grad is not None:
            require_like(NAME, name, grad, shape, torch.float32)
    require_need(NAME, need, [like, like])


def order(tensor: Tensor) -> torch.memory_format:
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def signs_shape(reconstruction: Tensor) -> tuple[int, int]:
    batch = reconstruction.shape[0]
    return batch, -(-reconstruction.numel() // (SIGNS_OF * batch)) * IN_BYTES if batch else 0


def outputs(reconstruction: Tensor, with_signs: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, device = reconstruction.shape[0], reconstruction.device
    signs = signs_shape(reconstruction) if with_signs else (batch, 0)
    per_sample = torch.empty(batch, dtype=torch.float32, device=device)
    mean = torch.empty((), dtype=torch.float32, device=device)
    return per_sample, mean, torch.empty(signs, dtype=torch.uint8, device=device)


def _sizes(tensor: Tensor) -> dict[str, int]:
    batch = tensor.shape[0]
    return {"dtype": DTYPES[tensor.dtype], "batch": batch, "size": tensor.numel() // (batch or 1)}


def _forward_cpu(target, reconstruction, with_signs):
    per_sample, mean, signs = outputs(reconstruction, with_signs)
    dense = order(reconstruction)
    target, reconstruction = target.contiguous(memory_format=dense), reconstruction.contiguous(memory_format=dense)
    _native_forward(
        target=target,
        reconstruction=reconstruction,
        per_sample=per_sample,
        mean=mean,
        signs=signs if with_signs else None,
        **_sizes(target),
    )
    return per_sample, mean, signs


def _forward_fake(target, reconstruction, with_signs):
    return outputs(reconstruction, with_signs)


def gradients(like: Tensor, need: list[bool]) -> list[Tensor]:
    """Empty gradients of target and reconstruction; one not needed has no elements."""
    return empty_gradients([like, like], need, [order(like)] * 2)


def _backward_cpu(signs, like, grad_per_sample, grad_mean, need):
    dtarget, dreconstruction = gradients(like, need)
    _native_backward(
        signs=signs.contiguous(),
        grad_per_sample=float32(grad_per_sample),
        grad_mean=float32(grad_mean),
        dtarget=dtarget if need[0] else None,
        dreconstruction=dreconstruction if need[1] else None,
        **_sizes(like),
    )
    return dtarget, dreconstruction


def _backward_fake(signs, like, grad_per_sample, grad_mean, need):
    return tuple(gradients(like, need))


def _reference(target, reconstruction, with_signs):
    # the signs are for this operator's own backward only
    signs = target.new_empty((target.shape[0], 0), dtype=torch.uint8)
    return *reference.l1_autoencoder_loss(target, reconstruction), signs


_backward = define(
    f"{NAME}_backward(Tensor signs, Tensor like, Tensor? grad_per_sample, Tensor? grad_mean, bool[] need) "
    "-> (Tensor, Tensor)",
    check=check_backward,
    cpu=_backward_cpu,
    cuda=gpu_function(__name__, "backward"),
    fake=_backward_fake,
)


_forward = define(
    f"{NAME}(Tensor target, Tensor reconstruction, bool with_signs) -> (Tensor, Tensor, Tensor)",
    check=check,
    cpu=_forward_cpu,
    cuda=gpu_function(__name__, "forward"),
    fake=_forward_fake,
    reference=_reference,
    gradients=Gradients(
        _backward,
        ["target", "reconstruction"],
        ["per_sample", "mean", "signs"],
        renamed={"like": "reconstruction"},  # it tells shape and order
    ),
)
