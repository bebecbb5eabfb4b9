"""VGG-19 up to the features that losses of reenact compare: with torchvision's weights, or fixed random weights.

Source: Simonyan and Zisserman, Very Deep Convolutional Networks, 2015, configuration E.
"""

import pickle
from collections.abc import Iterable
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import InputError
from engine.host.file_digest import sha256
from engine.host.input_files import UnreadableFile, refusal
from engine.networks.initialisation import initialise
from engine.networks.layers import Conv

BLOCKS = (2, 2, 4, 4, 4)  # convolutions before each pooling
WIDTH = 64  # channels of the first block; the blocks after it have 2, 4, 8 and 8 times as many
DIGEST = "dcbb9e9d"  # the first digits of the SHA-256 of torchvision's file, vgg19-dcbb9e9d.pth
SEED = 19  # of the random weights, which are the same in every run
# mean and standard deviation, in [0, 1], of the images that torchvision's weights were trained on
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _layers() -> dict[str, tuple[int, int, int, int]]:
    """List the activations: "relu1_1", "relu1_2", ... -> (channels in, channels out, position, block).

    Channels are in units of the width, 0 for the image; the position is that of the convolution in torchvision's list.
    """
    layers, channels, position = {}, 0, 0
    for block, count in enumerate(BLOCKS, start=1):
        for number in range(1, count + 1):
            wider = min(2 ** (block - 1), 8)
            layers[f"relu{block}_{number}"] = (channels, wider, position, block)
            channels, position = wider, position + 2
        position += 1
    return layers


LAYERS = _layers()


class VGG19(nn.Module):
    """The convolutions up to the deepest of `layers`, frozen, with 2x2 maximum pooling between the blocks.

    layers: names of the wanted features, such as "relu3_3": the third activation of the third block
    width:  channels of the first block; torchvision's weights have 64
    """

    def __init__(self, layers: Iterable[str], *, width: int = WIDTH, fused: bool = True):
        super().__init__()
        self.layers = tuple(layers)
        names = list(LAYERS)
        if unknown := [name for name in self.layers if name not in LAYERS]:
            raise InputError(f"VGG-19 has no {unknown[0]}; its layers are {', '.join(names)}")
        deepest = max(map(names.index, self.layers))
        self.convolutions = nn.ModuleDict()
        for name in names[: deepest + 1]:
            channels_in, channels_out, _, _ = LAYERS[name]
            conv = Conv(channels_in * width or 3, channels_out * width, activation="relu", fused=fused)
            self.convolutions[name] = conv
        scale = torch.tensor([MEAN, DEVIATION]).view(2, 1, 3, 1, 1) * 2
        self.register_buffer("mean", scale[0] - 1, persistent=False)
        self.register_buffer("deviation", scale[1], persistent=False)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images (B, 1 or 3, H, W) in [-1, 1] -> name of each wanted layer -> (B, channels, H / 2^i, W / 2^i)."""
        x = ((images - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)
        features, block = {}, 1
        for name, conv in self.convolutions.items():
            if LAYERS[name][3] > block:
                x, block = F.max_pool2d(x, 2), LAYERS[name][3]
            x = conv(x)
            if name in self.layers:
                features[name] = x
        return features

    def randomise(self) -> None:
        """Draw weights from a fixed seed, normal with variance 2 / fan_in, which keeps the mean square of features."""
        initialise(self, SEED)

    def load(self, path: Path) -> None:
        """Load torchvision's weights (features.0.weight, ...). Raises InputError when the file lacks them."""
        weights = read_weights(path)
        with torch.no_grad():
            for name, conv in self.convolutions.items():
                for kind in ("weight", "bias"):
                    key, weight = f"features.{LAYERS[name][2]}.{kind}", getattr(conv, kind)
                    saved = weights.get(key)
                    if not isinstance(saved, Tensor) or saved.shape != weight.shape:
                        shape = "nothing" if saved is None else str(tuple(getattr(saved, "shape", ())))
                        raise InputError(
                            f"{path} is not torchvision's VGG-19: {key} must be {tuple(weight.shape)} and is {shape}; "
                            "give the state_dict of torchvision.models.vgg19"
                        )
                    weight.copy_(saved)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, or of a state_dict that torch saved, to the CPU. Raises InputError."""
    if wrong := refusal(path):
        raise InputError(f"{path} cannot be read as weights ({wrong}); give a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} cannot be read as weights ({reason}); give a .pth or .safetensors file") from None
    if not isinstance(weights, dict):
        raise InputError(f"{path} holds a {type(weights).__name__}, not a state_dict; save model.state_dict()")
    return weights


def check_digest(path: Path, expected: str | None = None) -> str:
    """Compute and check the SHA-256 of a file.

    expected: its first digits in hexadecimal, at least 8; None: those of torchvision's file
    returns:  all 64 digits
    Raises InputError when the digits differ, or the file cannot be read.
    """
    expected = (expected or DIGEST).lower()
    if len(expected) < 8 or set(expected) - set("0123456789abcdef"):
        raise InputError(f"--vgg-digest {expected} does not begin a SHA-256; give at least 8 hexadecimal digits")
    try:
        digest = sha256(path)
    except UnreadableFile as error:
        raise InputError(f"--vgg {path} {error}; give torchvision's vgg19 file") from None
    if not digest.startswith(expected):
        raise InputError(
            f"--vgg {path} is not the file that is meant: its SHA-256 begins with {digest[:8]}, not {expected}; give "
            f"vgg19-{DIGEST}.pth of torchvision, or name the file you trust with --vgg-digest {digest[:16]}"
        )
    return digest
