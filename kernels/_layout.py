"""The order in memory in which kernels read and write tensors."""

import torch
from torch import Tensor


def channels_last(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself where it lies dense in channels_last order, else a copy that does; None stays None."""
    return None if tensor is None else tensor.contiguous(memory_format=torch.channels_last)


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
    in_order = weight.is_contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else False
    return weight if in_order and weight.dtype is torch.float32 else float32(weight)
