"""Who listens to calls: `verify` to those of operators, the benchmark to those of native functions.

The list is empty in ordinary use, where a call pays for one test of it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class OperatorCall:
    """One call of a public operator, after it returned. arguments: by name, those given. results: as returned."""

    operator: str
    arguments: Mapping[str, Any]
    results: Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class NativeCall:
    """One call of a native function, after it returned.

    pointers: addresses by name, 0 for none. integers: sizes and flags by name. seconds: wall-clock time.
    """

    function: str
    pointers: Mapping[str, int]
    integers: Mapping[str, int]
    seconds: float


Observer = Callable[[OperatorCall | NativeCall], None]
observers: list[Observer] = []


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Every call of the block is told to `observer` as it returns, in every thread."""
    observers.append(observer)
    try:
        yield
    finally:
        observers.remove(observer)


def tell(call: OperatorCall | NativeCall) -> None:
    """Tells all observers of a call."""
    for observer in tuple(observers):
        observer(call)
