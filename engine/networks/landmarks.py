"""A small estimator of the 68 landmarks; it learns beside the refiner and judges whether a result kept them."""

import torch
from torch import Tensor, nn

from engine.networks.layers import SMALLEST, Conv, Linear, level_sizes, to_rows
from engine.networks.refiner import LANDMARKS


class LandmarkEstimator(nn.Module):
    """E(v): convs that halve the image down to 4x4, widening to at most 4n, then a linear layer to coordinates."""

    def __init__(self, resolution: int, filters: int, channels: int, *, fused: bool = True):
        super().__init__()
        self.blocks = nn.ModuleList()
        width = channels
        for level in range(1, len(level_sizes(resolution)) + 1):
            wider = filters * min(level, 4)
            self.blocks.append(Conv(width, wider, resize="down", fused=fused))
            width = wider
        side = SMALLEST // 2
        self.head = Linear(side * side * width, 2 * LANDMARKS, fused=fused)

    def forward(self, images: Tensor, grad_scale: Tensor | None = None) -> Tensor:
        """(B, channels, R, R) -> (B, 136): x, y of each landmark, -1 and 1 at the image's borders."""
        x = images
        for block in self.blocks:
            x = block(x, grad_scale=grad_scale)
        return self.head(to_rows(x), grad_scale)


def normalise(landmarks: Tensor, resolution: int) -> Tensor:
    """Scale landmarks (B, 68, 2), in pixels (0 = centre of the first), to (B, 136), -1 and 1 at the image's borders."""
    return ((landmarks.flatten(1) + 0.5) * (2 / resolution) - 1).to(torch.float32)
