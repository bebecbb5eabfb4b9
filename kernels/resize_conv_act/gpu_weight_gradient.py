"""The weight gradient of resize_conv_act in Triton: products over the pixels, split, and summed in a fixed order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._gpu import tuning
from .._gpu.blocks import dot, rounded
from .._gpu.launch import Cost, launch, size, wide

# as gpu.py numbers the forms of a forward pass
SAME, DOWN, UP = (tl.constexpr(number) for number in range(3))


@triton.jit
def conv_weight_grad_kernel(
    dz, x, scale, partial, steps, steps_per_split, H, W, C, ZH, ZW, N, grid_height, grid_width,
    FORM: tl.constexpr, SCALED: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BJ: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """partial (splits, taps, C, N) float32: sums over a split's pixels of x at each tap times dz; SAME, DOWN or UP.

    A step is BP pixels of one sample, counted on the grid that has both: dz's for SAME and DOWN, x's for UP, where each
    of 16 taps takes another pixel of dz. A step's product counts `scale` times where SCALED.
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
        wide_sample = tl.cast(sample, tl.int64) if WIDE else sample
        x_start, z_start = wide_sample * (H * W), wide_sample * (ZH * ZW)
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
    partial, splits, dweight, C, CP, N, NP, channels, first, bias_rows, bias_count, dbias,
    FOLD: tl.constexpr, WITH_WEIGHT: tl.constexpr, WITH_BIAS: tl.constexpr,
    BC: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """The fixed-order sums: dweight (N, channels, 3, 3)[:, first:first + C] of partial (splits, taps, CP, NP) and,
    WITH_BIAS, dbias (N,) of bias_rows (bias_count, N).

    FOLD: each of the 3x3 taps is the sum of the four of 4x4 taps that hold it. Program axis 1: a tap; last, the bias.
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
    dz: Tensor, x: Tensor, scale: Tensor | None, dweight: Tensor | None, first: int, channels: int, form: int,
    precision: str, bias_rows: Tensor | None, dbias: Tensor | None,
) -> None:  # fmt: skip
    """dweight[:, first:first + channels] from dz and x, padded channels_last, and dbias as the sum of bias_rows.

    scale (B,) float32 weighs each sample's products. Either result is left out where it is None.
    """
    partial, splits, fold = dz, 1, form == UP.value
    if dweight is not None:
        partial = _partial_products(dz, x, scale, form, precision)
        splits = len(partial)
    n = bias_rows.shape[1] if dweight is None else dweight.shape[0]
    bc, bn = 16, min(64, max(16, triton.next_power_of_2(n)))
    blocks, taps = (1, 0) if dweight is None else (triton.cdiv(channels, bc), 9)
    launch(
        sum_gradients_kernel, (blocks * triton.cdiv(n, bn), taps + 1), partial, splits,
        partial if dweight is None else dweight, channels, x.shape[1], n, dz.shape[1],
        channels if dweight is None else dweight.shape[1], first, partial if bias_rows is None else bias_rows,
        0 if bias_rows is None else len(bias_rows), partial if bias_rows is None else dbias,
        FOLD=fold, WITH_WEIGHT=dweight is not None, WITH_BIAS=bias_rows is not None, BC=bc, BN=bn, BR=64,
        cost=lambda: Cost(
            (4.0 if fold else 1.0) * partial.numel() * (dweight is not None),
            size(bias_rows, dbias) + (0 if dweight is None else size(partial) + 9 * n * channels * dz.element_size()),
        ),
    )  # fmt: skip


def _partial_products(dz: Tensor, x: Tensor, scale: Tensor | None, form: int, precision: str) -> Tensor:
    """(splits, taps, C, N) float32, whose sum over the splits is the gradient of the weights that x met."""
    batch, channels, height, width = x.shape
    n, z_height, z_width = dz.shape[1:]
    fold, half = form == UP.value, x.dtype != torch.float32
    taps = 16 if fold else 9
    grid = (height, width) if fold else (z_height, z_width)
    # several taps share a tile where the channels alone would not fill it
    flat = not fold and channels < 64
    bj = min(64 if flat else 128, max(16, triton.next_power_of_2(taps * channels if flat else channels)))
    bn = min(128, max(16, triton.next_power_of_2(n)))
    bp = min(64 if half else 32, max(16, triton.next_power_of_2(grid[0] * grid[1])))
    steps = batch * triton.cdiv(grid[0] * grid[1], bp)
    columns = triton.cdiv(taps * channels, bj) if flat else taps * triton.cdiv(channels, bj)
    tiles = columns * triton.cdiv(n, bn)
    # enough programs for two rounds of the multiprocessors, and at least eight steps for each
    splits = max(1, min(triton.cdiv(2 * tuning.processors(), tiles), triton.cdiv(steps, 8)))
    per_split = triton.cdiv(steps, splits)
    splits = triton.cdiv(steps, per_split)
    partial = torch.empty((splits, taps, channels, n), dtype=torch.float32, device=x.device)

    def cost() -> Cost:
        flops = 2.0 * batch * grid[0] * grid[1] * taps * channels * n
        a_tile = batch * grid[0] * grid[1] * x.element_size()
        gathered = a_tile * (columns * n + taps * channels * triton.cdiv(n, bn)) + size(partial)
        return Cost(flops, size(x, dz, partial), gathered, matrix=precision != "ieee" or half)

    launch(
        conv_weight_grad_kernel, (tiles, splits), dz, x, partial if scale is None else scale, partial, steps, per_split,
        height, width, channels, z_height, z_width, n, *grid,
        FORM=form, SCALED=scale is not None, FLAT=flat, WIDE=wide(x, dz), PRECISION=precision, BJ=bj, BN=bn, BP=bp,
        cost=cost, num_warps=8 if bj * bn >= 128 * 128 else 4, num_stages=3,
    )  # fmt: skip
    return partial
