"""What this process runs on: versions, CPU, GPU, memory, operators. Reading it never fails: what is missing is None."""

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

# distribution -> what Kiln uses it for
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
    """Import a module: (module, None), or (None, why not in one line)."""
    try:
        return importlib.import_module(module), None
    except Exception as error:  # a broken installation raises anything from ImportError to OSError and RuntimeError
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"


def cpu() -> dict[str, Any]:
    """Model, cores this process may use, how its frequency is governed, and the instruction sets that matter here."""
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
    found = {"model": model, "cores": cores, "machine": platform.machine(), "governor": _governor()}
    return found | {"flags": [f for f in _FLAGS if f in flags]}


def _governor() -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:  # virtual machines have none
        return None


def load() -> float | None:
    """Cores that all processes together kept busy in the last minute."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def memory() -> dict[str, int | None]:
    """Main memory in bytes: total and available."""
    found: dict[str, int | None] = {"total": None, "available": None}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in ("MemTotal", "MemAvailable"):
                found["total" if key == "MemTotal" else "available"] = int(value.split()[0]) * 1024
    except (OSError, ValueError):
        pass
    return found


def gpus() -> list[dict[str, Any]]:
    """The CUDA devices torch sees: name, memory (bytes, total and free), compute capability."""
    torch, _ = attempt("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        try:
            free = torch.cuda.mem_get_info(index)[0]
        except RuntimeError:
            free = None
        capability = f"{properties.major}.{properties.minor}"
        found.append(
            {"name": properties.name, "memory": properties.total_memory, "free": free, "capability": capability}
        )
    return found


def pick_device(name: str) -> "torch.device":
    """The torch device of "cpu", "cuda" or "auto" (cuda when there is one). Raises InputError without a CUDA device."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device here; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def driver() -> str | None:
    """Version of the NVIDIA kernel driver, or None."""
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
    """Everything a report has to say about the machine, as plain JSON values."""
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
    """Free bytes on the file system of `path` (or of its nearest existing parent)."""
    for place in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def loaded_openmp() -> list[str] | None:
    """Paths of the OpenMP runtimes mapped into this process, from /proc; None where there is no /proc."""
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
    """The environment variable has this value within the block, then what it had before."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
