"""What runs each operator on this machine, and why: the rows of `explain`, and the GPU kernels where Triton is."""

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

from . import _native

# Triton's own switch for its interpreter: CPU tensors go through the GPU kernels then, slowly, to try and debug them
INTERPRETED = os.environ.get("TRITON_INTERPRET", "") == "1"
OLDEST_TRITON = (3, 6)
NO_TRITON = "the GPU kernels need Triton, which is not installed: pip install triton"


@dataclass(frozen=True)
class Implementation:
    """What runs an operator on one device, and why."""

    operator: str
    device: str
    kind: str  # "native C++", "Triton", "Triton, interpreted", "library GEMM", "none"
    why: str


def gpu_function(package: str, function: str) -> Callable:
    """The function of an operator's gpu.py, imported at its first call: Triton is loaded where a GPU is used."""

    @cache
    def imported() -> Callable:
        why = why_not_interpreted() if INTERPRETED else _why_no_gpu() if torch.cuda.is_available() else ""
        if why:
            raise _native.NativeMissing(why)
        try:
            module = importlib.import_module(".gpu", package)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "triton":
                raise
            raise _native.NativeMissing(NO_TRITON) from None
        return getattr(module, function)

    def run(*args: object) -> object:
        return imported()(*args)

    return run


def why_not_interpreted() -> str:
    """Why Triton cannot interpret kernels here; "" where it can."""
    if importlib.util.find_spec("triton") is None:
        return NO_TRITON
    import numpy
    import triton

    # Triton 3.6 takes an index out of an array of one element as NumPy 2.5 no longer allows
    if _release(triton) < (3, 7) and _release(numpy) >= (2, 5):
        return "Triton 3.6 interprets no kernel beside NumPy 2.5 or newer: pip install 'numpy<2.5'"
    return ""


def _release(package: ModuleType) -> tuple[int, int]:
    """Major and minor version of an imported package."""
    major, minor = package.__version__.split(".")[:2]
    return int(major), int(minor)


def own_implementations(operator: str) -> list[Implementation]:
    """The rows of explain() of an operator written in C++ for the CPU and in Triton for NVIDIA GPUs."""
    return [_cpu_row(operator), _cuda_row(operator)]


def _cpu_row(operator: str) -> Implementation:
    if INTERPRETED:
        if why := why_not_interpreted():
            return Implementation(operator, "cpu", "none", why)
        why = "TRITON_INTERPRET=1: the GPU kernels, interpreted; correct and slow, for debugging"
        return Implementation(operator, "cpu", "Triton, interpreted", why)
    try:
        native = _native.load()
    except _native.NativeMissing as error:
        return Implementation(operator, "cpu", "none", str(error))
    best, used = native.machine_isa(), native.isa()
    why = f"{used}, the best of this machine" if best == used else f"{used}: KILN_ISA caps this machine's {best}"
    return Implementation(operator, "cpu", "native C++", why)


def _cuda_row(operator: str) -> Implementation:
    why = _why_no_gpu()
    if why:
        return Implementation(operator, "cuda", "none", why)
    names = sorted({f"sm_{major}{minor}" for major, minor in map(torch.cuda.get_device_capability, _devices())})
    why = f"compiled for {', '.join(names)} at the first call of each shape"
    return Implementation(operator, "cuda", "Triton", why)


def _devices() -> range:
    return range(torch.cuda.device_count())


def _why_no_gpu() -> str:
    """Why Triton kernels cannot run here; "" where they can."""
    if not torch.cuda.is_available():
        built = "this torch is built for the CPU" if torch.version.cuda is None else "torch finds no CUDA device"
        return f"Triton kernels need an NVIDIA GPU (compute capability 8.0 or newer): {built}"
    if importlib.util.find_spec("triton") is None:
        return NO_TRITON
    if (version := _triton_version()) and version < OLDEST_TRITON:
        needed, found = (".".join(map(str, numbers)) for numbers in (OLDEST_TRITON, version))
        return f"the GPU kernels need Triton {needed} or newer, not {found}: pip install 'triton>={needed}'"
    oldest = min(map(torch.cuda.get_device_capability, _devices()))
    if oldest < (8, 0):
        return f"the GPU has compute capability {oldest[0]}.{oldest[1]}; the Triton kernels need 8.0 (Ampere) or newer"
    return ""


def _triton_version() -> tuple[int, ...]:
    """The installed Triton's version, two numbers; () where nothing says it. Triton is not imported."""
    try:
        return tuple(int(number) for number in importlib.metadata.version("triton").split(".")[:2])
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ()
