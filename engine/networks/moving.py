"""What reenact and ggb share with --correct: a result made of the source's own pixels, moved, and of painted ones.

A generator that paints everything has to learn the texture of every face; one that moves pixels keeps it. Source: the
shifts and the share are those of first-order motion models (Siarohin et al. 2019), which the papers do not have.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

EXTRA = 3  # channels that the last layer makes beside the image's: shifts along x and y, and a share
START_GAIN = 0.01  # of the last layer: training starts near a still image
# shifts are averaged over squares of this side, with slopes between them: neighbours taken from far apart tear edges
SMOOTH = 2


class Halves(NamedTuple):
    """A result, and the two images that it mixes; each (B, C, H, W)."""

    result: Tensor
    moved: Tensor
    painted: Tensor


def corrected(images: Tensor, made: Tensor) -> Halves:
    """Move the pixels of images, and paint over the rest.

    images:  (B, C, H, W) in [-1, 1]; H and W even
    made:    (B, C + 3, H, W): what is painted, before tanh; shifts along x and y, which tanh bounds to half a side; and
             the share of the moved image, before a sigmoid. Shifts are smoothed (SMOOTH)
    """
    count, channels, height, width = images.shape
    painted, shift, share = made.split([channels, 2, 1], dim=1)
    shift = F.interpolate(F.avg_pool2d(shift, SMOOTH), (height, width), mode="bilinear", align_corners=False)
    still = torch.eye(2, 3, device=images.device, dtype=images.dtype).expand(count, 2, 3)
    places = F.affine_grid(still, [count, channels, height, width], align_corners=False)
    places = places + torch.tanh(shift.to(images.dtype)).permute(0, 2, 3, 1)
    moved = F.grid_sample(images, places, mode="bilinear", padding_mode="border", align_corners=False)
    share, painted = torch.sigmoid(share.to(images.dtype)), torch.tanh(painted.to(images.dtype))
    return Halves(share * moved + (1 - share) * painted, moved, painted)
