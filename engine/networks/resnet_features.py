"""Intermediate features of a fixed ResNet-18, for the losses of simgan that compare features."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import InputError
from engine.host.input_files import UnreadableFile, read_input
from engine.networks.initialisation import initialise
from engine.networks.layers import Conv

# mean and standard deviation, in [0, 1], of the images that torchvision's weights were trained on
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEED = 18  # of the random weights, which are the same in every run


class FeatureBlock(nn.Module):
    """relu(shortcut(x) + conv(relu(conv(x)))): a basic block with its normalisations folded into the convolutions."""

    def __init__(self, inputs: int, outputs: int, *, fused: bool):
        super().__init__()
        resize = "none" if inputs == outputs else "down"
        self.conv1 = Conv(inputs, outputs, resize=resize, activation="relu", fused=fused)
        self.conv2 = Conv(outputs, outputs, activation="relu", fused=fused)
        self.conv2.start_gain = 1.0  # a sum follows it
        self.downsample = (
            None
            if inputs == outputs
            else Conv(inputs, outputs, kernel_size=1, stride=2, activation="none", fused=fused)
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv2(self.conv1(x), residual=shortcut)


class ResnetFeatures(nn.Module):
    """ResNet-18 up to its second group of blocks; never trained.

    weights: a file of torchvision's resnet18 (.safetensors, .pth or .pt), with or without further layers; None: random
             weights (seed 18), whose features are projections of local structure that nobody learnt
    digest:  attribute: the SHA-256 of the file, or "random"
    Raises InputError for a file that cannot be read or is of another network. Source: He et al. 2016.
    """

    def __init__(self, weights: Path | None = None, *, fused: bool = True):
        super().__init__()
        self.conv1 = Conv(3, 64, kernel_size=7, stride=2, activation="relu", fused=fused)
        self.conv1.start_gain = 1.0  # of the random weights, which stay as they were
        self.layer1 = nn.Sequential(*(FeatureBlock(64, 64, fused=fused) for _ in range(2)))
        self.layer2 = nn.Sequential(FeatureBlock(64, 128, fused=fused), FeatureBlock(128, 128, fused=fused))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        if weights is None:
            self.digest = "random"
            initialise(self, SEED)
        else:
            self.digest = hashlib.sha256(_bytes(weights)).hexdigest()
            self.load_state_dict(folded(read_weights(weights), self.state_dict(), weights))
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 1 or 3, R, R) in [-1, 1] -> features of 64, 64 and 128 channels at R/2, R/4 and R/8."""
        x = ((images.expand(-1, 3, -1, -1) + 1) / 2 - self.mean) / self.std
        stem = self.conv1(x)
        low = self.layer1(F.max_pool2d(stem, 3, stride=2, padding=1))
        return [stem, low, self.layer2(low)]


def folded(saved: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Multiply batch normalisations (with their running statistics) into the convolutions before them.

    saved:   the tensors of the file, with torchvision's names
    wanted:  name -> tensor of the wanted shape, for each weight and bias of the convolutions
    path:    the file, for messages
    returns: name -> tensor, with the names of `wanted`
    Raises InputError where a tensor is missing or has another shape.
    """
    convolutions = {}
    for name in (key.removesuffix(".weight") for key in wanted if key.endswith(".weight")):
        conv, norm = (name + ".0", name + ".1") if name.endswith("downsample") else (name, name.replace("conv", "bn"))
        try:
            weight = saved[conv + ".weight"].double()
            scale, shift, mean, var = (
                saved[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
            )
        except KeyError as error:
            raise InputError(f"{path} has no {error.args[0]}: --feature-weights takes those of a ResNet-18") from None
        factor = scale / (var + 1e-5).sqrt()
        if weight.shape != wanted[name + ".weight"].shape or factor.shape != weight.shape[:1]:
            raise InputError(f"{path}: {conv} is {tuple(weight.shape)}; --feature-weights takes those of a ResNet-18")
        convolutions[name + ".weight"] = (weight * factor.view(-1, 1, 1, 1)).float()
        convolutions[name + ".bias"] = (shift - mean * factor).float()
    return convolutions


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, or of a file that torch saved. Raises InputError where it holds none."""
    try:
        if path.suffix == ".safetensors":
            return load(_bytes(path))
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # a broken file makes the readers raise errors of many kinds
        raise InputError(f"{path} is not a file of weights ({type(error).__name__})") from None
    if not isinstance(saved, dict) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise InputError(f"{path} is not a file of weights (expected names and tensors)")
    return saved


def _bytes(path: Path) -> bytes:
    try:
        return read_input(path)
    except UnreadableFile as error:
        raise InputError(f"{path}: {error}; check --feature-weights") from None
