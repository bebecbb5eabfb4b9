"""Gram matrices of features in Triton, and their backward, a product with the features; gram and style_loss use both.

Features (B, C, H, W) are read as they lie, (B, C, HW) or (B, HW, C). A program sums the products of one tile of the
upper triangle over one split of an image's pixels; where there are several splits, a second kernel adds them in their
order. Both kernels write a tile and its mirror image, so that the result is symmetric to the bit.

A float32 product is three TF32 products (near float32), or one where torch.backends.cuda.matmul.allow_tf32 is set. The
matrix units cut sums off where float32 rounds: they sum one step of pixels only, and the steps are added in float32.
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

SUM_SIDE = 32  # side of the blocks in which a matrix's splits are added


@triton.jit
def triangle(number):
    """Gives pair `number` of the pairs (i, j) with i <= j, column by column: (0, 0), (0, 1), (1, 1), (0, 2) ..."""
    j = ((tl.sqrt(8.0 * number + 1.0) - 1.0) * 0.5).to(tl.int32)
    j = tl.where(j * (j + 1) // 2 > number, j - 1, j)  # the root is rounded: j may be one too large or too small
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
        if PRECISION == "ieee":  # half precision: products are exact, and its tolerance allows sums that are cut off
            acc = dot(a, b, acc, PRECISION)
        else:
            acc += dot(a, b, tl.zeros((SIDE, SIDE), tl.float32), PRECISION) * scale
    if PRECISION == "ieee":
        acc = acc * scale
    return acc


@triton.jit
def symmetric_tile(acc, i, j):
    """Gives tile (i, j), i <= j, and tile (j, i); a tile on the diagonal takes its lower half from its upper half."""
    mirrored = tl.trans(acc)
    row, column = tl.arange(0, acc.shape[0])[:, None], tl.arange(0, acc.shape[1])[None, :]
    lower = (i == j) & (row > column)
    return tl.where(lower, mirrored, acc), mirrored


@triton.jit
def store_symmetric(result, value, mirrored, image, i, j, channels, SIDE: tl.constexpr):
    """Stores tile (i, j) and its mirror image in the matrix (channels, channels) of one image."""
    row, column = i * SIDE + tl.arange(0, SIDE), j * SIDE + tl.arange(0, SIDE)
    start = result + tl.cast(image, tl.int64) * channels * channels
    inside = (row < channels)[:, None] & (column < channels)[None, :]
    tl.store(start + row[:, None] * channels + column[None, :], value, mask=inside)
    inside = (column < channels)[:, None] & (row < channels)[None, :] & (i < j)
    tl.store(start + column[:, None] * channels + row[None, :], mirrored, mask=inside)


@triton.jit
def squares_of_tile(value, i, j):
    """Sums the squares of tile (i, j) and of its mirror image."""
    # reshaped to one axis: Triton 3.7 fails on a sum along one of two axes of what Blackwell's tensor memory holds
    total = tl.sum(tl.reshape(value * value, (value.shape[0] * value.shape[1],)), axis=0)
    return tl.where(i == j, total, 2.0 * total)


@triton.jit
def sum_of_splits(partial, image, i, j, splits, tiles, SIDE: tl.constexpr, SUM: tl.constexpr):
    """Sums block (i, j) of SUM x SUM, i <= j, over an image's splits of partial (batch, splits, tiles, SIDE, SIDE)."""
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
    """Writes a tile of gradient = (M + M^T) F factor of one image: M (channels, channels) float32, F its features.

    SYMMETRIC: M is symmetric, and 2 M is taken for M + M^T. ROUND: M is rounded to F's dtype, bfloat16; else F is
    taken to float32, since M would leave the range of float16.
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
    """How many pairs (i, j) with i <= j < count there are."""
    return count * (count + 1) // 2


def precision(dtype: torch.dtype) -> str:
    """How float32 products are formed, as tl.dot names it; half-precision products have one way only."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def _power(count: int, low: int, high: int) -> int:
    """The smallest power of two that holds count, from low to high."""
    return min(high, max(low, triton.next_power_of_2(count)))


def _aligned(channels: int, pixels: int) -> bool:
    """Whether either layout is read 16 bytes at a time; otherwise each element's address takes registers."""
    return channels % 16 == 0 and pixels % 16 == 0


def _warps(area: int, half: bool, aligned: bool) -> int:
    """Warps for a tile of `area` sums; float32 holds a second set of sums, and every operand in two parts."""
    return 8 if area >= (64 * 128 if half and aligned else 64 * 64) else 4


class Problem(NamedTuple):
    """Which Gram matrices are formed: of features (batch, channels, pixels), in one tensor or (style loss) two."""

    batch: int
    channels: int
    pixels: int
    dtype: torch.dtype
    tensors: int = 1

    @property
    def scale(self) -> float:
        return 1.0 / (self.channels * self.pixels)


class Tiling(NamedTuple):
    """How the products are divided among programs.

    side:   of the square tiles of the upper triangle
    step:   pixels whose products are summed at a time
    splits: parts that an image's pixels are summed in
    pixels: of one split
    tiles:  of one image's triangle
    """

    side: int
    step: int
    splits: int
    pixels: int
    tiles: int
    warps: int
    stages: int

    @property
    def direct(self) -> bool:
        """Whether there is one split: its sums are the result."""
        return self.splits == 1


def tilings(problem: Problem) -> list[Tiling]:
    """Gives the tilings worth trying, the likely best first: the largest tiles that still occupy the GPU."""
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

    # float32 tiles of 128 x 128 leave no register: the sums, and the product that joins them, are held apart
    largest = _power(problem.channels, 16, 128 if half else 64)
    sides = [side for side in (128, 64, 32) if side <= largest] or [largest]
    by_side = [tiling(side, problem.pixels) for side in sides]
    full = [t for t in by_side if 2 * batch * t.tiles * t.splits >= tuning.processors()]
    best = full[0] if full else by_side[-1]
    at = by_side.index(best)
    neighbour = by_side[at - 1 : at] or by_side[1:2]  # the next larger tiles; the smaller where none are larger
    return [best, *neighbour, *([] if best.direct else [tiling(best.side, 1)])]


def cost(problem: Problem, tiling: Tiling, dense: list[Tensor], written: list[Tensor]) -> Callable[[], Cost]:
    """Gives the cost of the products: a tile reads two panels of channels, or one where it lies on the diagonal."""
    blocks = triton.cdiv(problem.channels, tiling.side)

    def of() -> Cost:
        products = problem.channels * (problem.channels + min(problem.channels, tiling.side)) / 2
        flops = 2.0 * problem.tensors * problem.batch * problem.pixels * products
        return Cost(flops, size(*dense, *written), blocks * size(*dense) + size(*written), matrix=True)

    return of


def launch_gradient(
    kernel: Any, matrix: Tensor, features: Tensor, gradient: Tensor, planar: bool, **arguments: Any
) -> None:
    """Starts a kernel that ends in gradient_tile on every tile, in the tile shape that occupies the multiprocessors.

    matrix:    (B, C, C) float32, contiguous
    features:  (B, C, H, W), read as (B, C, HW) where `planar`, else as (B, HW, C); gradient: the result, laid out alike
    arguments: SYMMETRIC, and those of the kernel's parameters that gradient_tile does not have
    """
    batch, channels, pixels = features.shape[0], features.shape[1], features.shape[2:].numel()
    half, rounds = features.dtype != torch.float32, features.dtype == torch.bfloat16
    # float16 features are exact in TF32, and the matrix keeps 11 bits
    products = "tf32" if features.dtype == torch.float16 else precision(features.dtype)
    aligned = _aligned(channels, pixels)

    def of() -> Cost:
        tiles = triton.cdiv(channels, shape[0]), triton.cdiv(pixels, shape[1])
        gathered = tiles[0] * size(features) + tiles[1] * (1 if arguments["SYMMETRIC"] else 2) * size(matrix)
        flops = 2.0 * batch * pixels * channels**2
        return Cost(flops, size(matrix, features, gradient), gathered + size(gradient), matrix=True)

    widest, longest = _power(channels, 16, 128 if half else 64), _power(pixels, 16, 128 if half else 64)
    shapes = [(c, p) for c, p in ((widest, longest), (min(widest, 64), longest), (min(widest, 64), min(longest, 64)))]
    filled = [
        s for s in shapes if batch * triton.cdiv(channels, s[0]) * triton.cdiv(pixels, s[1]) >= tuning.processors()
    ]
    shape = filled[0] if filled else shapes[-1]
    launch(
        kernel, (batch * triton.cdiv(channels, shape[0]) * triton.cdiv(pixels, shape[1]),),
        matrix=matrix, features=features, gradient=gradient, pixels=pixels, channels=channels,
        PLANAR=planar, PRECISION=products, ROUND=rounds, CHANNELS=shape[0], PIXELS=shape[1],
        STEP=_power(channels, 16, 32 if aligned else 16), **arguments,
        cost=of, num_warps=_warps(shape[0] * shape[1], rounds, aligned), num_stages=2,
    )  # fmt: skip
