"""The weight gradient of resize_conv_act in Triton: products over splits of the pixels, summed in a fixed order.

A convolution reads its input at the taps, a transposed convolution the gradient of its result. That tensor is `large`;
of the other, `small`, each pixel takes part once in each tap. With channels c of large and n of small:

    gradient[tap, c, n] = sum over the pixels p of small of large[stride p - padding + tap, c] small[p, n]
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._gpu import tuning
from .._gpu.blocks import dot, pixels, quotient
from .._gpu.launch import H100, Cost, capability, launch, noted_choices, size, wide
from .gpu_border import inside_border
from .gpu_convolution import Taps

# whether these are multiples of 16 tells the compiler nothing that it can use: one code serves all
_SCALARS = ["steps", "steps_per_split", "H", "W", "K", "stride", "padding", "border"]


@triton.jit
def _bordered(large, start, y, x, border, H, W, C, c, valid, BORDERED: tl.constexpr):
    """Loads (pixels, channels) of large, with its border, at (y, x) of the image that begins at pixel `start`."""
    if BORDERED:
        y, x = inside_border(y, H, border), inside_border(x, W, border)
    return pixels(large, start, y, x, H, W, C, c, valid)


@triton.jit(do_not_specialize=_SCALARS)
def conv_weight_grad_kernel(
    small, large, partial, steps, steps_per_split, SH, SW, N, H, W, C, K, stride, padding, border,
    TOGETHER: tl.constexpr, WRAPPED: tl.constexpr, BORDERED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BC: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """partial (splits, taps, C, N) float32: the gradient's sums over a split's pixels, TOGETHER taps in a program.

    small is (batch, SH, SW, N), large (batch, H, W, C). The taps of a program share the pixels of small, which are read
    and transposed once; they are of one row unless WRAPPED. A step is BP pixels of one sample.
    """
    n_blocks, c_blocks = tl.cdiv(N, BN), tl.cdiv(C, BC)
    n = (tl.program_id(0) % n_blocks) * BN + tl.arange(0, BN)
    block = tl.program_id(0) // n_blocks
    c, tap = (block % c_blocks) * BC + tl.arange(0, BC), block // c_blocks * TOGETHER
    per_sample = tl.cdiv(SH * SW, BP)
    acc0 = tl.zeros((BN, BC), tl.float32)
    acc1 = tl.zeros((BN, BC), tl.float32)
    acc2 = tl.zeros((BN, BC), tl.float32)
    first = tl.program_id(1) * steps_per_split
    for step in range(first, tl.minimum(first + steps_per_split, steps)):
        sample = step // per_sample
        p = (step % per_sample) * BP + tl.arange(0, BP)
        valid = p < SH * SW
        sy, sx = p // SW, p % SW
        sample = tl.cast(sample, tl.int64) if WIDE else sample
        start, y0, x0 = sample * (H * W), stride * sy - padding, stride * sx - padding
        a = tl.trans(pixels(small, sample * (SH * SW), sy, sx, SH, SW, N, n, valid))
        y, x = y0 + tap // K, x0 + tap % K
        acc0 = dot(a, _bordered(large, start, y, x, border, H, W, C, c, valid, BORDERED), acc0, PRECISION)
        if TOGETHER > 1:
            y, x = (y0 + (tap + 1) // K, x0 + (tap + 1) % K) if WRAPPED else (y, x + 1)
            acc1 = dot(a, _bordered(large, start, y, x, border, H, W, C, c, valid, BORDERED), acc1, PRECISION)
        if TOGETHER > 2:
            y, x = (y0 + (tap + 2) // K, x0 + (tap + 2) % K) if WRAPPED else (y, x + 1)
            acc2 = dot(a, _bordered(large, start, y, x, border, H, W, C, c, valid, BORDERED), acc2, PRECISION)
    taps = K * K
    matrix = tl.cast(tl.program_id(1), tl.int64) * taps + tap
    to = partial + (matrix * C + c)[None, :] * N + n[:, None]
    inside = (n < N)[:, None] & (c < C)[None, :]
    tl.store(to, acc0, mask=inside)
    if TOGETHER > 1:
        tl.store(to + C * N, acc1, mask=inside & (tap + 1 < taps))
    if TOGETHER > 2:
        tl.store(to + 2 * C * N, acc2, mask=inside & (tap + 2 < taps))


@triton.jit(do_not_specialize=_SCALARS)
def conv_weight_grad_flat_kernel(
    small, large, partial, steps, steps_per_split, SH, SW, N, H, W, C, K, stride, padding, border,
    BORDERED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BC: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Writes what conv_weight_grad_kernel does, with taps and channels of large as one axis: for few channels."""
    n_blocks = tl.cdiv(N, BN)
    n = (tl.program_id(0) % n_blocks) * BN + tl.arange(0, BN)
    j = (tl.program_id(0) // n_blocks) * BC + tl.arange(0, BC)
    rows = K * K * C
    tap, c = j // C, j % C
    row = quotient(tap, K)
    down, right = row - padding, tap - row * K - padding
    per_sample = tl.cdiv(SH * SW, BP)
    acc = tl.zeros((BC, BN), tl.float32)
    first = tl.program_id(1) * steps_per_split
    for step in range(first, tl.minimum(first + steps_per_split, steps)):
        sample = step // per_sample
        p = (step % per_sample) * BP + tl.arange(0, BP)
        valid = p < SH * SW
        sy, sx = p // SW, p % SW
        sample = tl.cast(sample, tl.int64) if WIDE else sample
        y, x = stride * sy[:, None] + down[None, :], stride * sx[:, None] + right[None, :]
        if BORDERED:
            y, x = inside_border(y, H, border), inside_border(x, W, border)
        inside = valid[:, None] & (j < rows)[None, :] & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        a = tl.load(large + (sample * (H * W) + y * W + x) * C + c[None, :], mask=inside, other=0.0)
        acc = dot(tl.trans(a), pixels(small, sample * (SH * SW), sy, sx, SH, SW, N, n, valid), acc, PRECISION)
    to = partial + (tl.cast(tl.program_id(1), tl.int64) * rows + j)[:, None] * N + n[None, :]
    tl.store(to, acc, mask=(j < rows)[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=["steps", "steps_per_split", "W", "border"])
def conv_weight_grad_square_kernel(
    small, large, partial, steps, steps_per_split, H, W, C, N, border,
    BORDERED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BC: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Writes what conv_weight_grad_kernel does for 3x3 at the same size, all nine taps in a program.

    large takes a tap's shift down and small its shift to the side, so that six reads serve nine products. The pixels
    counted are those of large and one more column on each side, where small is not zero. For GPUs whose matrix units
    read both factors from shared memory (Hopper and later); on others the nine sums leave no registers.
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
        left = pixels(small, start, py, px + 1, H, W, N, n, valid)
        middle = pixels(small, start, py, px, H, W, N, n, valid)
        right = pixels(small, start, py, px - 1, H, W, N, n, valid)
        a = tl.trans(_bordered(large, start, py - 1, px, border, H, W, C, c, valid, BORDERED))
        acc0 = dot(a, left, acc0, PRECISION)
        acc1 = dot(a, middle, acc1, PRECISION)
        acc2 = dot(a, right, acc2, PRECISION)
        a = tl.trans(_bordered(large, start, py, px, border, H, W, C, c, valid, BORDERED))
        acc3 = dot(a, left, acc3, PRECISION)
        acc4 = dot(a, middle, acc4, PRECISION)
        acc5 = dot(a, right, acc5, PRECISION)
        a = tl.trans(_bordered(large, start, py + 1, px, border, H, W, C, c, valid, BORDERED))
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


def partial_products(small: Tensor, large: Tensor, taps: Taps, precision: str) -> Tensor:
    """Forms (splits, taps, C, N) float32, whose sum over the splits is the gradient, in one launch.

    small, large: channels_last, padded; taps: of a convolution; precision: as tl.dot names it
    """
    square = (taps.kernel, taps.stride, taps.padding) == (3, 1, 1) and large.dtype != torch.float32
    square = square and large.shape[1] >= 64
    if not square or capability() < H100 or noted_choices() == "all":
        partial = _products_of_taps(small, large, taps, precision)
    if square and capability() >= H100:
        partial = _products_by_square(small, large, taps.border, precision)
    return partial


def _splits(steps: int, tiles: int, rounds: int) -> tuple[int, int]:
    """Gives the number of splits and the steps of each, for `rounds` rounds of programs on the GPU.

    A split has about 8 steps at least: fewer are not worth a sum of their own.
    """
    splits = max(1, min(triton.cdiv(rounds * tuning.processors(), tiles), triton.cdiv(steps, 8)))
    per_split = triton.cdiv(steps, splits)
    return triton.cdiv(steps, per_split), per_split


def _products_by_square(small: Tensor, large: Tensor, border: int, precision: str) -> Tensor:
    batch, channels, height, width = large.shape
    n = small.shape[1]
    bc, bn, bp = 64, min(64, max(16, triton.next_power_of_2(n))), tuning.block(height * (width + 2), 64)
    steps = batch * triton.cdiv(height * (width + 2), bp)
    blocks = triton.cdiv(channels, bc), triton.cdiv(n, bn)
    splits, per_split = _splits(steps, blocks[0] * blocks[1], 1)  # a multiprocessor holds one program
    partial = torch.empty((splits, 9, channels, n), dtype=torch.float32, device=large.device)

    def cost() -> Cost:
        gathered = 3 * blocks[1] * size(large) + 3 * blocks[0] * size(small) + size(partial)
        products = batch * height * width * 9 * channels * n
        return Cost(2.0 * products, size(large, small, partial), gathered, matrix=True)

    launch(
        conv_weight_grad_square_kernel, (blocks[0] * blocks[1], splits), small=small, large=large, partial=partial,
        steps=steps, steps_per_split=per_split, H=height, W=width, C=channels, N=n, border=border,
        BORDERED=border > 0, WIDE=wide(large, small), PRECISION=precision, BC=bc, BN=bn, BP=bp,
        cost=cost, num_warps=8, num_stages=3, oldest=H100,
    )  # fmt: skip
    return partial


def _products_of_taps(small: Tensor, large: Tensor, taps: Taps, precision: str) -> Tensor:
    batch, channels, height, width = large.shape
    n, small_height, small_width = small.shape[1:]
    half, area, count = large.dtype != torch.float32, small_height * small_width, taps.kernel**2
    flat = channels < 64
    together = 1 if flat or count == 1 else 2 if count % 2 == 0 else 3  # of 25 and 49 taps 27 and 51 places
    # a float32 product is three products, and each of its factors is held in two parts
    narrow = together == 3 and not half
    bc = min(32 if narrow else 64, max(16, triton.next_power_of_2(count * channels if flat else channels)))
    exact = not half and precision == "ieee"
    # the sums of three taps, and the positions in a border, take registers too
    widest = 128 if half and not flat and together < 3 else 32 if exact and taps.border else 64
    bn = min(widest, max(16, triton.next_power_of_2(n)))
    fewest = 32 if exact else 16  # steps of 16 exact pixels leave no registers
    bp = tuning.block(area, min(64 if half and bn > 16 else 32, max(fewest, triton.next_power_of_2(area))))
    steps = batch * triton.cdiv(area, bp)
    rows = triton.cdiv(count * channels, bc) if flat else triton.cdiv(count, together) * triton.cdiv(channels, bc)
    tiles = rows * triton.cdiv(n, bn)
    splits, per_split = _splits(steps, tiles, 2)
    partial = torch.empty((splits, count, channels, n), dtype=torch.float32, device=large.device)

    def cost() -> Cost:
        read = count * channels * triton.cdiv(n, bn) + rows * n  # channels, for each pixel
        gathered = batch * area * read * large.element_size() + size(partial)
        flops = 2.0 * batch * area * count * channels * n
        return Cost(flops, size(large, small, partial), gathered, matrix=precision != "ieee" or half)

    sums, choices = bc * bn * together, {}
    if not flat:
        choices = {"TOGETHER": together, "WRAPPED": taps.kernel % together > 0}
    launch(
        conv_weight_grad_flat_kernel if flat else conv_weight_grad_kernel, (tiles, splits), small=small, large=large,
        partial=partial, steps=steps, steps_per_split=per_split, SH=small_height, SW=small_width, N=n, H=height,
        W=width, C=channels, K=taps.kernel, stride=taps.stride, padding=taps.padding, border=taps.border,
        **choices, BORDERED=taps.border > 0, WIDE=wide(large, small), PRECISION=precision, BC=bc, BN=bn, BP=bp,
        cost=cost, num_warps=8 if sums >= (2 if half else 1) * 64 * 64 else 4, num_stages=3,
    )  # fmt: skip
    return partial
