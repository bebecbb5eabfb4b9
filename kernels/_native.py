"""The compiled module, and one clear error where it is missing."""

import os
from functools import cache
from time import perf_counter
from types import ModuleType

import torch  # before the extension: it takes its OpenMP symbols from the runtime that torch loads

from ._observers import NativeCall, observers, tell

BUILD_HINT = "run `pip install .` (or `python setup.py build_ext --inplace` in a checkout), or use --eager"


class NativeMissing(ImportError):
    """What runs an operator on a device (engine._native, Triton) is not installed here, or does not load."""


@cache
def load() -> ModuleType:
    """The extension, with the instruction set capped by KILN_ISA. Raises NativeMissing with what to do."""
    try:
        from engine import _native
    except ImportError as error:
        raise NativeMissing(f"the compiled operators (engine._native) do not load ({error}): {BUILD_HINT}") from None
    if limit := os.environ.get("KILN_ISA"):
        try:
            _native.limit_isa(limit)
        except ValueError as error:
            raise NativeMissing(f"KILN_ISA: {error}") from None
    return _native


def call(name: str, pointers: list[int], integers: list[int], floats: list[float]) -> None:
    """Runs native function `name` on as many threads as torch uses."""
    if not observers:
        load().call(name, torch.get_num_threads(), pointers, integers, floats)
        return
    start = perf_counter()
    load().call(name, torch.get_num_threads(), pointers, integers, floats)
    seconds = perf_counter() - start
    tell(NativeCall(name, dict(enumerate(pointers)), dict(enumerate(integers)), seconds))


def address(tensor: torch.Tensor | None) -> int:
    """The address of a dense tensor's first element; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
