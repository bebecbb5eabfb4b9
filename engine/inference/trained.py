"""`engine.load`: a trained model as a module, ready for batches."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def load(
    path: "Path | str", *, device: "str | torch.device" = "cpu", ema: bool = True, fused: bool = True
) -> "torch.nn.Module":
    """The trained model of a run, a checkpoint or a folder of `kiln export`, in eval mode and without gradients.

    path:  run folder (its newest good checkpoint), checkpoint folder, or exported folder
    ema:   the moving average of the generator's weights, or the last ones; an exported folder holds one of them
    fused: Kiln's operators, or their plain PyTorch references

    Returns a module whose forward depends on what the system is for; images are (B, C, R, R) in [-1, 1]:
      refiner, simgan, cyclegan   forward(images, landmarks=None); landmarks (B, 68, 2) where needs_landmarks is True
      began, dcgan, wgan          forward(noise); noise(count, generator) makes some
      ggb, reenact                forward(images, points); points (B, K, 2) in pixels of R
    The first call of each layer folds and packs its weights for the CPU's kernels, and keeps them: later calls only
    compute. Raises InputError for what is no trained model.
    """
    from engine.systems.registry import load_trained

    return load_trained(path, device, fused, ema)[0]
