"""resize_conv_act at the same size with few channels, in Triton: every pixel is read three times instead of nine.

A convolution of 64 channels is limited by what the L2 cache delivers: an implicit GEMM reads each pixel once for each
tap. Here a program holds all nine weight matrices and goes down a band of rows. A row, read at one shift to the side,
adds to the sums of three rows of outputs: the one above it, the one beside it and the one below it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._gpu import tuning
from .._gpu.blocks import activate, dot, pixels, rounded, single
from .._gpu.launch import H100, Cost, launch, size, wide

COLUMNS = 64  # columns of pixels that a program has; they may belong to several images
MOST_CHANNELS = 64  # nine weight matrices of 64 x 64 leave room in shared memory for the rows


@triton.jit
def _matrix(weights, n, N, C, c, number):
    """Loads matrix `number`, (C, N), of weights (N, 9, C)."""
    inside = (c < C)[:, None] & (n < N)[None, :]
    return tl.load(weights + n[None, :] * (9 * C) + (number * C + c)[:, None], mask=inside, other=0.0)


@triton.jit(do_not_specialize=["batch", "H", "band_rows", "bands"])
def conv_band_kernel(
    x, weights, bias, residual, y, batch, H, W, C, N, band_rows, bands, slope,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y (batch, H, W, N) from x (batch, H, W, C): a program writes BM columns, BN channels and a band of rows.

    The columns are those of neighbouring images, side by side. weights (N, 9, C), C at most BK; residual is like y.
    WIDE: offsets take 64 bits.
    """
    slope = single(slope)
    n_blocks = tl.cdiv(N, BN)
    n = (tl.program_id(0) % n_blocks) * BN + tl.arange(0, BN)
    rest = tl.program_id(0) // n_blocks
    top = (rest % bands) * band_rows
    end = tl.minimum(top + band_rows, H)
    m = (rest // bands) * BM + tl.arange(0, BM)
    image, column = m // W, m % W
    valid, c = image < batch, tl.arange(0, BK)
    w0 = _matrix(weights, n, N, C, c, 0)
    w1 = _matrix(weights, n, N, C, c, 1)
    w2 = _matrix(weights, n, N, C, c, 2)
    w3 = _matrix(weights, n, N, C, c, 3)
    w4 = _matrix(weights, n, N, C, c, 4)
    w5 = _matrix(weights, n, N, C, c, 5)
    w6 = _matrix(weights, n, N, C, c, 6)
    w7 = _matrix(weights, n, N, C, c, 7)
    w8 = _matrix(weights, n, N, C, c, 8)
    start = (tl.cast(image, tl.int64) if WIDE else image) * (H * W)
    above = tl.zeros((BM, BN), tl.float32)
    beside = tl.zeros((BM, BN), tl.float32)
    for row in range(top - 1, end + 1):
        below = tl.zeros((BM, BN), tl.float32)
        a = pixels(x, start, row, column - 1, H, W, C, c, valid)
        above = dot(a, w6, above, PRECISION)
        beside = dot(a, w3, beside, PRECISION)
        below = dot(a, w0, below, PRECISION)
        a = pixels(x, start, row, column, H, W, C, c, valid)
        above = dot(a, w7, above, PRECISION)
        beside = dot(a, w4, beside, PRECISION)
        below = dot(a, w1, below, PRECISION)
        a = pixels(x, start, row, column + 1, H, W, C, c, valid)
        above = dot(a, w8, above, PRECISION)
        beside = dot(a, w5, beside, PRECISION)
        below = dot(a, w2, below, PRECISION)
        value = above
        if HAS_BIAS:
            value += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        # the outputs above this row are complete now; those above the band belong to the band before it
        wanted = (valid & (row > top))[:, None] & (n < N)[None, :]
        if HAS_RESIDUAL:
            at = (start + (row - 1) * W + column)[:, None] * N + n[None, :]
            value += tl.load(residual + at, mask=wanted, other=0.0).to(tl.float32)
        value = activate(value, ACTIVATION, slope)
        at = (start + (row - 1) * W + column)[:, None] * N + n[None, :]
        tl.store(y + at, rounded(value, y.dtype.element_ty), mask=wanted)
        above, beside = beside, below


def applies(channels: int, dtype: torch.dtype, capability: int) -> bool:
    """Whether conv_band_kernel takes such an input: from Hopper on, matrix units leave registers for its sums."""
    return 16 <= channels <= MOST_CHANNELS and dtype != torch.float32 and capability >= H100


def band(height: int, tiles: int) -> int:
    """Chooses the rows of a band for the least time: rounds of programs on the GPU times the rows that each reads."""
    counts = range(1, max(1, height // 4) + 1)
    rounds = {
        -(-height // count): -(-tiles * -(-height // -(-height // count)) // tuning.processors()) for count in counts
    }
    return min(rounds, key=lambda rows: rounds[rows] * (rows + 2))


def convolve_in_bands(
    x: Tensor,
    weights: Tensor,
    y: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    slope: float,
) -> None:
    """Writes y from x, both channels_last and x padded, by conv_band_kernel; `applies` must be true.

    weights:  (N, 9, C), as `packed` gives them
    residual: like y
    """
    batch, channels, height, width = x.shape
    n = y.shape[1]
    bn = min(64, max(16, triton.next_power_of_2(n)))
    tiles = triton.cdiv(batch * width, COLUMNS) * triton.cdiv(n, bn)
    rows = band(height, tiles)
    bands = triton.cdiv(height, rows)

    def cost() -> Cost:
        read = 3 * size(x) * triton.cdiv(n, bn) * (rows + 2) / rows
        flops = 2.0 * y.numel() * 9 * channels
        gathered = read + tiles * bands * size(weights) / triton.cdiv(n, bn) + size(residual, y)
        return Cost(flops, size(x, weights, bias, residual, y), gathered, matrix=True)

    launch(
        conv_band_kernel, (tiles * bands,), x=x, weights=weights, bias=weights if bias is None else bias,
        residual=y if residual is None else residual, y=y,
        batch=batch, H=height, W=width, C=channels, N=n, band_rows=rows, bands=bands,
        slope=slope, ACTIVATION=activation, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None,
        WIDE=wide(x, y), PRECISION="ieee", BM=COLUMNS, BN=bn, BK=max(16, triton.next_power_of_2(channels)),
        cost=cost, num_warps=8, num_stages=3, oldest=H100,
    )  # fmt: skip
