"""Reads what this process runs on: versions, CPU, GPU, memory, operators. Reading never fails; a missing part is None.

`kiln doctor` uses this file on machines where torch is broken, so torch is imported only inside functions.
"""

import contextlib
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import InputError
from engine.version import __version__

if TYPE_CHECKING:
    import torch

# distribution -> what it does for Kiln
PACKAGES = {
    "torch": "tensors and autograd",
    "triton": "GPU kernels",
    "numpy": "arrays",
    "pillow": "image files",
    "safetensors": "checkpoints",
    "tyro": "command line",
    "tqdm": "progress",
    "matplotlib": "figures",
    "jinja2": "report",
    "nvidia-dali-cuda120": "loading through DALI (CUDA 12 build)",
    "nvidia-dali-cuda130": "loading through DALI (CUDA 13 build)",
    "tensorboard": "TensorBoard events",
    "torchmetrics": "SSIM in `evaluate`",
    "torch-fidelity": "Inception Score and FID in `evaluate`",
    "opencv-python-headless": "face detection in `evaluate`",
    "face-recognition": "identity similarity in `evaluate`",
}
# instruction sets that matter to the operators or to torch, as /proc/cpuinfo names them
_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "asimd",
    "sve",
)


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def attempt(module: str) -> tuple[Any, str | None]:
    """Import a module; returns (module, None), or (None, one line that says why it cannot be imported)."""
    try:
        return importlib.import_module(module), None
    except Exception as error:  # a broken installation may raise ImportError, OSError, RuntimeError or anything else
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"


def cpu() -> dict[str, Any]:
    """The processor: model, cores that this process may use, machine, frequency governor, flags (instruction sets)."""
    model, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about = {"model": model, "cores": cores, "machine": platform.machine(), "governor": _governor()}
    return about | {"flags": [f for f in _FLAGS if f in flags]}


def _governor() -> str | None:
    """How Linux governs the frequency of the processor, or None."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:  # virtual machines have no such file
        return None


def load() -> float | None:
    """How many cores all processes together kept busy in the last minute, or None."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def memory() -> dict[str, int | None]:
    """Main memory in bytes: "total" and "available", None where unknown."""
    sizes: dict[str, int | None] = {"total": None, "available": None}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in ("MemTotal", "MemAvailable"):
                sizes["total" if key == "MemTotal" else "available"] = int(value.split()[0]) * 1024
    except (OSError, ValueError):
        pass
    return sizes


def gpus() -> list[dict[str, Any]]:
    """The CUDA devices that torch sees: name, total "memory" and "free" memory in bytes, compute "capability"."""
    torch, _ = attempt("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        try:
            free = torch.cuda.mem_get_info(index)[0]
        except RuntimeError:
            free = None
        capability = f"{properties.major}.{properties.minor}"
        devices.append(
            {"name": properties.name, "memory": properties.total_memory, "free": free, "capability": capability}
        )
    return devices


def pick_device(name: str) -> "torch.device":
    """The torch device that "cpu", "cuda" or "auto" names; "auto" takes cuda when there is one.

    Raises InputError for "cuda" without a CUDA device.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device here; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def driver() -> str | None:
    """The version of the NVIDIA kernel driver, or None."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    return next((word for word in first.split() if word[:1].isdigit() and "." in word), None)


def operators() -> str | None:
    """The table of `engine.ops.explain()`, or None when the operators cannot be imported."""
    ops, _ = attempt("engine.ops")
    if ops is None or not hasattr(ops, "explain"):
        return None
    try:
        return str(ops.explain())
    except Exception as error:
        return f"explain() failed: {type(error).__name__}: {error}"


def snapshot() -> dict[str, Any]:
    """Everything that a report says about the machine and its versions, as plain JSON values."""
    torch, _ = attempt("torch")
    return {
        "kiln": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch_threads": torch.get_num_threads() if torch else None,
        "torch_cuda": torch.version.cuda if torch else None,
        "cpu": cpu(),
        "memory": memory(),
        "gpus": gpus(),
        "driver": driver(),
        "packages": {name: version for name in PACKAGES if (version := version_of(name))},
        "operators": operators(),
    }


def free_disk(path: Path) -> int | None:
    """Free bytes on the file system of `path`, or of its nearest existing parent; None where unknown."""
    for place in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def loaded_openmp() -> list[str] | None:
    """The paths of the OpenMP runtimes that this process has loaded, from /proc; None without /proc."""
    if sys.platform != "linux":
        return None
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if Path(path).name.startswith(("libgomp", "libomp", "libiomp")))


@contextlib.contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Within the block the environment variable has this value; after the block it has its earlier value again."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
