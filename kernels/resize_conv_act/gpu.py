"""resize_conv_act in Triton: convolutions as implicit GEMMs on channels_last tensors, nothing gathered in memory.

Nearest x2 before the convolution is four phases of 2x2 taps on folded weights, 16 products per pixel of x for the 36 as
written; nearest /2 after it the convolution at stride 2. Their input gradients are the adjoint sums: one convolution of
4x4 taps at stride 2, and four phases of 1 to 4 taps. Weight gradients are split over the pixels and summed in a fixed
order, so that every result is the same in every run.

float32 products run on the matrix units as three TF32 products (near float32), as one where
torch.backends.cudnn.allow_tf32 is set, and as plain float32 arithmetic with exact=True.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _op
from .._gpu import tuning
from .._gpu.blocks import activate, derivative, dot, rounded
from .._gpu.launch import Cost, launch, size
from . import ACTIVATION_NUMBERS, check, gradients, output

# which pixels a product takes, and where its sum goes; the _T are the adjoints, for the gradient of the input
SAME, DOWN, UP, SAME_T, DOWN_T, UP_T = (tl.constexpr(number) for number in range(6))
FORWARD = {"none": SAME.value, "down": DOWN.value, "up": UP.value}
ADJOINT = {"none": SAME_T.value, "down": DOWN_T.value, "up": UP_T.value}
PHASED = (UP.value, DOWN_T.value)
FEW_CHANNELS = 8  # as many or fewer: taps and channels are one axis, so that no tile is mostly padding


@triton.jit
def pack_weights_kernel(
    weight, packed, rows, columns, channels, first, FOLD: tl.constexpr, TRANSPOSED: tl.constexpr, BLOCK: tl.constexpr
):
    """weight (N, channels, 3, 3) -> packed (rows, taps, columns) of weight[:, first:first + C], by one element each.

    (rows, columns) is (N, C), or (C, N) where TRANSPOSED. FOLD: the 4x4 taps of nearest x2 and convolution in one.
    """
    taps: tl.constexpr = 16 if FOLD else 9
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < rows * taps * columns
    column, tap, row = at % columns, (at // columns) % taps, at // (columns * taps)
    n, c = (column, row) if TRANSPOSED else (row, column)
    source = weight + (n * channels + first + c) * 9
    if FOLD:
        u, v = tap // 4, tap % 4
        value = tl.zeros((BLOCK,), tl.float32)
        for p in tl.static_range(3):
            for q in tl.static_range(3):
                # tap u of the transposed convolution holds the convolution's taps 2 - u and 3 - u
                part = ((p == 2 - u) | (p == 3 - u)) & ((q == 2 - v) | (q == 3 - v))
                value += tl.load(source + p * 3 + q, mask=inside & part, other=0.0).to(tl.float32)
    else:
        value = tl.load(source + tap, mask=inside, other=0.0).to(tl.float32)
    tl.store(packed + at, rounded(value, packed.dtype.element_ty), mask=inside)


@triton.jit
def _add_products(
    acc, source, weights, sample, y0, x0, valid, n, N, H, W, C, rows, columns, first, by_row, by_column,
    TAPS: tl.constexpr, FLAT: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc (BM, BN) plus the products of rows x columns taps from pixel (y0, x0) of (batch, H, W, C) with weights.

    weights is (N, TAPS, C); tap (i, j) takes its matrix first + i by_row + j by_column. FLAT: one axis of taps and C.
    """
    k = tl.arange(0, BK)
    start = tl.cast(sample, tl.int64) * (H * W)
    if FLAT:
        for k0 in range(0, rows * columns * C, BK):
            at = k0 + k
            tap, c = at // C, at % C
            i, j = tap // columns, tap % columns
            y, x = y0[:, None] + i[None, :], x0[:, None] + j[None, :]
            inside = valid[:, None] & (at < rows * columns * C)[None, :] & (y >= 0) & (y < H) & (x >= 0) & (x < W)
            a = tl.load(source + (start[:, None] + y * W + x) * C + c[None, :], mask=inside, other=0.0)
            matrix = first + i * by_row + j * by_column
            inside = (at < rows * columns * C)[:, None] & (n < N)[None, :]
            b = tl.load(weights + n[None, :] * (TAPS * C) + (matrix * C + c)[:, None], mask=inside, other=0.0)
            acc = dot(a, b, acc, PRECISION)
    else:
        blocks = tl.cdiv(C, BK)
        for step in range(rows * columns * blocks):
            tap, at = step // blocks, (step % blocks) * BK + k
            i, j = tap // columns, tap % columns
            y, x = y0 + i, x0 + j
            inside = valid & (y >= 0) & (y < H) & (x >= 0) & (x < W)
            pixel = (start + y * W + x) * C
            a = tl.load(source + pixel[:, None] + at[None, :], mask=inside[:, None] & (at < C)[None, :], other=0.0)
            matrix = first + i * by_row + j * by_column
            inside = (at < C)[:, None] & (n < N)[None, :]
            b = tl.load(weights + n[None, :] * (TAPS * C) + (matrix * C + at)[:, None], mask=inside, other=0.0)
            acc = dot(a, b, acc, PRECISION)
    return acc


@triton.jit
def conv_kernel(
    x, weights, second, second_weights, bias, y, batch, H, W, C, C2, N, grid_height, grid_width, height, width, slope,
    FORM: tl.constexpr, ACTIVATION: tl.constexpr, HAS_SECOND: tl.constexpr, HAS_BIAS: tl.constexpr,
    FLAT: tl.constexpr, FLAT2: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BK2: tl.constexpr,
):  # fmt: skip
    """y (batch, height, width, N) of x (batch, H, W, C) by FORM; a tile is BM pixels of a phase's grid times BN of N.

    second (batch, height, width, C2) joins UP and SAME as further channels, at the size the convolution runs at. For
    DOWN it is (batch, H, W, C2). WIDE: there are more than 2^31 pixels.
    """
    pid = tl.program_id(0)
    n_blocks = tl.cdiv(N, BN)
    n = (pid % n_blocks) * BN + tl.arange(0, BN)
    rest = pid // n_blocks
    phase_y, phase_x = 0, 0
    if (FORM == UP) | (FORM == DOWN_T):
        phase_y, phase_x = (rest % 4) // 2, rest % 2
        rest = rest // 4
    pixels = grid_height * grid_width
    if WIDE:
        rest, pixels = tl.cast(rest, tl.int64), tl.cast(pixels, tl.int64)
    m = rest * BM + tl.arange(0, BM)
    valid = m < batch * pixels
    sample, inner = tl.cast(m // pixels, tl.int32), tl.cast(m % pixels, tl.int32)
    gy, gx = inner // grid_width, inner % grid_width
    acc = tl.zeros((BM, BN), tl.float32)
    if FORM == SAME:
        acc = _add_products(
            acc, x, weights, sample, gy - 1, gx - 1, valid, n, N, H, W, C, 3, 3, 0, 3, 1, 9, FLAT, BK, PRECISION
        )
    elif FORM == DOWN:
        acc = _add_products(
            acc, x, weights, sample, 2 * gy - 1, 2 * gx - 1, valid, n, N, H, W, C, 3, 3, 0, 3, 1, 9, FLAT, BK, PRECISION
        )
    elif FORM == UP:
        first = (3 - phase_y) * 4 + 3 - phase_x
        acc = _add_products(
            acc, x, weights, sample, gy - 1 + phase_y, gx - 1 + phase_x, valid, n, N, H, W, C, 2, 2, first, -8, -2, 16,
            FLAT, BK, PRECISION,
        )  # fmt: skip
    elif FORM == SAME_T:
        acc = _add_products(
            acc, x, weights, sample, gy - 1, gx - 1, valid, n, N, H, W, C, 3, 3, 8, -3, -1, 9, FLAT, BK, PRECISION
        )
    elif FORM == DOWN_T:
        first = (1 + phase_y) * 3 + 1 + phase_x
        acc = _add_products(
            acc, x, weights, sample, gy, gx, valid, n, N, H, W, C, 1 + phase_y, 1 + phase_x, first, -6, -2, 9,
            FLAT, BK, PRECISION,
        )  # fmt: skip
    else:
        acc = _add_products(
            acc, x, weights, sample, 2 * gy - 1, 2 * gx - 1, valid, n, N, H, W, C, 4, 4, 0, 4, 1, 16,
            FLAT, BK, PRECISION,
        )  # fmt: skip
    oy, ox = gy, gx
    if (FORM == UP) | (FORM == DOWN_T):
        oy, ox = 2 * gy + phase_y, 2 * gx + phase_x
        valid = valid & (oy < height) & (ox < width)
    if HAS_SECOND:
        if FORM == DOWN:
            acc = _add_products(
                acc, second, second_weights, sample, 2 * oy - 1, 2 * ox - 1, valid, n, N, H, W, C2, 3, 3, 0, 3, 1, 9,
                FLAT2, BK2, PRECISION,
            )  # fmt: skip
        else:
            acc = _add_products(
                acc, second, second_weights, sample, oy - 1, ox - 1, valid, n, N, height, width, C2, 3, 3, 0, 3, 1, 9,
                FLAT2, BK2, PRECISION,
            )  # fmt: skip
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION, slope)
    pixel = (tl.cast(sample, tl.int64) * (height * width) + oy * width + ox) * N
    inside = valid[:, None] & (n < N)[None, :]
    tl.store(y + pixel[:, None] + n[None, :], rounded(acc, y.dtype.element_ty), mask=inside)


@triton.jit
def activation_backward_kernel(
    grad, y, dz, scale, partial, pixels, N, part_pixels, parts, slope,
    ACTIVATION: tl.constexpr, SCALED: tl.constexpr, WITH_BIAS: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dz = grad * activation'(y) for (batch, pixels, N) and, WITH_BIAS, the sum of each part of a sample's pixels.

    partial (batch * parts, N) float32: the sums times the sample's scale. Without activation dz is not written.
    """
    part, sample = tl.program_id(0) % parts, tl.program_id(0) // parts
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BN,), tl.float32)
    start = tl.cast(sample, tl.int64) * pixels * N
    for p0 in range(part * part_pixels, tl.minimum((part + 1) * part_pixels, pixels), BP):
        p = p0 + tl.arange(0, BP)
        inside = (p < tl.minimum((part + 1) * part_pixels, pixels))[:, None] & (n < N)[None, :]
        at = start + tl.cast(p, tl.int64)[:, None] * N + n[None, :]
        value = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if ACTIVATION != 0:
            of_y = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
            value = value * derivative(of_y, ACTIVATION, slope)
            tl.store(dz + at, rounded(value, dz.dtype.element_ty), mask=inside)
        total += tl.sum(value, axis=0)
    if WITH_BIAS:
        if SCALED:
            total *= tl.load(scale + sample)
        tl.store(partial + tl.cast(tl.program_id(0), tl.int64) * N + n, total, mask=n < N)


@triton.jit
def conv_weight_grad_kernel(
    dz, x, scale, partial, steps, steps_per_split, H, W, C, ZH, ZW, N, grid_height, grid_width,
    FORM: tl.constexpr, SCALED: tl.constexpr, FLAT: tl.constexpr, PRECISION: tl.constexpr,
    BJ: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """partial (splits, taps, C, N) float32: sums over one split's pixels of x at each tap times dz, FORM SAME, DOWN, UP.

    A step is BP pixels of one sample, counted on the grid that has both: dz's for SAME and DOWN, x's for UP, where each
    of 16 taps takes another pixel of dz. The product of a step counts `scale` times where SCALED.
    """
    TAPS: tl.constexpr = 16 if FORM == UP else 9
    SIDE: tl.constexpr = 4 if FORM == UP else 3
    n_blocks = tl.cdiv(N, BN)
    n = (tl.program_id(0) % n_blocks) * BN + tl.arange(0, BN)
    block = tl.program_id(0) // n_blocks
    if FLAT:
        j = block * BJ + tl.arange(0, BJ)
        tap, c, wanted = j // C, j % C, j < TAPS * C
    else:
        c_blocks = tl.cdiv(C, BJ)
        tap, c = block // c_blocks, (block % c_blocks) * BJ + tl.arange(0, BJ)
        j, wanted = tap * C + c, c < C
    tap_y, tap_x = tap // SIDE, tap % SIDE
    per_sample = tl.cdiv(grid_height * grid_width, BP)
    acc = tl.zeros((BJ, BN), tl.float32)
    first = tl.program_id(1) * steps_per_split
    for step in range(first, tl.minimum(first + steps_per_split, steps)):
        sample = step // per_sample
        p = (step % per_sample) * BP + tl.arange(0, BP)
        valid = p < grid_height * grid_width
        gy, gx = p // grid_width, p % grid_width
        x_start, z_start = tl.cast(sample, tl.int64) * (H * W), tl.cast(sample, tl.int64) * (ZH * ZW)
        if FORM == UP:
            zy, zx = 2 * gy + tap_y - 1, 2 * gx + tap_x - 1
            z_valid = valid & (zy >= 0) & (zy < ZH) & (zx >= 0) & (zx < ZW)
            z_pixel = z_start + zy * ZW + zx
            a_at, a_valid = (x_start + p)[:, None] * C + c[None, :], valid[:, None] & wanted[None, :]
        else:
            z_valid, z_pixel = valid, z_start + p
            STRIDE: tl.constexpr = 2 if FORM == DOWN else 1
            if FLAT:
                xy, xx = STRIDE * gy[:, None] + tap_y[None, :] - 1, STRIDE * gx[:, None] + tap_x[None, :] - 1
                a_valid = valid[:, None] & wanted[None, :] & (xy >= 0) & (xy < H) & (xx >= 0) & (xx < W)
                a_at = (x_start + xy * W + xx) * C + c[None, :]
            else:
                xy, xx = STRIDE * gy + tap_y - 1, STRIDE * gx + tap_x - 1
                a_valid = (valid & (xy >= 0) & (xy < H) & (xx >= 0) & (xx < W))[:, None] & wanted[None, :]
                a_at = (x_start + xy * W + xx)[:, None] * C + c[None, :]
        a = tl.load(x + a_at, mask=a_valid, other=0.0)
        z = tl.load(dz + z_pixel[:, None] * N + n[None, :], mask=z_valid[:, None] & (n < N)[None, :], other=0.0)
        if SCALED:
            acc += dot(tl.trans(a), z, tl.zeros((BJ, BN), tl.float32), PRECISION) * tl.load(scale + sample)
        else:
            acc = dot(tl.trans(a), z, acc, PRECISION)
    start = partial + tl.cast(tl.program_id(1), tl.int64) * (TAPS * C) * N
    tl.store(start + j[:, None] * N + n[None, :], acc, mask=wanted[:, None] & (n < N)[None, :])


@triton.jit
def sum_gradients_kernel(
    partial, splits, dweight, C, N, channels, first, bias_partial, bias_rows, dbias,
    FOLD: tl.constexpr, WITH_WEIGHT: tl.constexpr, WITH_BIAS: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Sums of the splits in their order: dweight (N, channels, 3, 3)[:, first:first + C] and, WITH_BIAS, dbias (N,).

    FOLD: each of the 3x3 taps is the sum of four of the 4x4 taps that hold it. Program axis 1 is a tap, its last the bias.
    """
    n_blocks = tl.cdiv(N, BN)
    n = (tl.program_id(0) % n_blocks) * BN + tl.arange(0, BN)
    tap, block = tl.program_id(1), tl.program_id(0) // n_blocks
    if WITH_WEIGHT and tap < 9:
        c = block * BC + tl.arange(0, BC)
        inside = (c < C)[:, None] & (n < N)[None, :]
        total = tl.zeros((BC, BN), tl.float32)
        TAPS: tl.constexpr = 16 if FOLD else 9
        for split in range(splits):
            start = partial + tl.cast(split, tl.int64) * (TAPS * C) * N
            if FOLD:
                for i in tl.static_range(2):
                    for j in tl.static_range(2):
                        folded = (2 - tap // 3 + i) * 4 + 2 - tap % 3 + j
                        total += tl.load(start + (folded * C + c)[:, None] * N + n[None, :], mask=inside, other=0.0)
            else:
                total += tl.load(start + (tap * C + c)[:, None] * N + n[None, :], mask=inside, other=0.0)
        at = (n[None, :] * channels + first + c[:, None]) * 9 + tap
        tl.store(dweight + at, rounded(total, dweight.dtype.element_ty), mask=inside)
    elif WITH_BIAS:
        if block == 0:
            sums = tl.zeros((BN,), tl.float32)
            for r0 in range(0, bias_rows, BR):
                r = r0 + tl.arange(0, BR)
                inside = (r < bias_rows)[:, None] & (n < N)[None, :]
                part = tl.load(bias_partial + tl.cast(r, tl.int64)[:, None] * N + n[None, :], mask=inside, other=0.0)
                sums += tl.sum(part, axis=0)
            tl.store(dbias + n, rounded(sums, dbias.dtype.element_ty), mask=n < N)


def precision(dtype: torch.dtype, exact: bool) -> str:
    """How float32 products are formed; half precision has but one way."""
    if dtype != torch.float32 or exact:
        return "ieee"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3"


def _power(size: int, low: int, high: int) -> int:
    """The smallest power of two that holds size, from low to high."""
    return min(high, max(low, triton.next_power_of_2(size)))


def conv_tiles(pixels: int, phases: int, channels: int, n: int, dtype: torch.dtype) -> list[dict[str, int]]:
    """Tile shapes of conv_kernel worth trying, the likely best first: as large as still occupy every multiprocessor."""
    half = dtype != torch.float32
    bk = _power(channels, 16, 64 if half else 32)
    bn = _power(n, 16, 128)

    def tile(bm: int, bn: int) -> dict[str, int]:
        return {
            "BM": bm,
            "BN": bn,
            "BK": bk,
            "num_warps": 8 if bm * bn >= 128 * 128 else 4,
            "num_stages": 4 if half else 3,
        }

    wide = [tile(bm, b) for bm, b in ((128, bn), (64, bn), (64, min(bn, 64)), (32, min(bn, 32)))]
    filled = [t for t in wide if phases * -(-pixels // t["BM"]) * -(-n // t["BN"]) >= tuning.processors()]
    first = filled[0] if filled else wide[-1]
    others = [t for t in wide if t != first]
    nearest = sorted(others, key=lambda t: abs(t["BM"] * t["BN"] - first["BM"] * first["BN"]))
    return [first, *nearest[:1]]


def packed(weight: Tensor, first: int, channels: int, dtype: torch.dtype, fold: bool, transposed: bool) -> Tensor:
    """weight[:, first:first + channels] as the kernels read it: (N, taps, C), or (C, taps, N) transposed."""
    n, taps = weight.shape[0], 16 if fold else 9
    rows, columns = (channels, n) if transposed else (n, channels)
    result = torch.empty((rows, taps, columns), dtype=dtype, device=weight.device)
    block = 256
    launch(
        pack_weights_kernel, (triton.cdiv(result.numel(), block),), weight, result, rows, columns, weight.shape[1], first,
        FOLD=fold, TRANSPOSED=transposed, BLOCK=block,
        cost=lambda: Cost(10.0 * result.numel() * fold, 9 * n * channels * weight.element_size() + size(result)),
    )  # fmt: skip
    return result


def _convolve(
    x: Tensor, weights: Tensor, y: Tensor, form: int, exact: bool, *,
    second: Tensor | None = None, second_weights: Tensor | None = None, bias: Tensor | None = None,
    activation: str = "none", slope: float = 0.0,
) -> None:  # fmt: skip
    """One launch of conv_kernel: y from x, both channels_last, by the form."""
    batch, channels, height, width = x.shape
    n, out_height, out_width = y.shape[1:]
    phases = 4 if form in PHASED else 1
    grid = ((out_height + 1) // 2, (out_width + 1) // 2) if form in PHASED else (out_height, out_width)
    pixels = batch * grid[0] * grid[1]
    further = 0 if second is None else second.shape[1]
    taps = {SAME.value: 9, DOWN.value: 9, UP.value: 4, SAME_T.value: 9, DOWN_T.value: 9 / 4, UP_T.value: 16}[form]

    def cost() -> Cost:
        flops = 2.0 * batch * out_height * out_width * n * (taps * channels + 9 * further)
        moved = size(x, weights, second, second_weights, bias, y)
        return Cost(flops, moved, taps * size(x) * y[0, 0].numel() / x[0, 0].numel() + size(y), matrix=not exact)

    def run(tile: dict[str, int]) -> None:
        blocks = triton.cdiv(pixels, tile["BM"]) * phases * triton.cdiv(n, tile["BN"])
        launch(
            conv_kernel, (blocks,), x, weights, x if second is None else second,
            weights if second is None else second_weights, weights if bias is None else bias, y, batch, height, width,
            channels, further, n, *grid, out_height, out_width, slope,
            FORM=form, ACTIVATION=ACTIVATION_NUMBERS[activation], HAS_SECOND=further > 0, HAS_BIAS=bias is not None,
            FLAT=channels <= FEW_CHANNELS, FLAT2=further <= FEW_CHANNELS, WIDE=pixels + tile["BM"] >= 2**31,
            PRECISION=precision(x.dtype, exact), BK2=_power(further, 32, tile["BK"]) if further > FEW_CHANNELS else 32,
            cost=cost, **(tile | {"BK": 32} if channels <= FEW_CHANNELS else tile),
        )  # fmt: skip

    problem = (form, batch, channels, further, height, width, n, x.dtype, precision(x.dtype, exact))
    tuning.run_best("conv", problem, conv_tiles(pixels, phases, channels, n, x.dtype), run)


def forward(x, weight, bias, second, grad_scale, resize, activation, negative_slope, exact, input_grad_from):
    check(x, weight, bias, second, grad_scale, resize, activation, input_grad_from)
    y = output(x, weight, resize)
    x, second = _op.channels_last(x), _op.channels_last(second)
    weight, channels = weight.contiguous(), x.shape[1]
    first = packed(weight, 0, channels, x.dtype, resize == "up", False)
    further = None if second is None else packed(weight, channels, second.shape[1], x.dtype, False, False)
    _convolve(
        x, first, y, FORWARD[resize], exact,
        second=second, second_weights=further, bias=bias, activation=activation, slope=negative_slope,
    )  # fmt: skip
    return y


def backward(
    grad, y, x, weight, bias, second, grad_scale, resize, activation, negative_slope, exact, input_grad_from, need
):
    dx, dweight, dbias, dsecond = gradients([x, weight, bias, second], need)
    if x.shape[0] == 0:
        for gradient in (dweight, dbias):
            gradient.zero_()
        return dx, dweight, dbias, dsecond
    x, second, y, grad = _op.channels_last(x), _op.channels_last(second), _op.channels_last(y), _op.channels_last(grad)
    weight, channels = weight.contiguous(), x.shape[1]
    scale = None if grad_scale is None else grad_scale.float().contiguous()
    dz, bias_partial = _through_activation(grad, y, scale, activation, negative_slope, need[2])
    # beside nearest x2 the second input's convolution runs at the full size
    second_resize = "none" if resize == "up" else resize
    inputs = [(dx, x, 0, resize, need[0]), (dsecond, second, channels, second_resize, need[3])]
    for gradient, source, at, form, needed in inputs:
        if needed:
            gradient[:input_grad_from].zero_()
            if input_grad_from < len(gradient):
                weights = packed(weight, at, source.shape[1], x.dtype, form == "up", True)
                _convolve(dz[input_grad_from:], weights, gradient[input_grad_from:], ADJOINT[form], exact)
    if need[1] or need[2]:
        _weight_gradient(dz, x, scale, dweight, 0, resize, exact, need[1], bias_partial, dbias)
    if need[1] and second is not None:
        _weight_gradient(dz, second, scale, dweight, channels, second_resize, exact, True, None, None)
    return dx, dweight, dbias, dsecond


def _through_activation(
    grad: Tensor, y: Tensor, scale: Tensor | None, activation: str, slope: float, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradient before the activation, channels_last, and partial sums (rows, N) of the bias's gradient."""
    if activation == "none" and not with_bias:
        return grad, None
    batch, n, height, width = grad.shape
    pixels, bn = height * width, _power(n, 16, 64)
    bp = 2048 // bn
    # a few programs for each multiprocessor, and no part smaller than a block
    parts = max(1, min(triton.cdiv(pixels, bp), triton.cdiv(4 * tuning.processors(), batch)))
    part_pixels = triton.cdiv(triton.cdiv(pixels, parts), bp) * bp
    parts = triton.cdiv(pixels, part_pixels)
    dz = grad if activation == "none" else torch.empty_like(grad, memory_format=torch.channels_last)
    partial = torch.empty((batch * parts, n), dtype=torch.float32, device=grad.device) if with_bias else None
    launch(
        activation_backward_kernel, (batch * parts, triton.cdiv(n, bn)), grad, y, dz, grad if scale is None else scale,
        grad if partial is None else partial, pixels, n, part_pixels, parts, slope,
        ACTIVATION=ACTIVATION_NUMBERS[activation], SCALED=scale is not None, WITH_BIAS=with_bias, BP=bp, BN=bn,
        cost=lambda: Cost(4.0 * grad.numel(), size(grad, partial) + (0 if dz is grad else size(y, dz))),
    )  # fmt: skip
    return dz, partial


def _weight_gradient(
    dz: Tensor, x: Tensor, scale: Tensor | None, dweight: Tensor, first: int, resize: str, exact: bool,
    with_weight: bool, bias_partial: Tensor | None, dbias: Tensor | None,
) -> None:  # fmt: skip
    """dweight[:, first:first + C] and, where its partial sums are given, dbias."""
    batch, channels, height, width = x.shape
    n, z_height, z_width = dz.shape[1:]
    form, fold = FORWARD[resize], resize == "up"
    taps = 16 if fold else 9
    grid = (height, width) if fold else (z_height, z_width)
    flat = not fold and channels < 64
    half, splits = x.dtype != torch.float32, 1
    bj, bn = (_power(taps * channels, 16, 64) if flat else _power(channels, 16, 128)), _power(n, 16, 128)
    bp = _power(grid[0] * grid[1], 16, 64 if half else 32)
    steps = batch * triton.cdiv(grid[0] * grid[1], bp)
    columns = triton.cdiv(taps * channels, bj) if flat else taps * triton.cdiv(channels, bj)
    tiles = columns * triton.cdiv(n, bn)
    # enough programs for two rounds of the multiprocessors, and at least eight steps for each
    splits = max(1, min(triton.cdiv(2 * tuning.processors(), tiles), triton.cdiv(steps, 8)))
    per_split = triton.cdiv(steps, splits)
    splits = triton.cdiv(steps, per_split)
    shape = (splits, taps, channels, n) if with_weight else (0,)
    partial = torch.empty(shape, dtype=torch.float32, device=x.device)

    def cost() -> Cost:
        flops = 2.0 * batch * grid[0] * grid[1] * taps * channels * n
        gathered = columns * size(dz) * (4 if fold else 1) + taps * triton.cdiv(n, bn) * size(x)
        return Cost(flops, size(x, dz, partial), gathered, matrix=not exact)

    if with_weight:
        launch(
            conv_weight_grad_kernel, (tiles, splits), dz, x, partial if scale is None else scale, partial, steps,
            per_split, height, width, channels, z_height, z_width, n, *grid,
            FORM=form, SCALED=scale is not None, FLAT=flat, PRECISION=precision(x.dtype, exact), BJ=bj, BN=bn, BP=bp,
            cost=cost, num_warps=8 if bj * bn >= 128 * 128 else 4, num_stages=3,
        )  # fmt: skip
    bc, bn = 16, _power(n, 16, 64)
    blocks = triton.cdiv(channels, bc) * triton.cdiv(n, bn)
    rows = 0 if bias_partial is None else len(bias_partial)
    launch(
        sum_gradients_kernel, (blocks, 10) if with_weight else (triton.cdiv(n, bn), 1), partial, splits,
        dweight if with_weight else partial, channels, n, dweight.shape[1] if with_weight else channels, first,
        partial if bias_partial is None else bias_partial, rows, partial if dbias is None else dbias,
        FOLD=fold, WITH_WEIGHT=with_weight, WITH_BIAS=bias_partial is not None, BC=bc, BN=bn, BR=64,
        cost=lambda: Cost(partial.numel() * (4.0 if fold else 1.0), size(partial, bias_partial, dbias) + taps * n * channels),
    )  # fmt: skip
