"""The systems that can be trained: name -> module and class. A module is imported when its system is asked for."""

from importlib import import_module
from typing import Any

import torch

from engine.config import TrainConfig, saved_value
from engine.errors import InputError
from engine.systems.base import System

SYSTEMS = {
    "refiner": ("engine.systems.refiner", "RefinerSystem"),
    "began": ("engine.systems.began", "BeganSystem"),
    "dcgan": ("engine.systems.dcgan", "DcganSystem"),
    "wgan": ("engine.systems.wgan", "WganSystem"),
    "simgan": ("engine.systems.simgan", "SimganSystem"),
    "cyclegan": ("engine.systems.cyclegan", "CycleganSystem"),
    "ggb": ("engine.systems.ggb", "GgbSystem"),
    "reenact": ("engine.systems.reenact", "ReenactSystem"),
}


def system_class(name: str) -> type[System]:
    """Find the class of a system. Raises InputError for an unknown name."""
    if not isinstance(name, str) or name not in SYSTEMS:
        raise InputError(f"unknown system {str(name)[:40]!r}; choose from {', '.join(SYSTEMS)}")
    module, attribute = SYSTEMS[name]
    return getattr(import_module(module), attribute)


def build(config: TrainConfig, device: str | torch.device) -> System:
    """Build the system of `config` on `device`, with start values from config.seed. Raises InputError."""
    system = system_class(config.system)(config, device)
    if config.freeze_d:
        system.freeze_judges(config.freeze_d)
    return system


def config_class(system: str) -> type[TrainConfig]:
    """Find the class of a system's options. Raises InputError for an unknown name."""
    return system_class(system).config_class


def config_from_json(saved: Any) -> TrainConfig:
    """Make the configuration, of its system's class, from the content of a config.json.

    saved: name of an option -> {"value", "origin"}
    Raises InputError, which names no file, when `saved` cannot be the configuration of a run.
    """
    return config_class(saved_value(saved, "system")).from_json(saved)
