"""The checks that operators share. A refusal is a ValueError of one line that begins with the operator's name.

They run at every call, so where an operator checks much, its messages are made only where they are needed: `if`
and `refuse` instead of `require`.
"""

from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import NoReturn

import torch
from torch import Tensor

# every dtype that kernels read and write -> its number in _cpu/vector.h
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def refuse(operator: str, message: str) -> NoReturn:
    """Raises ValueError with one line."""
    raise ValueError(f"{operator}: {message}")


def require(condition: bool, operator: str, message: str) -> None:
    """Raises ValueError with one line when an argument does not fit."""
    if not condition:
        refuse(operator, message)


def require_dtype(operator: str, name: str, dtype: torch.dtype) -> None:
    """Raises ValueError unless kernels read this dtype. name: the argument's."""
    if dtype not in DTYPES:
        refuse(operator, f"{name} is {dtype}; float32, bfloat16 and float16 are supported")


def require_like(operator: str, name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Raises ValueError unless the tensor has this shape and dtype."""
    if tensor.shape != shape or tensor.dtype != dtype:
        refuse(operator, f"{name} is {tensor.dtype} {tuple(tensor.shape)}; it must be {dtype} {tuple(shape)}")


def require_activation(operator: str, activation: str, known: Collection[str], negative_slope: float) -> None:
    """Raises ValueError unless the activation is one of those known, and the slope one that it can have."""
    if activation not in known:
        refuse(operator, f"activation is {activation!r}; it must be one of {', '.join(known)}")
    if not 0 <= negative_slope < inf:
        refuse(operator, f"negative_slope is {negative_slope}; it must be at least 0 and finite")


def require_factors(operator: str, grad_scale: Tensor | None, batch: int) -> None:
    """Raises ValueError unless grad_scale, where there is one, has a real factor for each sample."""
    if grad_scale is not None:
        if grad_scale.shape != (batch,):
            refuse(operator, f"grad_scale must be ({batch},)")
        if grad_scale.is_complex():
            refuse(operator, f"grad_scale is {grad_scale.dtype}; it must be real")


def require_need(operator: str, need: Sequence[bool], inputs: Sequence[Tensor | None]) -> None:
    """Raises ValueError unless `need` tells for each input whether its gradient is wanted, of None that it is not."""
    if len(need) != len(inputs):
        refuse(operator, f"need has {len(need)} values; it must have {len(inputs)}")
    for tensor, needed in zip(inputs, need, strict=True):
        if needed and tensor is None:
            refuse(operator, "need asks for the gradient of an argument that is None")


def require_tensors(operator: str, arguments: Mapping[str, object]) -> None:
    """Raises TypeError where an argument is no tensor: a schema's Tensor lets None through."""
    for name, argument in arguments.items():
        if not isinstance(argument, Tensor):
            raise TypeError(f"{operator}: {name} must be a tensor, not {type(argument).__name__}")


def require_one_device(operator: str, arguments: Mapping[str, Tensor | None]) -> None:
    """Raises ValueError unless all tensors, the first of which is not None, are on one device."""
    first_name, first = next(iter(arguments.items()))
    for name, tensor in arguments.items():
        if tensor is not None and tensor.device != first.device:
            refuse(operator, f"{name} is on {tensor.device} but {first_name} on {first.device}")
