"""Loads a trained model as a module that takes batches: `engine.load`, and `load_trained` for the commands."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from engine import checkpoint
from engine.config import TrainConfig
from engine.errors import InputError
from engine.inference import exported, shipped
from engine.systems.base import load_part, require_part
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

    path:  run folder (its best checkpoint where it measured that, else its newest good one), checkpoint folder, or
           exported folder, or the name of a shipped model (`kiln models` lists them)
    ema:   take the moving average of the generator's weights, else the last weights; an exported folder holds only one
           of them, which is taken
    fused: run Kiln's operators, else their plain PyTorch references

    Returns a module whose forward depends on the kind of the system; images are (B, C, R, R) in [-1, 1]:
      refiner, simgan, cyclegan   forward(images, landmarks=None); landmarks (B, 68, 2) where needs_landmarks is True
      began, dcgan, wgan          forward(noise); the module's noise(count, generator) draws noise
      ggb, reenact                forward(images, points, source_points=None); points (B, K, 2) in pixels of R, and
                                  those of the images where needs_source_points is True
    Its weights are float32 and on `device`, whatever the default dtype, device and mode of the process are.
    The first call of each layer folds and packs its weights for the CPU's kernels and keeps them; later calls only
    compute. Raises InputError when `path` holds no trained model.
    """
    return load_trained(path, device, fused, ema).module


@contextmanager
def _plain_defaults() -> Iterator[None]:
    """Within the block torch makes tensors as in a new process: float32, on the CPU, outside inference mode."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.inference_mode(False):
            yield
    finally:
        torch.set_default_dtype(before)


@_plain_defaults()
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
    path, part, step = shipped.resolve(path), "ema" if ema else "generator", None
    if exported.is_exported(path):
        saved, weights = exported.read(path)
        part = exported.PART
    else:
        stored = checkpoint.load_best(path)
        path, saved, weights, step = stored.path, stored.config, stored.weights, stored.step
    system = system_class(saved.system)
    if kind not in (None, system.kind):
        name, does = system.name, system.kind.does
        raise InputError(f"{path} is of the system {name}, which {does} (kiln {system.kind.command})")
    config = dataclasses.replace(saved, fused=fused)
    try:
        _require_fit(config, weights, part)
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}") from None
    module = system.trained(config)
    load_part(module.get_submodule("generator"), weights, part)
    module = module.requires_grad_(False).to(device).eval()
    return Trained(module, config, torch.device(device), path, step)


def _require_fit(config: TrainConfig, weights: dict[str, Tensor], part: str) -> None:
    """Raise InputError where a model of this configuration has other weights; takes no memory for a wrong, huge one."""
    dataclasses.replace(config, device="cpu", precision="fp32").check()
    try:
        with torch.device("meta"):
            generator = system_class(config.system).trained(config).get_submodule("generator")
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"its config.json describes no model ({error})") from None
    require_part(generator, weights, part)
