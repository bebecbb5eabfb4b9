"""The weight gradient of resize_conv_act in Triton: products over splits of the pixels, summed in a fixed order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._gpu import tuning
from .._gpu.blocks import dot, pixels, rounded
from .._gpu.launch import H100, Cost, capability, launch, noted_choices, size, wide

# the forms of a forward pass, by the numbers that gpu.py gives them
SAME, DOWN, UP = (tl.constexpr(number) for number in range(3))


@triton.jit
def conv_weight_grad_kernel(
    dz, x, partial, steps, steps_per_split, H, W, C, ZH, ZW, N, grid_height, grid_width,
    FORM: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BC: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """partial (splits, taps, C, N) float32: sums over a split's pixels of x at each tap times dz; SAME, DOWN or UP.

    A program has several taps of one row. They share a pixel of one tensor, which is read once: for SAME and DOWN all
    three taps share a pixel of dz (batch, ZH, ZW, N); for UP two of the four taps share a pixel of x (batch, H, W, C),
    and each takes another pixel of dz. A step is BP pixels of one sample, counted on the grid of the tensor that is
    read once.
    """
    TAPS: tl.constexpr = 16 if FORM == UP else 9
    TOGETHER: tl.constexpr = 2 if FORM == UP else 3
    STRIDE: tl.constexpr = 1 if FORM == SAME else 2
    n_blocks, c_blocks = tl.cdiv(N, BN), tl.cdiv(C, BC)
    n = (tl.program_id(0) % n_blocks) * BN + tl.arange(0, BN)
    block = tl.program_id(0) // n_blocks
    c, first_tap = (block % c_blocks) * BC + tl.arange(0, BC), block // c_blocks * TOGETHER
    row, column = first_tap // (4 if FORM == UP else 3), first_tap % (4 if FORM == UP else 3)
    per_sample = tl.cdiv(grid_height * grid_width, BP)
    acc0 = tl.zeros((BC, BN), tl.float32)
    acc1 = tl.zeros((BC, BN), tl.float32)
    acc2 = tl.zeros((BC, BN), tl.float32)
    first = tl.program_id(1) * steps_per_split
    for step in range(first, tl.minimum(first + steps_per_split, steps)):
        sample = step // per_sample
        p = (step % per_sample) * BP + tl.arange(0, BP)
        valid = p < grid_height * grid_width
        gy, gx = p // grid_width, p % grid_width
        sample = tl.cast(sample, tl.int64) if WIDE else sample
        x_start, z_start = sample * (H * W), sample * (ZH * ZW)
        y0, x0 = STRIDE * gy + row - 1, STRIDE * gx + column - 1
        if FORM == UP:
            a = tl.trans(pixels(x, x_start, gy, gx, H, W, C, c, valid))
            acc0 = dot(a, pixels(dz, z_start, y0, x0, ZH, ZW, N, n, valid), acc0, PRECISION)
            acc1 = dot(a, pixels(dz, z_start, y0, x0 + 1, ZH, ZW, N, n, valid), acc1, PRECISION)
        else:
            z = pixels(dz, z_start, gy, gx, ZH, ZW, N, n, valid)
            acc0 = dot(tl.trans(pixels(x, x_start, y0, x0, H, W, C, c, valid)), z, acc0, PRECISION)
            acc1 = dot(tl.trans(pixels(x, x_start, y0, x0 + 1, H, W, C, c, valid)), z, acc1, PRECISION)
            acc2 = dot(tl.trans(pixels(x, x_start, y0, x0 + 2, H, W, C, c, valid)), z, acc2, PRECISION)
    matrix = tl.cast(tl.program_id(1), tl.int64) * TAPS + first_tap
    to = partial + (matrix * C + c)[:, None] * N + n[None, :]
    inside = (c < C)[:, None] & (n < N)[None, :]
    tl.store(to, acc0, mask=inside)
    tl.store(to + C * N, acc1, mask=inside)
    if FORM != UP:
        tl.store(to + 2 * C * N, acc2, mask=inside)


@triton.jit
def conv_weight_grad_square_kernel(
    dz, x, partial, steps, steps_per_split, H, W, C, N,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Writes what conv_weight_grad_kernel does for SAME, all nine taps in a program: three shifts of x, three of dz.

    x takes a tap's shift down and dz its shift to the side, so that six reads serve nine products. The pixels counted
    are those of x and one more column on each side, where only dz is not zero. For GPUs whose matrix units read both
    factors from shared memory (Hopper and later); on others the nine sums leave no registers.
    """
    n_blocks, columns = tl.cdiv(N, BN), W + 2
    n = (tl.program_id(0) % n_blocks) * BN + tl.arange(0, BN)
    c = (tl.program_id(0) // n_blocks) * BC + tl.arange(0, BC)
    per_sample = tl.cdiv(H * columns, BP)
    acc0 = tl.zeros((BC, BN), tl.float32)
    acc1, acc2, acc3, acc4, acc5, acc6, acc7, acc8 = acc0, acc0, acc0, acc0, acc0, acc0, acc0, acc0
    first = tl.program_id(1) * steps_per_split
    for step in range(first, tl.minimum(first + steps_per_split, steps)):
        sample = step // per_sample
        p = (step % per_sample) * BP + tl.arange(0, BP)
        valid = p < H * columns
        py, px = p // columns, p % columns - 1
        start = (tl.cast(sample, tl.int64) if WIDE else sample) * (H * W)
        left = pixels(dz, start, py, px + 1, H, W, N, n, valid)
        middle = pixels(dz, start, py, px, H, W, N, n, valid)
        right = pixels(dz, start, py, px - 1, H, W, N, n, valid)
        a = tl.trans(pixels(x, start, py - 1, px, H, W, C, c, valid))
        acc0 = dot(a, left, acc0, PRECISION)
        acc1 = dot(a, middle, acc1, PRECISION)
        acc2 = dot(a, right, acc2, PRECISION)
        a = tl.trans(pixels(x, start, py, px, H, W, C, c, valid))
        acc3 = dot(a, left, acc3, PRECISION)
        acc4 = dot(a, middle, acc4, PRECISION)
        acc5 = dot(a, right, acc5, PRECISION)
        a = tl.trans(pixels(x, start, py + 1, px, H, W, C, c, valid))
        acc6 = dot(a, left, acc6, PRECISION)
        acc7 = dot(a, middle, acc7, PRECISION)
        acc8 = dot(a, right, acc8, PRECISION)
    to = partial + (tl.cast(tl.program_id(1), tl.int64) * (9 * C) + c)[:, None] * N + n[None, :]
    inside = (c < C)[:, None] & (n < N)[None, :]
    tl.store(to, acc0, mask=inside)
    tl.store(to + C * N, acc1, mask=inside)
    tl.store(to + 2 * C * N, acc2, mask=inside)
    tl.store(to + 3 * C * N, acc3, mask=inside)
    tl.store(to + 4 * C * N, acc4, mask=inside)
    tl.store(to + 5 * C * N, acc5, mask=inside)
    tl.store(to + 6 * C * N, acc6, mask=inside)
    tl.store(to + 7 * C * N, acc7, mask=inside)
    tl.store(to + 8 * C * N, acc8, mask=inside)


@triton.jit
def conv_weight_grad_flat_kernel(
    dz, x, partial, steps, steps_per_split, H, W, C, ZH, ZW, N,
    FORM: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BC: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Writes what conv_weight_grad_kernel does for SAME and DOWN, with taps and channels as one axis: for small C."""
    STRIDE: tl.constexpr = 1 if FORM == SAME else 2
    n_blocks = tl.cdiv(N, BN)
    n = (tl.program_id(0) % n_blocks) * BN + tl.arange(0, BN)
    j = (tl.program_id(0) // n_blocks) * BC + tl.arange(0, BC)
    tap, c = j // C, j % C
    per_sample = tl.cdiv(ZH * ZW, BP)
    acc = tl.zeros((BC, BN), tl.float32)
    first = tl.program_id(1) * steps_per_split
    for step in range(first, tl.minimum(first + steps_per_split, steps)):
        sample = step // per_sample
        p = (step % per_sample) * BP + tl.arange(0, BP)
        valid = p < ZH * ZW
        zy, zx = p // ZW, p % ZW
        sample = tl.cast(sample, tl.int64) if WIDE else sample
        y, xx = STRIDE * zy[:, None] + (tap // 3)[None, :] - 1, STRIDE * zx[:, None] + (tap % 3)[None, :] - 1
        inside = valid[:, None] & (j < 9 * C)[None, :] & (y >= 0) & (y < H) & (xx >= 0) & (xx < W)
        a = tl.load(x + (sample * (H * W) + y * W + xx) * C + c[None, :], mask=inside, other=0.0)
        acc = dot(tl.trans(a), pixels(dz, sample * (ZH * ZW), zy, zx, ZH, ZW, N, n, valid), acc, PRECISION)
    to = partial + (tl.cast(tl.program_id(1), tl.int64) * (9 * C) + j)[:, None] * N + n[None, :]
    tl.store(to, acc, mask=(j < 9 * C)[:, None] & (n < N)[None, :])


@triton.jit
def sum_gradients_kernel(
    partial, splits, dweight, C, CP, N, NP, channels, first, bias_rows, bias_count, dbias,
    FOLD: tl.constexpr, WITH_WEIGHT: tl.constexpr, WITH_BIAS: tl.constexpr,
    BC: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Sums partial (splits, taps, CP, NP) to dweight[:, first:first + C] and bias_rows (bias_count, N) to dbias (N,).

    The order of every sum is fixed. dweight (N, channels, 3, 3) is written WITH_WEIGHT, dbias WITH_BIAS.

    FOLD: each of the 3x3 taps is the sum of the four 4x4 taps that hold it. Program axis 1 counts the taps, then
    the bias.
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
            start = partial + tl.cast(split, tl.int64) * (TAPS * CP) * NP
            if FOLD:
                for i in tl.static_range(2):
                    for j in tl.static_range(2):
                        folded = (2 - tap // 3 + i) * 4 + 2 - tap % 3 + j
                        total += tl.load(start + (folded * CP + c)[:, None] * NP + n[None, :], mask=inside, other=0.0)
            else:
                total += tl.load(start + (tap * CP + c)[:, None] * NP + n[None, :], mask=inside, other=0.0)
        at = (n[None, :] * channels + first + c[:, None]) * 9 + tap
        tl.store(dweight + at, rounded(total, dweight.dtype.element_ty), mask=inside)
    elif WITH_BIAS:  # noqa: SIM102 (known when this is compiled; block is not)
        if block == 0:
            sums = tl.zeros((BN,), tl.float32)
            for r0 in range(0, bias_count, BR):
                r = r0 + tl.arange(0, BR)
                inside = (r < bias_count)[:, None] & (n < N)[None, :]
                sums += tl.sum(tl.load(bias_rows + r[:, None] * N + n[None, :], mask=inside, other=0.0), axis=0)
            tl.store(dbias + n, rounded(sums, dbias.dtype.element_ty), mask=n < N)


def weight_gradient(
    dz: Tensor, x: Tensor, dweight: Tensor | None, first: int, channels: int, form: int, precision: str,
    bias_rows: Tensor | None, dbias: Tensor | None,
) -> None:  # fmt: skip
    """Writes dweight[:, first:first + channels], and dbias as the sum of bias_rows; a result that is None is left out.

    dz, x:     gradient before the activation and input, channels_last, padded
    form:      SAME, DOWN or UP, as a number
    precision: as tl.dot names it
    bias_rows: (rows, N) float32 or None
    """
    partial, splits, fold = dz, 1, form == UP.value
    if dweight is not None:
        partial = _partial_products(dz, x, form, precision)
        splits = len(partial)
    n = bias_rows.shape[1] if dweight is None else dweight.shape[0]
    bc, bn = 16, min(64, max(16, triton.next_power_of_2(n)))
    blocks, taps = (1, 0) if dweight is None else (triton.cdiv(channels, bc), 9)
    launch(
        sum_gradients_kernel, (blocks * triton.cdiv(n, bn), taps + 1), partial=partial, splits=splits,
        dweight=partial if dweight is None else dweight, C=channels, CP=x.shape[1], N=n, NP=dz.shape[1],
        channels=channels if dweight is None else dweight.shape[1], first=first,
        bias_rows=partial if bias_rows is None else bias_rows, bias_count=0 if bias_rows is None else len(bias_rows),
        dbias=partial if bias_rows is None else dbias,
        FOLD=fold, WITH_WEIGHT=dweight is not None, WITH_BIAS=bias_rows is not None, BC=bc, BN=bn, BR=64,
        cost=lambda: Cost(
            (4.0 if fold else 1.0) * partial.numel() * (dweight is not None),
            size(bias_rows, dbias) + (0 if dweight is None else size(partial) + 9 * n * channels * dz.element_size()),
        ),
    )  # fmt: skip


def _partial_products(dz: Tensor, x: Tensor, form: int, precision: str) -> Tensor:
    """Forms (splits, taps, C, N) float32, whose sum over the splits is the gradient of the weights of x."""
    square = form == SAME.value and x.dtype != torch.float32 and x.shape[1] >= 64
    if not square or capability() < H100 or noted_choices() == "all":
        partial = _products_by_row(dz, x, form, precision)
    if square and capability() >= H100:
        partial = _products_by_square(dz, x, precision)
    return partial


def _splits(steps: int, tiles: int, rounds: int) -> tuple[int, int]:
    """Gives the number of splits and the steps of each, for `rounds` rounds of programs on the GPU.

    A split has about 8 steps at least: fewer are not worth a sum of their own.
    """
    splits = max(1, min(triton.cdiv(rounds * tuning.processors(), tiles), triton.cdiv(steps, 8)))
    per_split = triton.cdiv(steps, splits)
    return triton.cdiv(steps, per_split), per_split


def _products_by_square(dz: Tensor, x: Tensor, precision: str) -> Tensor:
    batch, channels, height, width = x.shape
    n = dz.shape[1]
    bc, bn, bp = 64, min(64, max(16, triton.next_power_of_2(n))), tuning.block(height * (width + 2), 64)
    steps = batch * triton.cdiv(height * (width + 2), bp)
    blocks = triton.cdiv(channels, bc), triton.cdiv(n, bn)
    splits, per_split = _splits(steps, blocks[0] * blocks[1], 1)  # a multiprocessor holds one program
    partial = torch.empty((splits, 9, channels, n), dtype=torch.float32, device=x.device)

    def cost() -> Cost:
        gathered = 3 * blocks[1] * size(x) + 3 * blocks[0] * size(dz) + size(partial)
        products = batch * height * width * 9 * channels * n
        return Cost(2.0 * products, size(x, dz, partial), gathered, matrix=True)

    launch(
        conv_weight_grad_square_kernel, (blocks[0] * blocks[1], splits), dz=dz, x=x, partial=partial, steps=steps,
        steps_per_split=per_split, H=height, W=width, C=channels, N=n,
        WIDE=wide(x, dz), PRECISION=precision, BC=bc, BN=bn, BP=bp,
        cost=cost, num_warps=8, num_stages=3, oldest=H100,
    )  # fmt: skip
    return partial


def _products_by_row(dz: Tensor, x: Tensor, form: int, precision: str) -> Tensor:
    batch, channels, height, width = x.shape
    n, z_height, z_width = dz.shape[1:]
    fold, half = form == UP.value, x.dtype != torch.float32
    taps, together = (16, 2) if fold else (9, 3)
    grid = (height, width) if fold else (z_height, z_width)
    flat = not fold and channels < 64
    bc = min(64, max(16, triton.next_power_of_2(9 * channels if flat else channels)))
    # a float32 product is three products, and each of its factors is held in two parts
    widest = 64 if fold or flat else 128 if half else 32
    bn = min(widest, max(16, triton.next_power_of_2(n)))
    area = grid[0] * grid[1]  # pixels that a sample counts
    bp = tuning.block(area, min(64 if half and bn > 16 else 32, max(16, triton.next_power_of_2(area))))
    steps = batch * triton.cdiv(area, bp)
    rows = triton.cdiv(9 * channels, bc) if flat else taps // together * triton.cdiv(channels, bc)
    tiles = rows * triton.cdiv(n, bn)
    splits, per_split = _splits(steps, tiles, 2)
    partial = torch.empty((splits, taps, channels, n), dtype=torch.float32, device=x.device)

    def cost() -> Cost:
        x_reads, z_reads = taps * channels * triton.cdiv(n, bn), rows * n  # channels read for each pixel
        if fold:  # x is read once for the taps of a program, dz for each of them
            x_reads, z_reads = x_reads // together, z_reads * together
        gathered = batch * area * (x_reads + z_reads) * x.element_size() + size(partial)
        return Cost(
            2.0 * batch * area * taps * channels * n, size(x, dz, partial), gathered, matrix=precision != "ieee" or half
        )

    sums = bc * bn * (1 if flat else together)
    grid_sizes = {} if flat else {"grid_height": grid[0], "grid_width": grid[1]}
    launch(
        conv_weight_grad_flat_kernel if flat else conv_weight_grad_kernel, (tiles, splits), dz=dz, x=x, partial=partial,
        steps=steps, steps_per_split=per_split, H=height, W=width, C=channels, ZH=z_height, ZW=z_width, N=n,
        **grid_sizes, FORM=form, WIDE=wide(x, dz), PRECISION=precision, BC=bc, BN=bn, BP=bp,
        cost=cost, num_warps=8 if sums >= (2 if half else 1) * 64 * 64 else 4, num_stages=3,
    )  # fmt: skip
    return partial
