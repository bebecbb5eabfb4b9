"""Kiln: a custom-kernel training engine for face-image GANs. Importing it loads neither Triton nor DALI."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

__version__ = "0.2.0"


def _mount_kernels() -> None:
    """Make `engine.kernels` importable where the operators lie beside the package (a checkout, an editable install)."""
    beside = Path(__file__).resolve().parent.parent / "kernels"
    if "engine.kernels" in sys.modules or (Path(__file__).parent / "kernels").is_dir() or not beside.is_dir():
        return
    module = importlib.util.module_from_spec(ModuleSpec("engine.kernels", loader=None, is_package=True))
    module.__path__ = [str(beside)]
    sys.modules["engine.kernels"] = module
    globals()["kernels"] = module


_mount_kernels()
