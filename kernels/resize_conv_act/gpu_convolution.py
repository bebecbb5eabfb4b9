"""Convolutions of every kind as one implicit GEMM on channels_last tensors in Triton; no patches are copied in memory.

Along each axis, with spread(x) the signal x with spread - 1 zeros between its pixels:

    y[o] = sum over i of spread(x)[stride o - padding + i] w[i]

A convolution has a spread of 1. Its input's gradient, which is the transposed convolution, has the stride as its
spread; of the zeros nothing is read: the outputs of a phase o % spread take the taps that meet pixels of x.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._gpu import tuning
from .._gpu.blocks import activate, dot, quotient, rounded, single
from .._gpu.launch import Cost, capability, launch, noted_choices, size, wide
from . import ACTIVATION_NUMBERS
from .gpu_band import applies, convolve_in_bands
from .gpu_border import inside_border

FEW_CHANNELS = 8  # with so many or fewer, taps and channels are one axis, so that no tile is mostly padding
# where the second input's products are taken: beside x's, or 3x3 around each pixel of y (beside nearest x2)
BESIDE, AROUND = tl.constexpr(1), tl.constexpr(2)


class Taps(NamedTuple):
    """Which pixels a product takes, by the formula of this module; padding may be below zero.

    border: what x has beside it, a number of geometry.BORDERS; other than 0 with a spread of 1 only
    """

    kernel: int
    stride: int
    spread: int
    padding: int
    border: int = 0

    @property
    def adjoint(self) -> "Taps":
        """The taps of the input's gradient, on weights whose taps are in reverse order."""
        return Taps(self.kernel, self.spread, self.stride, self.kernel - 1 - self.padding)


@triton.jit
def _add_products(
    acc, source, weights, sample, y0, x0, valid, n, N, H, W, C, first, rows, columns, K, border,
    SPREAD: tl.constexpr, BORDERED: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to acc (BM, BN) the products of rows x columns taps from pixel (y0, x0) of source (batch, H, W, C) on.

    weights is (N, K^2, C); a row takes the taps from `first` on, SPREAD apart. FLAT: taps and C are one axis.
    """
    k = tl.arange(0, BK)
    start = (tl.cast(sample, tl.int64) if WIDE else sample) * (H * W)
    by_n = K * K * C
    if FLAT:
        for k0 in range(0, rows * columns * C, BK):
            at = k0 + k
            tap = quotient(at, C)
            i = quotient(tap, columns)
            c, j = at - tap * C, tap - i * columns
            y, x = y0[:, None] + i[None, :], x0[:, None] + j[None, :]
            if BORDERED:
                y, x = inside_border(y, H, border), inside_border(x, W, border)
            inside = valid[:, None] & (at < rows * columns * C)[None, :] & (y >= 0) & (y < H) & (x >= 0) & (x < W)
            a = tl.load(source + (start[:, None] + y * W + x) * C + c[None, :], mask=inside, other=0.0)
            matrix = first + (i * K + j) * SPREAD
            inside = (at < rows * columns * C)[:, None] & (n < N)[None, :]
            b = tl.load(weights + n[None, :] * by_n + (matrix * C + c)[:, None], mask=inside, other=0.0)
            acc = dot(a, b, acc, PRECISION)
    else:
        i, j, c0 = 0, 0, 0  # counted, because divisions by runtime sizes would take time in each step
        for _ in range(rows * columns * tl.cdiv(C, BK)):
            at = c0 + k
            y, x = y0 + i, x0 + j
            if BORDERED:
                y, x = inside_border(y, H, border), inside_border(x, W, border)
            inside = valid & (y >= 0) & (y < H) & (x >= 0) & (x < W)
            pixel = (start + y * W + x) * C
            a = tl.load(source + pixel[:, None] + at[None, :], mask=inside[:, None] & (at < C)[None, :], other=0.0)
            matrix = first + (i * K + j) * SPREAD
            inside = (at < C)[:, None] & (n < N)[None, :]
            b = tl.load(weights + n[None, :] * by_n + (matrix * C + at)[:, None], mask=inside, other=0.0)
            acc = dot(a, b, acc, PRECISION)
            c0 += BK
            j += tl.where(c0 >= C, 1, 0)
            i += tl.where(j == columns, 1, 0)
            c0, j = tl.where(c0 >= C, 0, c0), tl.where(j == columns, 0, j)
    return acc


@triton.jit
def _start(sample, oy, ox, N, height, width, WIDE: tl.constexpr):
    """Where the channels of the pixels (oy, ox) of images begin in a result (batch, height, width, N)."""
    return ((tl.cast(sample, tl.int64) if WIDE else sample) * (height * width) + oy * width + ox) * N


# whether these are multiples of 16 tells the compiler nothing that it can use: one code serves all
_SCALARS = ["batch", "H", "W", "height", "width", "K", "stride", "shift", "rest", "border"]


@triton.jit(do_not_specialize=_SCALARS)
def conv_kernel(
    x, weights, second, second_weights, bias, residual, y, batch, H, W, C, C2, N, grid_height, grid_width, height,
    width, K, stride, shift, rest, border, slope,
    SPREAD: tl.constexpr, SECOND: tl.constexpr, BORDERED: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, FLAT: tl.constexpr, FLAT2: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BK2: tl.constexpr,
):  # fmt: skip
    """y (batch, height, width, N) from x (batch, H, W, C): a program has BM pixels of a phase and BN channels.

    The padding is SPREAD shift + rest. second holds further channels: (batch, H, W, C2) for BESIDE, (batch, height,
    width, C2) for AROUND, 0: there is none. residual is like y. BORDERED: `border` says what is beside x. WIDE: offsets
    take 64 bits.
    """
    slope = single(slope)
    pid = tl.program_id(0)
    n_blocks = tl.cdiv(N, BN)
    n = (pid % n_blocks) * BN + tl.arange(0, BN)
    block, phase_y, phase_x = pid // n_blocks, 0, 0
    if SPREAD > 1:
        phase_y, phase_x = block % (SPREAD * SPREAD) // SPREAD, block % SPREAD
        block = block // (SPREAD * SPREAD)
    pixels = grid_height * grid_width
    if WIDE:
        block, pixels = tl.cast(block, tl.int64), tl.cast(pixels, tl.int64)
    m = block * BM + tl.arange(0, BM)
    valid = m < batch * pixels
    sample, inner = tl.cast(m // pixels, tl.int32), tl.cast(m % pixels, tl.int32)
    gy, gx = inner // grid_width, inner % grid_width
    # the first pixel that the taps take, the first tap, how many there are, and where their sum goes
    y0, x0, first, rows, columns, oy, ox = stride * gy - shift, stride * gx - shift, 0, K, K, gy, gx
    if SPREAD > 1:
        late_y, late_x = tl.where(phase_y > rest, 1, 0), tl.where(phase_x > rest, 1, 0)
        i, j = rest - phase_y + late_y * SPREAD, rest - phase_x + late_x * SPREAD
        y0, x0, first = y0 + late_y, x0 + late_x, i * K + j
        rows, columns = tl.cdiv(K - i, SPREAD), tl.cdiv(K - j, SPREAD)
        oy, ox = SPREAD * gy + phase_y, SPREAD * gx + phase_x
        valid = valid & (oy < height) & (ox < width)
    acc = tl.zeros((BM, BN), tl.float32)
    acc = _add_products(
        acc, x, weights, sample, y0, x0, valid, n, N, H, W, C, first, rows, columns, K, border,
        SPREAD, BORDERED, FLAT, WIDE, BK, PRECISION,
    )  # fmt: skip
    if SECOND == BESIDE:
        acc = _add_products(
            acc, second, second_weights, sample, y0, x0, valid, n, N, H, W, C2, first, rows, columns, K, border,
            SPREAD, BORDERED, FLAT2, WIDE, BK2, PRECISION,
        )  # fmt: skip
    elif SECOND == AROUND:
        acc = _add_products(
            acc, second, second_weights, sample, oy - 1, ox - 1, valid, n, N, height, width, C2, 0, 3, 3, 3, 0,
            1, False, FLAT2, WIDE, BK2, PRECISION,
        )  # fmt: skip
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        pixel = _start(sample, oy, ox, N, height, width, WIDE)
        inside = valid[:, None] & (n < N)[None, :]
        acc += tl.load(residual + pixel[:, None] + n[None, :], mask=inside, other=0.0).to(tl.float32)
    acc = activate(acc, ACTIVATION, slope)
    # formed here, so that they take no registers during the activation
    pixel = _start(sample, oy, ox, N, height, width, WIDE)
    inside = valid[:, None] & (n < N)[None, :]
    tl.store(y + pixel[:, None] + n[None, :], rounded(acc, y.dtype.element_ty), mask=inside)


def precision(dtype: torch.dtype, exact: bool) -> str:
    """How float32 products are formed, as tl.dot names it; half-precision products have one way only."""
    if dtype != torch.float32 or exact:
        return "ieee"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3"


def _block(channels: int, dtype: torch.dtype) -> int:
    """Chooses the channels of a step, for few steps and little padding in the last one."""
    if channels <= FEW_CHANNELS:
        return 32
    sizes = (16, 32, 64) if dtype != torch.float32 else (16, 32)
    return min(sizes, key=lambda size: -(-channels // size) * (size + 8))


def conv_tiles(pixels: int, phases: int, n: int, dtype: torch.dtype, exact: bool) -> list[dict[str, int]]:
    """Gives conv_kernel's tiles worth trying, the likely best first: the largest that still occupy the GPU."""
    half = dtype != torch.float32
    widest = min(256 if half else 128, max(16, triton.next_power_of_2(n)))

    def tile(bm: int, bn: int) -> dict[str, int]:
        # a float32 product is three products whose factors' parts stay in registers: a thread has half the elements; a
        # quarter of those where it is made without matrix units
        warps = 8 if bm * bn >= (128 * 128 if half else 64 * 32 if exact else 64 * 128) else 4
        stages = 4 if half and bm + bn < 320 else 3
        return {"BM": tuning.block(pixels, bm), "BN": bn, "num_warps": warps, "num_stages": stages}

    # the wider a tile, the fewer reads of pixels; the higher a tile, the fewer reads of weights
    if half:
        sizes = [(256, widest)] * (widest <= 64) + [(128, widest), (128, min(widest, 128)), (64, min(widest, 128))]
    else:
        sizes = [(128, min(widest, 64)), (64, widest)] * (not exact)
    sizes = dict.fromkeys([*sizes, (64, min(widest, 64)), (32, min(widest, 32))])
    tiles = [tile(*size) for size in sizes]
    enough = 0.7 * tuning.processors()
    filled = [t for t in tiles if phases * -(-pixels // t["BM"]) * -(-n // t["BN"]) >= enough]
    first = filled[0] if filled else tiles[-1]
    others = sorted((t for t in tiles if t != first), key=lambda t: abs(t["BM"] * t["BN"] - first["BM"] * first["BN"]))
    return [first, *others[:1]]


def convolve(
    x: Tensor, weights: Tensor, y: Tensor, taps: Taps, exact: bool, *,
    second: Tensor | None = None, second_weights: Tensor | None = None, around: bool = False,
    bias: Tensor | None = None, residual: Tensor | None = None, activation: str = "none", slope: float = 0.0,
) -> None:  # fmt: skip
    """Writes y from x by the taps, in one launch of conv_kernel or of conv_band_kernel, as tuning chooses.

    x, second, residual, y: channels_last, x and second padded; weights, second_weights: as `packed` gives them
    around:       second is as large as y and takes 3x3 taps around each pixel; else it is as large as x
    """
    batch, channels, height, width = x.shape
    n, out_height, out_width = y.shape[1:]
    phases, grid = taps.spread**2, (triton.cdiv(out_height, taps.spread), triton.cdiv(out_width, taps.spread))
    pixels = batch * grid[0] * grid[1]
    further = 0 if second is None else second.shape[1]

    def cost(tile: dict[str, int]) -> Cost:
        outputs, each = batch * out_height * out_width, taps.kernel**2 / phases
        per_output = each * channels + (9 if around else each) * further
        m_blocks, n_blocks = triton.cdiv(pixels, tile["BM"]), triton.cdiv(n, tile["BN"])
        gathered = (outputs * n_blocks + m_blocks * phases * n) * per_output * x.element_size() + size(residual, y)
        moved = size(x, weights, second, second_weights, bias, residual, y)
        return Cost(2.0 * outputs * n * per_output, moved, gathered, matrix=not exact or x.dtype != torch.float32)

    def run(tile: dict[str, int]) -> None:
        if not tile:
            convolve_in_bands(x, weights, y, bias, residual, ACTIVATION_NUMBERS[activation], slope)
            return
        blocks = triton.cdiv(pixels, tile["BM"]) * phases * triton.cdiv(n, tile["BN"])
        shift, rest = divmod(taps.padding, taps.spread)
        launch(
            conv_kernel, (blocks,), x=x, weights=weights, second=x if second is None else second,
            second_weights=weights if second is None else second_weights, bias=weights if bias is None else bias,
            residual=y if residual is None else residual, y=y, batch=batch, H=height, W=width, C=channels, C2=further,
            N=n, grid_height=grid[0], grid_width=grid[1], height=out_height, width=out_width, K=taps.kernel,
            stride=taps.stride, shift=shift, rest=rest, border=taps.border, slope=slope,
            SPREAD=taps.spread, SECOND=0 if second is None else AROUND.value if around else BESIDE.value,
            BORDERED=taps.border > 0, ACTIVATION=ACTIVATION_NUMBERS[activation], HAS_BIAS=bias is not None,
            HAS_RESIDUAL=residual is not None, FLAT=channels <= FEW_CHANNELS, FLAT2=further <= FEW_CHANNELS,
            WIDE=wide(x, second, y), PRECISION=precision(x.dtype, exact), BK=_block(channels, x.dtype),
            BK2=_block(further, x.dtype), cost=lambda: cost(tile), **tile,
        )  # fmt: skip

    problem = (*taps, batch, channels, further, height, width, n, x.dtype, precision(x.dtype, exact))
    tiles = conv_tiles(pixels, phases, n, x.dtype, exact)
    if taps == Taps(3, 1, 1, 1) and second is None and applies(channels, x.dtype, capability()):
        tiles = [{}, *tiles]  # an empty tile stands for conv_band_kernel
    tuning.run_best("conv", problem, tiles if noted_choices() == "all" else tiles[:2], run)
