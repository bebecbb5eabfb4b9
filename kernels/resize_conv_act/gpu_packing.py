"""Weights and channels as the matrix kernels of resize_conv_act read them, in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._gpu import tuning
from .._gpu.blocks import rounded
from .._gpu.launch import Cost, launch, size, wide
from .gpu_convolution import FEW_CHANNELS


@triton.jit(do_not_specialize=["rows", "columns", "K", "first", "by_row", "by_column"])
def pack_weights_kernel(
    weight, scale, packed, rows, columns, width, K, first, by_row, by_column,
    FOLD: tl.constexpr, REVERSED: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Packs kernels, (kernel, kernel) each at weight + first + row by_row + column by_column, to (rows, taps, width).

    From columns to width there are zeros. REVERSED: the taps are in reverse order. FOLD: of 3x3 kernels come the 4x4
    taps of nearest x2 and the convolution in one. SCALED: row r is multiplied by scale[r].
    """
    side = 4 if FOLD else K
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column, tap, row = at % width, (at // width) % (side * side), at // (width * side * side)
    inside = (row < rows) & (column < columns)
    source = weight + first + row * by_row + column * by_column
    if REVERSED:
        tap = side * side - 1 - tap
    if FOLD:
        u, v = tap // 4, tap % 4
        value = tl.zeros((BLOCK,), tl.float32)
        for p in tl.static_range(3):
            for q in tl.static_range(3):
                # a pixel of x meets tap u of the spread signal where its two copies meet taps u - 1 and u
                part = ((p == u - 1) | (p == u)) & ((q == v - 1) | (q == v))
                value += tl.load(source + p * 3 + q, mask=inside & part, other=0.0).to(tl.float32)
    else:
        value = tl.load(source + tap, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        value *= tl.load(scale + row, mask=row < rows, other=0.0).to(tl.float32)
    tl.store(packed + at, rounded(value, packed.dtype.element_ty), mask=row < rows)


@triton.jit(do_not_specialize=["pixels"])
def pad_channels_kernel(x, padded, pixels, C, CP: tl.constexpr, WIDE: tl.constexpr, BP: tl.constexpr):
    """padded (pixels, CP) = x (pixels, C), then zeros; CP is a multiple of 16, so that rows are aligned."""
    p = (tl.cast(tl.program_id(0), tl.int64) if WIDE else tl.program_id(0)) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * 16 + tl.arange(0, 16)
    value = tl.load(x + p[:, None] * C + c[None, :], mask=(p < pixels)[:, None] & (c < C)[None, :], other=0.0)
    tl.store(padded + p[:, None] * CP + c[None, :], value, mask=(p < pixels)[:, None])


def aligned(channels: int) -> int:
    """How many channels the matrix kernels read: multiples of 16, whose rows are whole 16-byte words, or just a few."""
    return channels if channels <= FEW_CHANNELS else -(-channels // 16) * 16


def padded(x: Tensor) -> Tensor:
    """Gives x, channels_last, with aligned(channels) channels: x itself, or a copy with zeros after its channels."""
    batch, channels, height, width = x.shape
    wider = aligned(channels)
    if wider == channels:
        return x
    shape = (batch, wider, height, width)
    result = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    pixels, block = batch * height * width, 128
    launch(
        pad_channels_kernel, (triton.cdiv(pixels, block), wider // 16), x=x, padded=result, pixels=pixels, C=channels,
        CP=wider, WIDE=wide(result), BP=block, cost=lambda: Cost(0.0, size(x, result)),
    )  # fmt: skip
    return result


def packed(
    weight: Tensor, dtype: torch.dtype, rows: tuple[int, int], columns: tuple[int, int], first: int, *,
    reverse: bool, fold: bool, scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Packs kernels of weight (A, B, K, K), contiguous, to (rows, taps, aligned columns).

    rows, columns: how many there are, and how many elements of weight lie between neighbours
    first:         element of weight that the first kernel begins with
    scale:         (rows,) contiguous factors of the rows; None: 1
    """
    kernel, taps = weight.shape[-1], 16 if fold else weight.shape[-1] ** 2
    result = torch.empty((rows[0], taps, aligned(columns[0])), dtype=dtype, device=weight.device)
    block = tuning.ELEMENTS
    launch(
        pack_weights_kernel, (triton.cdiv(result.numel(), block),), weight=weight,
        scale=weight if scale is None else scale, packed=result, rows=rows[0], columns=columns[0],
        width=result.shape[2], K=kernel, first=first, by_row=rows[1], by_column=columns[1],
        FOLD=fold, REVERSED=reverse, SCALED=scale is not None, BLOCK=block,
        cost=lambda: Cost(
            10.0 * result.numel() * fold, kernel**2 * rows[0] * columns[0] * weight.element_size() + size(result)
        ),
    )  # fmt: skip
    return result
