"""What is kept of tensors for as long as they live."""

import weakref
from typing import Generic, TypeVar

from torch import Tensor

Value = TypeVar("Value")


class OfTensors(Generic[Value]):
    """A value for each of some tensors, by identity; an entry ends with its tensor.

    As torch's WeakTensorKeyDictionary, but looking up takes a tenth of the time.
    """

    def __init__(self) -> None:
        self._values: dict[int, Value] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._values

    def __getitem__(self, tensor: Tensor) -> Value:
        return self._values[id(tensor)]

    def __setitem__(self, tensor: Tensor, value: Value) -> None:
        if id(tensor) not in self._values:
            weakref.finalize(tensor, self._values.pop, id(tensor)).atexit = False
        self._values[id(tensor)] = value

    def get(self, tensor: Tensor, default: Value | None = None) -> Value | None:
        """The value of a tensor, or `default` where it has none."""
        return self._values.get(id(tensor), default)
