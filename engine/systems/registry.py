"""The systems that can be trained: name -> class."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

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

# what a trained system is for -> how that is said
KINDS = {
    "refine": "refines images (kiln refine)",
    "generate": "makes images from noise (kiln sample)",
    "drive": "moves an image to other landmarks or another pose (kiln reenact)",
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


def load_trained(
    path: Path | str,
    device: "str | torch.device" = "cpu",
    fused: bool = True,
    ema: bool = True,
    kind: str | None = None,
) -> "tuple[torch.nn.Module, TrainConfig]":
    """The module for use (System.trained) of a run, checkpoint or exported folder, and its training's configuration.

    ema:  the moving average of the generator, or its last weights; an exported folder has one of them
    kind: what it has to be for, one of KINDS; None takes any
    Raises InputError for what is no good checkpoint, or one of another kind.
    """
    from dataclasses import replace

    from engine import checkpoint, export
    from engine.systems.base import load_part

    path, part = Path(path), "ema" if ema else "generator"
    if export.is_exported(path):
        saved, weights = export.read(path)
        part = "generator"
    else:
        found = checkpoint.load(path)
        path, saved, weights = found.path, found.config, found.weights
    system = system_class(saved.system)
    if kind not in (None, system.kind):
        raise InputError(f"{path} is of the system {system.name}, which {KINDS[system.kind]}")
    config = replace(saved, fused=fused)
    module = system.trained(config)
    load_part(module.get_submodule("generator"), weights, part)
    return module.requires_grad_(False).to(device).eval(), config
