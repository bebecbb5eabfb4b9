"""One pass that forms the gradient before an activation from the output alone, and the bias's gradient with it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .blocks import derivative, rounded, single
from .launch import Cost, launch, size, wide


@triton.jit
def activation_backward_kernel(
    grad, y, dz, weighted, scale, partial, pixels, N, NP, part_pixels, parts, slope,
    ACTIVATION: tl.constexpr, WRITE: tl.constexpr, SCALED: tl.constexpr, WEIGHTED: tl.constexpr,
    WITH_BIAS: tl.constexpr, WIDE: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dz (batch, pixels, NP) = grad * activation'(y) of grad and y (batch, pixels, N); dz is zero from channel N on.

    WRITE: dz is stored. WEIGHTED: weighted = dz times the sample's scale is stored too. WITH_BIAS: partial
    (batch * parts, N) float32 takes the sum of dz over a part of a sample's pixels, times the sample's scale.
    """
    slope = single(slope)
    part, sample = tl.program_id(0) % parts, tl.program_id(0) // parts
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BN,), tl.float32)
    factor = tl.load(scale + sample) if SCALED else 1.0
    start = (tl.cast(sample, tl.int64) if WIDE else sample) * pixels
    end = tl.minimum((part + 1) * part_pixels, pixels)
    for p0 in range(part * part_pixels, end, BP):
        p = p0 + tl.arange(0, BP)
        inside = (p < end)[:, None] & (n < N)[None, :]
        at = (start + p)[:, None] * N + n[None, :]
        value = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if ACTIVATION != 0:
            output = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
            value = tl.where(inside, value * derivative(output, ACTIVATION, slope), 0.0)
        to, within = (start + p)[:, None] * NP + n[None, :], (p < end)[:, None] & (n < NP)[None, :]
        if WRITE:
            tl.store(dz + to, rounded(value, dz.dtype.element_ty), mask=within)
        if WEIGHTED:
            tl.store(weighted + to, rounded(value * factor, dz.dtype.element_ty), mask=within)
        total += tl.sum(value, axis=0)
    if WITH_BIAS:
        tl.store(partial + tl.program_id(0) * N + n, total * factor, mask=n < N)


def through_activation(
    grad: Tensor, y: Tensor, scale: Tensor | None, activation: int, slope: float, *,
    with_bias: bool, channels: int, weigh: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Forms dz, the gradient before the activation; dz times each sample's scale; and the parts of the bias's gradient.

    grad, y:    (B, N, H, W) channels_last, B > 0
    scale:      (B,) float32 or None; weighs the bias's gradient and, with `weigh`, the second result
    activation: its number, 0 for none
    with_bias:  the third result is wanted
    channels:   how many the first two results have, at least N; channels from N on are zero
    returns:    dz and weighted dz (B, channels, H, W) channels_last, one tensor without a scale or `weigh`, grad itself
                where nothing changes; float32 (rows, N) whose rows sum to the bias's gradient, or None
    """
    batch, n, height, width = grad.shape
    write, weigh = activation != 0 or channels != n, weigh and scale is not None
    if not write and not weigh and not with_bias:
        return grad, grad, None
    pixels, bn = height * width, min(64, max(16, triton.next_power_of_2(channels)))
    # rows that are not whole words take more addresses: fewer elements leave registers for them
    bp = tuning.block(pixels, (1024 if n % 16 == 0 else 512) // bn)
    # a few programs for each multiprocessor; no part is smaller than a block
    parts = max(1, min(triton.cdiv(pixels, bp), triton.cdiv(4 * tuning.processors(), batch)))
    part_pixels = triton.cdiv(triton.cdiv(pixels, parts), bp) * bp
    parts = triton.cdiv(pixels, part_pixels)

    def empty() -> Tensor:
        shape = (batch, channels, height, width)
        return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)

    dz = empty() if write else grad
    weighted = empty() if weigh else dz
    partial = torch.empty((batch * parts, n), dtype=torch.float32, device=grad.device) if with_bias else None
    launch(
        activation_backward_kernel, (batch * parts, triton.cdiv(channels, bn)),
        grad=grad, y=y, dz=dz, weighted=weighted, scale=grad if scale is None else scale,
        partial=grad if partial is None else partial, pixels=pixels, N=n, NP=channels, part_pixels=part_pixels,
        parts=parts, slope=slope, ACTIVATION=activation, WRITE=write, SCALED=scale is not None, WEIGHTED=weigh,
        WITH_BIAS=with_bias, WIDE=wide(dz), BP=bp, BN=bn,
        cost=lambda: Cost(
            5.0 * grad.numel(), size(grad, partial) + size(*(y, dz) if write else ()) + size(weighted) * weigh
        ),
    )  # fmt: skip
    return dz, weighted, partial
