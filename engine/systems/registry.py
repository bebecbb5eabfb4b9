"""The systems that can be trained: name -> class."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine.errors import InputError

if TYPE_CHECKING:
    import torch

    from engine.config import TrainConfig
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


def system_class(name: str) -> "type[System]":
    """The class of a system. Raises InputError for an unknown name."""
    if name not in SYSTEMS:
        raise InputError(f"unknown system {name!r}; choose from {', '.join(SYSTEMS)}")
    module, attribute = SYSTEMS[name]
    return getattr(import_module(module), attribute)


def build(config: "TrainConfig", device: "str | torch.device") -> "System":
    """The system of `config` with start values from config.seed, on `device`."""
    from engine.networks.layers import lay_out_library_weights

    system = system_class(config.system)(config, device)
    for network in (*system.networks().values(), *system.averaged().values()):
        lay_out_library_weights(network)
    return system


def config_class(system: str) -> "type[TrainConfig]":
    """The class of a system's configuration. Raises InputError for an unknown name."""
    return system_class(system).config_class


def config_from_json(saved: dict[str, dict[str, Any]]) -> "TrainConfig":
    """The configuration in a config.json (name -> {"value", "origin"}), of its system's class.

    Raises InputError when it cannot be the configuration of a run.
    """
    try:
        kind = config_class(saved["system"]["value"])
    except (TypeError, KeyError):
        raise InputError("config.json is not the configuration of a Kiln run") from None
    return kind.from_json(saved)
