"""The layouts in memory that the kernels read: dense, channels_last or contiguous, and float32 parameters."""

import torch
from torch import Tensor

from .._checks import refuse
from .._contract import define
from .._gradients import Gradients
from .._native import native_function

# from how many numbers and channels on a change of order is a kernel's: PyTorch's copies element by element
LEAST_NUMBERS, LEAST_CHANNELS = 1 << 13, 8
_transpose = native_function("layout_transpose")


def channels_last(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself where it lies dense in channels_last order, else a copy that does; None stays None."""
    return None if tensor is None else in_order(tensor, torch.channels_last)


def in_order(tensor: Tensor, order: torch.memory_format) -> Tensor:
    """The tensor itself where it lies dense in this order, else a copy that does."""
    if tensor.is_contiguous(memory_format=order):
        return tensor
    other = torch.channels_last if order is torch.contiguous_format else torch.contiguous_format
    if _is_for_a_kernel(tensor) and tensor.is_contiguous(memory_format=other):
        return _transposed(tensor, order)
    return tensor.contiguous(memory_format=order)


def contiguous(tensor: Tensor) -> Tensor:
    """tensor.contiguous() of (B, C, H, W), by a kernel where there is one; autograd differentiates it."""
    if tensor.is_contiguous() or torch.compiler.is_compiling() or not _is_for_a_kernel(tensor):
        return tensor.contiguous()
    return _contiguous(tensor)


def _is_for_a_kernel(tensor: Tensor) -> bool:
    if tensor.dtype is not torch.float32 or not tensor.is_cpu or tensor.numel() < LEAST_NUMBERS:
        return False
    return tensor.dim() == 4 and tensor.shape[1] >= LEAST_CHANNELS


def _transposed(tensor: Tensor, order: torch.memory_format) -> Tensor:
    """A copy of a dense tensor in the other order. order: of the copy"""
    copy = torch.empty_like(tensor, memory_format=order)
    batch, channels, height, width = tensor.shape
    rows, columns = channels, height * width
    if order is torch.contiguous_format:
        rows, columns = columns, rows
    _transpose(x=tensor, y=copy, batch=batch, rows=rows, columns=columns)
    return copy


def _clone(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _contiguous_cpu(x: Tensor) -> Tensor:
    copy = in_order(x, torch.contiguous_format)
    return copy if copy is not x else _clone(x)


def _check(x: Tensor) -> None:
    if x.dim() != 4 or x.layout is not torch.strided:
        refuse("contiguous", f"x must be a dense (B, C, H, W), not {tuple(x.shape)}")


_contiguous = define(
    "contiguous(Tensor x) -> Tensor",
    check=_check,
    cpu=_contiguous_cpu,
    cuda=_clone,
    fake=lambda x: torch.empty_like(x, memory_format=torch.contiguous_format),
    reference=_clone,
    gradients=Gradients(lambda grad: grad, ["x"]),
    triton=False,
)


def dense_order(features: Tensor) -> torch.memory_format:
    """The order in which a kernel reads features that it takes in either: theirs where dense, else channels_last."""
    planar = features.is_contiguous() and not features.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if planar else torch.channels_last


def float32(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself where it is float32 and contiguous, else a copy that is; None stays None."""
    if tensor is None or (tensor.dtype is torch.float32 and tensor.is_contiguous()):
        return tensor
    return tensor.detach().float().contiguous()


def float32_in_order(weight: Tensor) -> Tensor:
    """The weight itself where it is float32 and dense, contiguous or in channels_last order, else a copy that is."""
    last = weight.is_contiguous(memory_format=torch.channels_last)
    return weight if last and weight.dtype is torch.float32 else float32(weight)
