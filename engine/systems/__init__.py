"""The systems that can be trained: name -> class."""

from importlib import import_module
from typing import TYPE_CHECKING

from engine.errors import InputError

if TYPE_CHECKING:
    import torch

    from engine.config import TrainConfig
    from engine.systems.base import System

SYSTEMS = {"refiner": ("engine.systems.refiner", "RefinerSystem")}


def system_class(name: str) -> "type[System]":
    """The class of a system. Raises InputError for an unknown name."""
    if name not in SYSTEMS:
        raise InputError(f"unknown system {name!r}; choose from {', '.join(SYSTEMS)}")
    module, attribute = SYSTEMS[name]
    return getattr(import_module(module), attribute)


def build(config: "TrainConfig", device: "str | torch.device") -> "System":
    """The system of `config` with start values from config.seed, on `device`."""
    return system_class(config.system)(config, device)
