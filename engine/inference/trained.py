"""Loads a trained model as a module that takes batches: `engine.load`, and `load_trained` for the commands."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from engine import checkpoint
from engine.config import TrainConfig
from engine.errors import InputError
from engine.inference import exported
from engine.systems.base import load_part
from engine.systems.kinds import Kind
from engine.systems.registry import system_class


@dataclass(frozen=True)
class Trained:
    """A trained model, ready for use.

    module: what System.trained of its system makes, with the weights, which need no gradients, in eval mode
    config: the configuration that it was trained with
    device: where the module is
    path:   the checkpoint folder or the exported folder that it was read from
    step:   training steps of the checkpoint; None for an exported folder, which does not record them
    """

    module: nn.Module
    config: TrainConfig
    device: torch.device
    path: Path
    step: int | None


def load(path: Path | str, *, device: str | torch.device = "cpu", ema: bool = True, fused: bool = True) -> nn.Module:
    """The trained model of a run, checkpoint or folder of `kiln export`, in eval mode; its weights need no gradients.

    path:  run folder (its newest good checkpoint), checkpoint folder, or exported folder
    ema:   take the moving average of the generator's weights, else the last weights; an exported folder holds only one
           of them, which is taken
    fused: run Kiln's operators, else their plain PyTorch references

    Returns a module whose forward depends on the kind of the system; images are (B, C, R, R) in [-1, 1]:
      refiner, simgan, cyclegan   forward(images, landmarks=None); landmarks (B, 68, 2) where needs_landmarks is True
      began, dcgan, wgan          forward(noise); the module's noise(count, generator) draws noise
      ggb, reenact                forward(images, points); points (B, K, 2) in pixels of R
    The first call of each layer folds and packs its weights for the CPU's kernels and keeps them; later calls only
    compute. Raises InputError when `path` holds no trained model.
    """
    return load_trained(path, device, fused, ema).module


def load_trained(
    path: Path | str,
    device: str | torch.device = "cpu",
    fused: bool = True,
    ema: bool = True,
    kind: Kind | None = None,
) -> Trained:
    """The trained model of a run, a checkpoint or an exported folder; its files are read once.

    path, ema, fused: as for `load`
    kind: the kind that the system must have; None accepts every kind
    Raises InputError when `path` holds no good checkpoint, or a model of another kind.
    """
    path, part, step = Path(path), "ema" if ema else "generator", None
    if exported.is_exported(path):
        saved, weights = exported.read(path)
        part = "generator"
    else:
        stored = checkpoint.load(path)
        path, saved, weights, step = stored.path, stored.config, stored.weights, stored.step
    system = system_class(saved.system)
    if kind not in (None, system.kind):
        name, does = system.name, system.kind.does
        raise InputError(f"{path} is of the system {name}, which {does} (kiln {system.kind.command})")
    config = dataclasses.replace(saved, fused=fused)
    module = system.trained(config)
    load_part(module.get_submodule("generator"), weights, part)
    module = module.requires_grad_(False).to(device).eval()
    return Trained(module, config, torch.device(device), path, step)
