"""Gram matrices of features in Triton, and the product with the features that is their backward; gram and style_loss.

Features (B, C, H, W) are read as they lie, (B, C, HW) or (B, HW, C). A program sums the products of one tile of the
upper triangle over one split of an image's pixels; where there are several splits, a second kernel adds them in their
order. Both write a tile and its mirror image, so that the result is symmetric to the bit.

float32 products are three TF32 products (near float32), or one where torch.backends.cuda.matmul.allow_tf32 is set. The
matrix units cut sums off where float32 rounds: they sum one step of pixels only, and these sums are added in float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .blocks import dot, rounded
from .launch import Cost, launch, size

SUM_SIDE = 32  # of the blocks that the splits are added in


@triton.jit
def triangle(number):
    """The number-th pair (i, j) with i <= j, column by column: (0, 0), (0, 1), (1, 1), (0, 2) ..."""
    j = ((tl.sqrt(8.0 * number + 1.0) - 1.0) * 0.5).to(tl.int32)
    j = tl.where(j * (j + 1) // 2 > number, j - 1, j)  # the root is rounded
    j = tl.where((j + 1) * (j + 2) // 2 <= number, j + 1, j)
    return number - j * (j + 1) // 2, j


@triton.jit
def tile_of_products(
    features, image, i, j, first, last, pixels, channels, scale,
    PLANAR: tl.constexpr, ONE_TILE: tl.constexpr, PRECISION: tl.constexpr, SIDE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """(SIDE, SIDE) float32: channels of tile i times those of j, over pixels first to last of an image, times scale."""
    row, column = i * SIDE + tl.arange(0, SIDE), j * SIDE + tl.arange(0, SIDE)
    k = tl.arange(0, STEP)
    start = features + tl.cast(image, tl.int64) * channels * pixels
    acc = tl.zeros((SIDE, SIDE), tl.float32)
    for pixel in range(first, last, STEP):
        inside = pixel + k < last
        if PLANAR:
            a_at = tl.cast(row, tl.int64)[:, None] * pixels + (pixel + k)[None, :]
            a = tl.load(start + a_at, mask=(row < channels)[:, None] & inside[None, :], other=0.0)
            if ONE_TILE:
                b = tl.trans(a)
            else:
                b_at = tl.cast(column, tl.int64)[:, None] * pixels + (pixel + k)[None, :]
                b = tl.trans(tl.load(start + b_at, mask=(column < channels)[:, None] & inside[None, :], other=0.0))
        else:
            of_step = start + tl.cast(pixel, tl.int64) * channels
            b_inside = inside[:, None] & (column < channels)[None, :]
            b = tl.load(of_step + k[:, None] * channels + column[None, :], mask=b_inside, other=0.0)
            if ONE_TILE:
                a = tl.trans(b)
            else:
                a_inside = inside[:, None] & (row < channels)[None, :]
                a = tl.trans(tl.load(of_step + k[:, None] * channels + row[None, :], mask=a_inside, other=0.0))
        if PRECISION == "ieee":  # half precision: exact products, and a tolerance that a cut-off sum keeps
            acc = dot(a, b, acc, PRECISION)
        else:
            acc += dot(a, b, tl.zeros((SIDE, SIDE), tl.float32), PRECISION) * scale
    if PRECISION == "ieee":
        acc = acc * scale
    return acc


@triton.jit
def symmetric_tile(acc, i, j):
    """The tile (i, j), i <= j, with a diagonal one's lower half taken from its upper; and that of (j, i)."""
    mirrored = tl.trans(acc)
    row, column = tl.arange(0, acc.shape[0])[:, None], tl.arange(0, acc.shape[1])[None, :]
    lower = (i == j) & (row > column)
    return tl.where(lower, mirrored, acc), mirrored


@triton.jit
def store_symmetric(result, value, mirrored, image, i, j, channels, SIDE: tl.constexpr):
    """The tile (i, j) and its mirror image of the matrix (channels, channels) of one image."""
    row, column = i * SIDE + tl.arange(0, SIDE), j * SIDE + tl.arange(0, SIDE)
    start = result + tl.cast(image, tl.int64) * channels * channels
    inside = (row < channels)[:, None] & (column < channels)[None, :]
    tl.store(start + row[:, None] * channels + column[None, :], value, mask=inside)
    inside = (column < channels)[:, None] & (row < channels)[None, :] & (i < j)
    tl.store(start + column[:, None] * channels + row[None, :], mirrored, mask=inside)


@triton.jit
def squares_of_tile(value, i, j):
    """The sum of the squares of a tile (i, j) and its mirror image."""
    # flat: Triton 3.7 fails on a sum along one axis of what Blackwell's tensor memory holds
    total = tl.sum(tl.reshape(value * value, (value.shape[0] * value.shape[1],)), axis=0)
    return tl.where(i == j, total, 2.0 * total)


@triton.jit
def sum_of_splits(partial, image, i, j, splits, tiles, SIDE: tl.constexpr, SUM: tl.constexpr):
    """Block (i, j) of SUM x SUM, i <= j: an image's splits of partial (batch, splits, tiles, SIDE, SIDE) in order."""
    per_side: tl.constexpr = SIDE // SUM
    tile = (j // per_side) * (j // per_side + 1) // 2 + i // per_side
    row, column = (i % per_side) * SUM + tl.arange(0, SUM), (j % per_side) * SUM + tl.arange(0, SUM)
    acc = tl.zeros((SUM, SUM), tl.float32)
    for split in range(splits):
        number = (tl.cast(image, tl.int64) * splits + split) * tiles + tile
        acc += tl.load(partial + number * (SIDE * SIDE) + row[:, None] * SIDE + column[None, :])
    return acc


@triton.jit
def gradient_tile(
    matrix, features, gradient, tile, image, pixels, channels, factor,
    SYMMETRIC: tl.constexpr, PLANAR: tl.constexpr, PRECISION: tl.constexpr, ROUND: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A tile of gradient = (M + M^T) F factor of one image, M (channels, channels) float32, F its features.

    SYMMETRIC: M is, and is taken twice. ROUND: the products are those of F's dtype, bfloat16; else of float32, where
    the matrix keeps its range beside float16 features.
    """
    channel_tiles = tl.cdiv(channels, CHANNELS)
    c = (tile % channel_tiles) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.cast(tile // channel_tiles, tl.int64) * PIXELS + tl.arange(0, PIXELS)
    c_inside, p_inside = c < channels, p < pixels
    of_matrix = matrix + tl.cast(image, tl.int64) * channels * channels
    start = tl.cast(image, tl.int64) * channels * pixels
    acc = tl.zeros((CHANNELS, PIXELS) if PLANAR else (PIXELS, CHANNELS), tl.float32)
    for k0 in range(0, channels, STEP):
        k = k0 + tl.arange(0, STEP)
        k_inside = k < channels
        # rows k of the symmetric sum, columns c
        m_inside = k_inside[:, None] & c_inside[None, :]
        m = tl.load(of_matrix + k[:, None] * channels + c[None, :], mask=m_inside, other=0.0)
        if SYMMETRIC:
            m = m + m
        else:
            m_inside = c_inside[:, None] & k_inside[None, :]
            m += tl.trans(tl.load(of_matrix + c[:, None] * channels + k[None, :], mask=m_inside, other=0.0))
        if ROUND:
            m = rounded(m, features.dtype.element_ty)
        if PLANAR:
            at, inside = tl.cast(k, tl.int64)[:, None] * pixels + p[None, :], k_inside[:, None] & p_inside[None, :]
        else:
            at, inside = p[:, None] * channels + k[None, :], p_inside[:, None] & k_inside[None, :]
        f = tl.load(features + start + at, mask=inside, other=0.0)
        if not ROUND:
            f = f.to(tl.float32)
        a, b = (tl.trans(m), f) if PLANAR else (f, m)
        if ROUND:
            acc = dot(a, b, acc, PRECISION)
        else:
            acc += dot(a, b, tl.zeros_like(acc), PRECISION) * factor
    if ROUND:
        acc = acc * factor
    if PLANAR:
        at, inside = tl.cast(c, tl.int64)[:, None] * pixels + p[None, :], c_inside[:, None] & p_inside[None, :]
    else:
        at, inside = p[:, None] * channels + c[None, :], p_inside[:, None] & c_inside[None, :]
    tl.store(gradient + start + at, rounded(acc, gradient.dtype.element_ty), mask=inside)


def pairs(count: int) -> int:
    """Pairs (i, j) with i <= j of so many."""
    return count * (count + 1) // 2


def precision(dtype: torch.dtype) -> str:
    """How float32 products are formed; half precision has but one way."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def _power(count: int, low: int, high: int) -> int:
    """The smallest power of two that holds count, from low to high."""
    return min(high, max(low, triton.next_power_of_2(count)))


def _aligned(channels: int, pixels: int) -> bool:
    """Whether both layouts are read 16 bytes at a time; else each element has an address, in registers."""
    return channels % 16 == 0 and pixels % 16 == 0


def _warps(area: int, half: bool, aligned: bool) -> int:
    """Of a tile of so many sums; float32 has a second set of them, and every operand in two parts."""
    return 8 if area >= (64 * 128 if half and aligned else 64 * 64) else 4


class Problem(NamedTuple):
    """Which Gram matrices: features (batch, channels, pixels) of a dtype, in one or (style loss) two tensors."""

    batch: int
    channels: int
    pixels: int
    dtype: torch.dtype
    tensors: int = 1

    @property
    def scale(self) -> float:
        return 1.0 / (self.channels * self.pixels)


class Tiling(NamedTuple):
    """SIDE x SIDE tiles of the upper triangle, summed in STEP pixels at a time over so many splits of the pixels."""

    side: int
    step: int
    splits: int
    pixels: int  # of one split
    tiles: int
    warps: int
    stages: int

    @property
    def direct(self) -> bool:
        """One split: what is summed is the result."""
        return self.splits == 1


def tilings(problem: Problem) -> list[Tiling]:
    """Those worth trying, the likely best first: as large as still occupy the multiprocessors."""
    half, batch = problem.dtype != torch.float32, max(1, problem.batch)
    aligned = _aligned(problem.channels, problem.pixels)
    step = _power(problem.pixels, 16, (64 if half else 32) // (1 if aligned else 2))

    def tiling(side: int, most: int) -> Tiling:
        tiles = pairs(triton.cdiv(problem.channels, side))
        splits = max(
            1, min(triton.cdiv(tuning.processors(), batch * tiles), triton.cdiv(problem.pixels, 4 * step), most)
        )
        of_split = triton.cdiv(triton.cdiv(problem.pixels, splits), step) * step
        warps, stages = _warps(side * side, half, aligned), 3 if aligned else 2
        return Tiling(side, step, triton.cdiv(problem.pixels, of_split), of_split, tiles, warps, stages)

    # two sums of 128 x 128 in float32, each apart from the product that joins it, leave no register
    largest = _power(problem.channels, 16, 128 if half else 64)
    sides = [side for side in (128, 64, 32) if side <= largest] or [largest]
    found = [tiling(side, problem.pixels) for side in sides]
    full = [t for t in found if 2 * batch * t.tiles * t.splits >= tuning.processors()]
    best = full[0] if full else found[-1]
    at = found.index(best)
    neighbour = found[at - 1 : at] or found[1:2]  # the larger tiles, or where there are none the smaller
    return [best, *neighbour, *([] if best.direct else [tiling(best.side, 1)])]


def cost(problem: Problem, tiling: Tiling, dense: list[Tensor], written: list[Tensor]) -> Callable[[], Cost]:
    """Of the products: each tile reads its two (on the diagonal: one) panels of channels."""
    blocks = triton.cdiv(problem.channels, tiling.side)

    def of() -> Cost:
        products = problem.channels * (problem.channels + min(problem.channels, tiling.side)) / 2
        flops = 2.0 * problem.tensors * problem.batch * problem.pixels * products
        return Cost(flops, size(*dense, *written), blocks * size(*dense) + size(*written), matrix=True)

    return of


def launch_gradient(kernel: Any, arguments: tuple, features: Tensor, planar: bool, **constants: bool) -> None:
    """kernel(matrix, features, gradient, ...) on every tile, in the tile shape that occupies the multiprocessors.

    arguments: all of the kernel's. planar: features are (B, C, HW), else (B, HW, C).
    """
    batch, channels, pixels = features.shape[0], features.shape[1], features.shape[2:].numel()
    half, rounds = features.dtype != torch.float32, features.dtype == torch.bfloat16
    # float16 features are exact in TF32, the matrix keeps 11 bits
    products = "tf32" if features.dtype == torch.float16 else precision(features.dtype)
    aligned = _aligned(channels, pixels)
    matrix, _, gradient = arguments[:3]

    def of() -> Cost:
        tiles = triton.cdiv(channels, shape[0]), triton.cdiv(pixels, shape[1])
        gathered = tiles[0] * size(features) + tiles[1] * (1 if constants["SYMMETRIC"] else 2) * size(matrix)
        flops = 2.0 * batch * pixels * channels**2
        return Cost(flops, size(matrix, features, gradient), gathered + size(gradient), matrix=True)

    widest, longest = _power(channels, 16, 128 if half else 64), _power(pixels, 16, 128 if half else 64)
    shapes = [(c, p) for c, p in ((widest, longest), (min(widest, 64), longest), (min(widest, 64), min(longest, 64)))]
    filled = [
        s for s in shapes if batch * triton.cdiv(channels, s[0]) * triton.cdiv(pixels, s[1]) >= tuning.processors()
    ]
    shape = filled[0] if filled else shapes[-1]
    launch(
        kernel, (batch * triton.cdiv(channels, shape[0]) * triton.cdiv(pixels, shape[1]),), *arguments,
        PLANAR=planar, PRECISION=products, ROUND=rounds, CHANNELS=shape[0], PIXELS=shape[1],
        STEP=_power(channels, 16, 32 if aligned else 16), **constants,
        cost=of, num_warps=_warps(shape[0] * shape[1], rounds, aligned), num_stages=2,
    )  # fmt: skip
