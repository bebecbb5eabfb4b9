"""Reflected, repeated and wrapped borders of resize_conv_act in Triton: they are read in place, and never stored.

The input's gradient is formed with the border around it. Then each pixel takes the sum of its own gradient and of those
of the border's pixels that it stands for.
"""

import triton
import triton.language as tl
from torch import Tensor

from .._gpu import tuning
from .._gpu.blocks import rounded
from .._gpu.launch import Cost, launch, size, wide
from .geometry import BORDERS

REPLICATE, CIRCULAR = tl.constexpr(BORDERS["replicate"]), tl.constexpr(BORDERS["circular"])


@triton.jit
def inside_border(at, size, border):
    """The pixel that a position stands for, which is up to a padding before or after an axis of `size` pixels."""
    sign = border - REPLICATE  # where a step to the right leads: -1 reflected, 0 repeated, 1 wrapped around
    turn = tl.where(border == CIRCULAR, size, 0)
    before, after = sign * at + turn, sign * at + (1 - sign) * (size - 1) - turn
    return tl.where(at < 0, before, tl.where(at >= size, after, at))


@triton.jit(do_not_specialize=["H", "W", "padding", "border"])
def conv_border_grad_kernel(
    padded, dx, H, W, C, padding, border, WIDE: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr
):
    """dx (batch, H, W, C) = sums over padded (batch, H + 2 padding, W + 2 padding, C), for BW pixels of a row.

    A pixel's own position comes first, then those before the axis, then those after it, if they stand for the pixel.
    """
    y = tl.program_id(0) % H
    sample = tl.cast(tl.program_id(0) // H, tl.int64) if WIDE else tl.program_id(0) // H
    x, c = tl.program_id(1) * BW + tl.arange(0, BW), tl.program_id(2) * BC + tl.arange(0, BC)
    total = tl.zeros((BW, BC), tl.float32)
    for i in range(2 * padding + 1):
        row = tl.where(i == 0, y, tl.where(i <= padding, -i, H + i - padding - 1))
        if inside_border(row, H, border) == y:
            start = (sample * (H + 2 * padding) + row + padding) * (W + 2 * padding) + padding
            for j in range(2 * padding + 1):
                column = tl.where(j == 0, x, tl.where(j <= padding, -j, W + j - padding - 1))
                inside = (x < W) & (inside_border(column, W, border) == x)
                at = (start + column)[:, None] * C + c[None, :]
                total += tl.load(padded + at, mask=inside[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
    to = ((sample * H + y) * W + x)[:, None] * C + c[None, :]
    tl.store(dx + to, rounded(total, dx.dtype.element_ty), mask=(x < W)[:, None] & (c < C)[None, :])


def fold_border(padded: Tensor, dx: Tensor, padding: int, border: int) -> None:
    """Writes dx (B, C, H, W) from the gradient of the input with its border, both channels_last.

    border: a number of geometry.BORDERS
    """
    batch, channels, height, width = dx.shape
    bc = min(64, max(16, triton.next_power_of_2(channels)))
    bw = tuning.block(width, 2048 // bc)
    launch(
        conv_border_grad_kernel, (batch * height, triton.cdiv(width, bw), triton.cdiv(channels, bc)),
        padded=padded, dx=dx, H=height, W=width, C=channels, padding=padding, border=border,
        WIDE=wide(padded), BW=bw, BC=bc, cost=lambda: Cost(float(padded.numel()), size(padded, dx)),
    )  # fmt: skip
