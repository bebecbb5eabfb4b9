"""The compiled module, and one clear error where it is missing."""

import os
from collections.abc import Callable
from functools import cache
from time import perf_counter
from types import ModuleType
from typing import Any

import torch  # imported before the extension, which takes its OpenMP symbols from the runtime that torch loads

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


def native_function(name: str) -> Callable[..., None]:
    """The native function of this name, which takes its arguments by the names that its C++ states (KILN_FUNCTION).

    As keywords, or in one dictionary, which saves a microsecond where they are many.
    A tensor, dense in the order that the function reads, stands for the address of its first element; None for no
    tensor. It asks for as many threads as torch uses. It is looked up at its first call: without the extension an
    operator still imports, and that call raises NativeMissing. Raises TypeError when a name is missing or unknown,
    ValueError when a size is negative or too large or a tensor is missing, MemoryError when its sums find no memory.
    """
    run: Callable[[int, dict[str, Any]], None] | None = None
    threads = torch.get_num_threads

    def call(given: dict[str, Any] | None = None, /, **named: Any) -> None:
        nonlocal run
        arguments = named if given is None else given
        if run is None:
            run = load().function(name)
        if not observers:
            run(threads(), arguments)
            return
        start = perf_counter()
        run(threads(), arguments)
        seconds = perf_counter() - start
        tensors = {key: v for key, v in arguments.items() if v is None or isinstance(v, torch.Tensor)}
        pointers = {key: 0 if v is None else v.data_ptr() for key, v in tensors.items()}
        tell(NativeCall(name, pointers, {k: int(v) for k, v in arguments.items() if isinstance(v, int)}, seconds))

    return call
