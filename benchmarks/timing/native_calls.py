"""The native calls and GPU launches that a piece of code makes: which, on what, and what work that was."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from engine.kernels import _spec
from engine.kernels._observers import NativeCall, OperatorCall, observed

if TYPE_CHECKING:
    from engine.kernels._gpu.launch import Launch


def work(call: NativeCall) -> _spec.Work | None:
    """What the operator's spec says of a native call; None where it says nothing."""
    owners = [spec for name, spec in _spec.specs().items() if call.function.startswith(name)]
    spec = max(owners, key=lambda spec: len(spec.operator), default=None)
    return spec.work(call) if spec and spec.work else None


@contextlib.contextmanager
def recorded() -> Iterator[list[NativeCall]]:
    """Every native call of the block, in order, appended as it returns."""
    calls: list[NativeCall] = []

    def record(call: NativeCall | OperatorCall) -> None:
        if isinstance(call, NativeCall):
            calls.append(call)

    with observed(record):
        yield calls


def launched(call: Callable[[], object]) -> "list[Launch]":
    """The GPU kernels that one call launches, its backward passes included."""
    from engine.kernels._gpu.launch import noted  # loads Triton

    # launches are noted by thread: without this, autograd runs backward passes on a GPU in another
    with torch.autograd.set_multithreading_enabled(False), noted() as launches:
        call()
    return launches


def flops(calls: list[NativeCall]) -> float | None:
    """The FLOPs of the forms that ran; None unless every call's are known."""
    works = [work(call) for call in calls]
    return sum(done.flops for done in works) if works and all(works) else None
