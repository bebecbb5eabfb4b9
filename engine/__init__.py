"""Kiln: a custom-kernel training engine for face-image GANs. Importing it loads neither Triton nor DALI."""

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING

from engine.version import __version__ as __version__

if TYPE_CHECKING:
    from engine.fusion import FuseReport as FuseReport
    from engine.fusion import fuse as fuse
    from engine.fusion import unfuse as unfuse
    from engine.inference.trained import load as load

# name -> the module that defines it; imported when the name is first used, because torch is loaded with it
LAZY = {
    "load": "engine.inference.trained",
    "fuse": "engine.fusion",
    "unfuse": "engine.fusion",
    "FuseReport": "engine.fusion",
}


if not TYPE_CHECKING:  # a type checker that sees this function accepts any name

    def __getattr__(name: str) -> object:
        if name not in LAZY:
            raise AttributeError(f"module 'engine' has no attribute {name!r}")
        return getattr(importlib.import_module(LAZY[name]), name)


def _mount_kernels() -> None:
    """Make `engine.kernels` importable where kernels/ lies beside the package (a checkout, an editable install)."""
    operators = Path(__file__).resolve().parent.parent / "kernels"
    if "engine.kernels" in sys.modules or (Path(__file__).parent / "kernels").is_dir() or not operators.is_dir():
        return
    module = importlib.util.module_from_spec(ModuleSpec("engine.kernels", loader=None, is_package=True))
    module.__path__ = [str(operators)]
    sys.modules["engine.kernels"] = module
    globals()["kernels"] = module


_mount_kernels()
