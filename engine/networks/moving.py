"""What reenact and ggb share with --correct: a result made of the source's own pixels, moved, and of painted ones.

A generator that paints everything has to learn the texture of every face; one that moves pixels keeps it. Source: the
shifts and the share are those of first-order motion models (Siarohin et al. 2019), which the papers do not have. With
--source-points the shifts start from those of the landmarks, between which they are interpolated (Shepard 1968).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

EXTRA = 3  # channels that the last layer makes beside the image's: shifts along x and y, and a share
START_GAIN = 0.01  # of the last layer: training starts near a still image
# shifts are averaged over squares of this side, with slopes between them: neighbours taken from far apart tear edges
SMOOTH = 2
# of the interpolation between landmarks, in sides of the image: nearer than NEAR a landmark counts alike; at FAR from
# all of them shifts are half of what they say
NEAR, FAR = 0.02, 0.45


class Halves(NamedTuple):
    """A result, and the two images that it mixes; each (B, C, H, W)."""

    result: Tensor
    moved: Tensor
    painted: Tensor


@torch.no_grad()
def between_points(source: Tensor, target: Tensor, side: int) -> Tensor:
    """Where pixels come from when the source's landmarks go to the target's, and what is between them goes along.

    source, target: (B, K, 2) x, y in pixels of an image of this side; a point that one of them lacks (NaN) says nothing
    returns:        (B, 2, side / SMOOTH, side / SMOOTH), shifts along x and y in half sides, one for each square
    """
    known = (source + target).isfinite().all(2)[..., None]
    shifts = torch.where(known, source - target, 0) * (2 / side)
    middles = (torch.arange(side // SMOOTH, device=target.device) + 0.5) * SMOOTH - 0.5
    columns, rows = (torch.where(known, target, 0).float()[..., axis, None] - middles for axis in (0, 1))
    squared = (columns.square()[:, :, None, :] + rows.square()[:, :, :, None]) / side**2
    weights = known[..., None] / (squared + NEAR**2).square()
    still = known.sum(1).clamp(min=1)[..., None] / FAR**4
    # no matrix product: autocast would make it in bf16, and shifts some tenths of a pixel wrong
    ways = shifts.float()[..., None, None]
    sums = torch.stack([(weights * ways[:, :, axis]).sum(1) for axis in (0, 1)], 1)
    return sums / (weights.sum(1, keepdim=True) + still[:, None])


def moved(images: Tensor, shifts: Tensor) -> Tensor:
    """Images (B, C, H, W) taken elsewhere: shifts (B, 2, h, w) along x and y in half sides, with slopes between."""
    count, channels, height, width = images.shape
    # the gradient of grid_sample reads outside of its images where a shift is NaN, as in a training that diverges
    shifts = F.interpolate(shifts.nan_to_num(), (height, width), mode="bilinear", align_corners=False)
    still = torch.eye(2, 3, device=images.device, dtype=images.dtype).expand(count, 2, 3)
    places = F.affine_grid(still, [count, channels, height, width], align_corners=False)
    places = places + shifts.to(images.dtype).permute(0, 2, 3, 1)
    return F.grid_sample(images, places, mode="bilinear", padding_mode="border", align_corners=False)


def corrected(images: Tensor, made: Tensor, start: Tensor | None = None) -> Halves:
    """Move the pixels of images, and paint over the rest.

    images:  (B, C, H, W) in [-1, 1]; H and W even
    made:    (B, C + 3, H, W): what is painted, before tanh; shifts along x and y, which tanh bounds to half a side; and
             the share of the moved image, before a sigmoid. Shifts are smoothed (SMOOTH)
    start:   (B, 2, H / SMOOTH, W / SMOOTH), shifts to which those are added; None: none
    """
    painted, shift, share = made.to(images.dtype).split([images.shape[1], 2, 1], dim=1)
    shifts = torch.tanh(F.avg_pool2d(shift, SMOOTH))
    of_source = moved(images, shifts if start is None else shifts + start)
    share, painted = torch.sigmoid(share), torch.tanh(painted)
    return Halves(share * of_source + (1 - share) * painted, of_source, painted)
