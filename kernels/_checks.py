"""The checks that operators share. A refusal is a ValueError of one line that begins with the operator's name."""

import torch
from torch import Tensor

# every dtype that kernels read and write -> its number in _cpu/vector.h
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def require(condition: bool, operator: str, message: str) -> None:
    """Raises ValueError with one line when an argument does not fit."""
    if not condition:
        raise ValueError(f"{operator}: {message}")


def require_dtype(operator: str, name: str, dtype: torch.dtype) -> None:
    """Raises ValueError unless kernels read this dtype. name: the argument's."""
    if dtype not in DTYPES:
        require(False, operator, f"{name} is {dtype}; float32, bfloat16 and float16 are supported")


def require_device(operator: str, name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    """Raises ValueError unless the tensor is on the device of the operator's first tensor."""
    if tensor.device != first.device:
        require(False, operator, f"{name} is on {tensor.device} but {first_name} on {first.device}")
