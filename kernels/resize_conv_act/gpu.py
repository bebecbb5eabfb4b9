"""resize_conv_act in Triton: convolutions as implicit GEMMs on channels_last tensors; no patches are copied in memory.

up:   nearest x2 and the convolution are four phases of 2x2 taps on folded weights, 16 products per pixel of x where
      the definition has 36; the input gradient is one convolution of 4x4 taps at stride 2.
down: the convolution and nearest /2 are the convolution at stride 2; the input gradient is four phases of 1 to 4 taps.
none: the convolution; with few channels gpu_band.py may run it.

Weight gradients are in gpu_weight_gradient.py. float32 products run on the matrix units as three TF32 products (near
float32), as one where torch.backends.cudnn.allow_tf32 is set, and as plain float32 arithmetic with exact=True.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._gpu import tuning
from .._gpu.activation_backward import through_activation
from .._gpu.blocks import activate, dot, rounded, single
from .._gpu.launch import Cost, capability, launch, noted_choices, size, wide
from .._layout import channels_last
from . import ACTIVATION_NUMBERS, gradients, output
from .gpu_band import applies, convolve_in_bands
from .gpu_weight_gradient import weight_gradient

# the forms: which pixels a product takes, and where its sum goes; each _T is the adjoint, for the input's gradient
SAME, DOWN, UP, SAME_T, DOWN_T, UP_T = (tl.constexpr(number) for number in range(6))
FORWARD = {"none": SAME.value, "down": DOWN.value, "up": UP.value}
ADJOINT = {"none": SAME_T.value, "down": DOWN_T.value, "up": UP_T.value}
PHASED = (UP.value, DOWN_T.value)
FEW_CHANNELS = 8  # with so many or fewer, taps and channels are one axis, so that no tile is mostly padding


@triton.jit
def pack_weights_kernel(
    weight, packed, rows, columns, width, channels, first,
    FOLD: tl.constexpr, TRANSPOSED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Packs weight[:, first:first + C] of weight (N, channels, 3, 3) to packed (rows, taps, width).

    (rows, columns) is (N, C), or (C, N) where TRANSPOSED; from columns to width there are zeros. FOLD: the taps are the
    4x4 of nearest x2 and the convolution in one.
    """
    taps: tl.constexpr = 16 if FOLD else 9
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column, tap, row = at % width, (at // width) % taps, at // (width * taps)
    inside = (row < rows) & (column < columns)
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
    tl.store(packed + at, rounded(value, packed.dtype.element_ty), mask=row < rows)


@triton.jit
def pad_channels_kernel(x, padded, pixels, C, CP: tl.constexpr, WIDE: tl.constexpr, BP: tl.constexpr):
    """padded (pixels, CP) = x (pixels, C), then zeros; CP is a multiple of 16, so that rows are aligned."""
    p = (tl.cast(tl.program_id(0), tl.int64) if WIDE else tl.program_id(0)) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * 16 + tl.arange(0, 16)
    value = tl.load(x + p[:, None] * C + c[None, :], mask=(p < pixels)[:, None] & (c < C)[None, :], other=0.0)
    tl.store(padded + p[:, None] * CP + c[None, :], value, mask=(p < pixels)[:, None])


@triton.jit
def _add_products(
    acc, source, weights, sample, y0, x0, valid, n, N, H, W, C, rows, columns, first, by_row, by_column,
    TAPS: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to acc (BM, BN) the products of rows x columns taps from pixel (y0, x0) of source (batch, H, W, C) on.

    weights is (N, TAPS, C); tap (i, j) takes matrix first + i by_row + j by_column. FLAT: taps and C are one axis.
    """
    k = tl.arange(0, BK)
    start = (tl.cast(sample, tl.int64) if WIDE else sample) * (H * W)
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
    """y (batch, height, width, N) from x (batch, H, W, C) by FORM: a program has BM pixels of a phase and BN channels.

    second holds further channels, at the size the convolution runs at: (batch, height, width, C2), or (batch, H, W, C2)
    for DOWN. WIDE: offsets take 64 bits.
    """
    slope = single(slope)
    pid = tl.program_id(0)
    n_blocks = tl.cdiv(N, BN)
    n = (pid % n_blocks) * BN + tl.arange(0, BN)
    rest, phase_y, phase_x = pid // n_blocks, 0, 0
    PHASES: tl.constexpr = (FORM == UP) | (FORM == DOWN_T)
    if PHASES:
        phase_y, phase_x = (rest % 4) // 2, rest % 2
        rest = rest // 4
    pixels = grid_height * grid_width
    if WIDE:
        rest, pixels = tl.cast(rest, tl.int64), tl.cast(pixels, tl.int64)
    m = rest * BM + tl.arange(0, BM)
    valid = m < batch * pixels
    sample, inner = tl.cast(m // pixels, tl.int32), tl.cast(m % pixels, tl.int32)
    gy, gx = inner // grid_width, inner % grid_width
    # the first pixel that the taps take, how many there are, and which matrices they take
    TAPS: tl.constexpr = 16 if (FORM == UP) | (FORM == UP_T) else 9
    y0, x0, rows, columns, first, by_row, by_column = gy - 1, gx - 1, 3, 3, 0, 3, 1
    if FORM == DOWN:
        y0, x0 = 2 * gy - 1, 2 * gx - 1
    elif FORM == UP:
        y0, x0, rows, columns = gy - 1 + phase_y, gx - 1 + phase_x, 2, 2
        first, by_row, by_column = (3 - phase_y) * 4 + 3 - phase_x, -8, -2
    elif FORM == SAME_T:
        first, by_row, by_column = 8, -3, -1
    elif FORM == DOWN_T:
        y0, x0, rows, columns = gy, gx, 1 + phase_y, 1 + phase_x
        first, by_row, by_column = (1 + phase_y) * 3 + 1 + phase_x, -6, -2
    elif FORM == UP_T:
        y0, x0, rows, columns, by_row = 2 * gy - 1, 2 * gx - 1, 4, 4, 4
    acc = tl.zeros((BM, BN), tl.float32)
    acc = _add_products(
        acc, x, weights, sample, y0, x0, valid, n, N, H, W, C, rows, columns, first, by_row, by_column,
        TAPS, FLAT, WIDE, BK, PRECISION,
    )  # fmt: skip
    oy, ox = gy, gx
    if PHASES:
        oy, ox = 2 * gy + phase_y, 2 * gx + phase_x
        valid = valid & (oy < height) & (ox < width)
    if HAS_SECOND:
        y0, x0, second_height, second_width = oy - 1, ox - 1, height, width
        if FORM == DOWN:
            y0, x0, second_height, second_width = 2 * oy - 1, 2 * ox - 1, H, W
        acc = _add_products(
            acc, second, second_weights, sample, y0, x0, valid, n, N, second_height, second_width, C2, 3, 3, 0, 3, 1,
            9, FLAT2, WIDE, BK2, PRECISION,
        )  # fmt: skip
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION, slope)
    pixel = ((tl.cast(sample, tl.int64) if WIDE else sample) * (height * width) + oy * width + ox) * N
    inside = valid[:, None] & (n < N)[None, :]
    tl.store(y + pixel[:, None] + n[None, :], rounded(acc, y.dtype.element_ty), mask=inside)


def precision(dtype: torch.dtype, exact: bool) -> str:
    """How float32 products are formed, as tl.dot names it; half-precision products have one way only."""
    if dtype != torch.float32 or exact:
        return "ieee"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3"


def _block(channels: int, dtype: torch.dtype) -> int:
    """Chooses the channels of a step, for few steps and little padding in the last one."""
    sizes = (16, 32, 64) if dtype != torch.float32 else (16, 32)
    return min(sizes, key=lambda size: -(-channels // size) * (size + 8))


def conv_tiles(pixels: int, phases: int, n: int, dtype: torch.dtype, exact: bool) -> list[dict[str, int]]:
    """Gives conv_kernel's tiles worth trying, the likely best first: the largest that still occupy the GPU."""
    half = dtype != torch.float32
    widest = min(256 if half else 128, max(16, triton.next_power_of_2(n)))

    def tile(bm: int, bn: int) -> dict[str, int]:
        # a float32 product is three products whose factors' parts stay in registers: a thread has half the elements
        warps = 8 if bm * bn >= (128 * 128 if half else 64 * 128) else 4
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


def packed(weight: Tensor, first: int, channels: int, dtype: torch.dtype, fold: bool, transposed: bool) -> Tensor:
    """Packs weight[:, first:first + channels] for the kernels: (N, taps, C), or transposed (C, taps, N), padded."""
    n, taps = weight.shape[0], 16 if fold else 9
    rows, columns = (channels, n) if transposed else (n, channels)
    result = torch.empty((rows, taps, aligned(columns)), dtype=dtype, device=weight.device)
    block = tuning.ELEMENTS
    launch(
        pack_weights_kernel, (triton.cdiv(result.numel(), block),), weight=weight, packed=result, rows=rows,
        columns=columns, width=result.shape[2], channels=weight.shape[1], first=first,
        FOLD=fold, TRANSPOSED=transposed, BLOCK=block,
        cost=lambda: Cost(10.0 * result.numel() * fold, 9 * n * channels * weight.element_size() + size(result)),
    )  # fmt: skip
    return result


def _convolve(
    x: Tensor, weights: Tensor, y: Tensor, form: int, exact: bool, *,
    second: Tensor | None = None, second_weights: Tensor | None = None, bias: Tensor | None = None,
    activation: str = "none", slope: float = 0.0,
) -> None:  # fmt: skip
    """Writes y from x by the form, in one launch of conv_kernel or of conv_band_kernel, as tuning chooses.

    x, second, y: channels_last, x and second padded; weights, second_weights: as `packed` gives them
    form:         a number of FORWARD or ADJOINT
    """
    batch, channels, height, width = x.shape
    n, out_height, out_width = y.shape[1:]
    phases = 4 if form in PHASED else 1
    grid = ((out_height + 1) // 2, (out_width + 1) // 2) if form in PHASED else (out_height, out_width)
    pixels = batch * grid[0] * grid[1]
    further = 0 if second is None else second.shape[1]
    taps = {SAME.value: 9, DOWN.value: 9, UP.value: 4, SAME_T.value: 9, DOWN_T.value: 9 / 4, UP_T.value: 16}[form]

    def cost(tile: dict[str, int]) -> Cost:
        outputs = batch * out_height * out_width
        per_output = taps * channels + 9 * further
        m_blocks, n_blocks = triton.cdiv(pixels, tile["BM"]), triton.cdiv(n, tile["BN"])
        gathered = (outputs * n_blocks + m_blocks * phases * n) * per_output * x.element_size() + size(y)
        moved = size(x, weights, second, second_weights, bias, y)
        return Cost(2.0 * outputs * n * per_output, moved, gathered, matrix=not exact or x.dtype != torch.float32)

    def run(tile: dict[str, int]) -> None:
        if not tile:
            number = ACTIVATION_NUMBERS[activation]
            convolve_in_bands(x, weights, y, bias, number, slope, adjoint=form == SAME_T.value)
            return
        blocks = triton.cdiv(pixels, tile["BM"]) * phases * triton.cdiv(n, tile["BN"])
        flat, flat2 = channels <= FEW_CHANNELS, further <= FEW_CHANNELS
        launch(
            conv_kernel, (blocks,), x=x, weights=weights, second=x if second is None else second,
            second_weights=weights if second is None else second_weights, bias=weights if bias is None else bias, y=y,
            batch=batch, H=height, W=width, C=channels, C2=further, N=n, grid_height=grid[0], grid_width=grid[1],
            height=out_height, width=out_width, slope=slope,
            FORM=form, ACTIVATION=ACTIVATION_NUMBERS[activation], HAS_SECOND=further > 0, HAS_BIAS=bias is not None,
            FLAT=flat, FLAT2=flat2, WIDE=wide(x, second, y), PRECISION=precision(x.dtype, exact),
            BK=32 if flat else _block(channels, x.dtype), BK2=32 if flat2 else _block(further, x.dtype),
            cost=lambda: cost(tile), **tile,
        )  # fmt: skip

    problem = (form, batch, channels, further, height, width, n, x.dtype, precision(x.dtype, exact))
    tiles = conv_tiles(pixels, phases, n, x.dtype, exact)
    if form in (SAME.value, SAME_T.value) and second is None and applies(channels, x.dtype, capability()):
        tiles = [{}, *tiles]  # an empty tile stands for conv_band_kernel
    tuning.run_best("conv", problem, tiles if noted_choices() == "all" else tiles[:2], run)


def forward(x, weight, bias, second, grad_scale, resize, activation, negative_slope, exact, input_grad_from):
    y = output(x, weight, resize)
    if not y.numel():
        return y
    weight, channels = weight.contiguous(), x.shape[1]
    first = packed(weight, 0, channels, x.dtype, resize == "up", False)
    further = None if second is None else packed(weight, channels, second.shape[1], x.dtype, False, False)
    _convolve(
        padded(channels_last(x)), first, y, FORWARD[resize], exact,
        second=None if second is None else padded(channels_last(second)), second_weights=further,
        bias=None if bias is None else bias.contiguous(), activation=activation, slope=negative_slope,
    )  # fmt: skip
    return y


def backward(
    grad, y, x, weight, bias, second, grad_scale, resize, activation, negative_slope, exact, input_grad_from, need
):
    results = gradients([x, weight, bias, second], need)
    dx, dweight, dbias, dsecond = results
    if x.shape[0] == 0:
        for gradient in (dweight, dbias):
            gradient.zero_()
        return tuple(results)
    weight, channels = weight.contiguous(), x.shape[1]
    scale = None if grad_scale is None else grad_scale.float().contiguous()
    dz, weighted, bias_rows = through_activation(
        channels_last(grad), channels_last(grad if y is None else y), scale, ACTIVATION_NUMBERS[activation],
        negative_slope, with_bias=need[2], channels=aligned(grad.shape[1]), weigh=need[1],
    )  # fmt: skip
    # beside nearest x2 the second input's convolution runs at the full size
    inputs = [(x, dx, 0, resize, need[0])]
    if second is not None:
        inputs.append((second, dsecond, channels, "none" if resize == "up" else resize, need[3]))
    for source, gradient, at, form, needed in inputs:
        if needed:
            gradient[:input_grad_from].zero_()
            if input_grad_from < len(gradient):
                weights = packed(weight, at, source.shape[1], x.dtype, form == "up", True)
                _convolve(dz[input_grad_from:], weights, gradient[input_grad_from:], ADJOINT[form], exact)
        if need[1] or bias_rows is not None:
            weight_gradient(
                weighted, padded(channels_last(source)) if need[1] else source, dweight if need[1] else None, at,
                source.shape[1], FORWARD[form], precision(x.dtype, exact), bias_rows, dbias,
            )  # fmt: skip
            bias_rows = None  # the bias's gradient is complete: the second input adds nothing to it
    return tuple(results)
