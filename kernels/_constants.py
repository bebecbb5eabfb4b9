"""Small constant tensors, copied to a device once and kept.

A tensor made from numbers of the host in every call makes the host wait for the GPU, and a CUDA graph refuses it.
"""

from functools import cache

import torch
from torch import Tensor


def constant(values: tuple, like: Tensor) -> Tensor:
    """`values`, numbers in nested tuples, as a tensor of the dtype and device of `like`; nobody may change it."""
    return _made(values, like.dtype, like.device)


@cache
def _made(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
