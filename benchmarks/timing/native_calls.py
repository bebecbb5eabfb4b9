"""The native calls and GPU launches that a piece of code makes: which, on what, and what work that was."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.kernels import _native, _spec

if TYPE_CHECKING:
    from engine.kernels._gpu.launch import Launch


@dataclass(frozen=True)
class Call:
    """One call of a native function."""

    function: str
    pointers: tuple[int, ...]
    integers: tuple[int, ...]
    seconds: float

    def work(self) -> _spec.Work | None:
        """What its operator's spec says of this call; None where it says nothing."""
        owners = [spec for name, spec in _spec.specs().items() if self.function.startswith(name)]
        spec = max(owners, key=lambda spec: len(spec.operator), default=None)
        return spec.work(self.function, self.pointers, self.integers) if spec and spec.work else None


@contextlib.contextmanager
def recorded() -> Iterator[list[Call]]:
    """Every native call of the block, in order, appended as it returns."""
    calls: list[Call] = []
    honest = _native.call

    def call(name: str, pointers: list[int], integers: list[int], floats: list[float]) -> None:
        start = time.perf_counter()
        honest(name, pointers, integers, floats)
        calls.append(Call(name, tuple(pointers), tuple(integers), time.perf_counter() - start))

    _native.call = call
    try:
        yield calls
    finally:
        _native.call = honest


def launched(call: Callable[[], object]) -> "list[Launch]":
    """The GPU kernels that one call launches, its backward passes included."""
    from engine.kernels._gpu.launch import noted  # loads Triton

    # launches are noted by thread: without this, autograd runs backward passes on a GPU in another
    with torch.autograd.set_multithreading_enabled(False), noted() as found:
        call()
    return found


def flops(calls: list[Call]) -> float | None:
    """The FLOPs of the forms that ran; None unless every call's are known."""
    works = [call.work() for call in calls]
    return sum(work.flops for work in works) if works and all(works) else None
