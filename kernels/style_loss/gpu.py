"""style_loss in Triton: one pass forms both Gram matrices, their difference and its norm; backward is one product."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._gpu import gram as products
from .._gpu import tuning
from .._gpu.blocks import single
from .._gpu.gram import (
    gradient_tile,
    squares_of_tile,
    store_symmetric,
    sum_of_splits,
    symmetric_tile,
    tile_of_products,
    triangle,
)
from .._gpu.launch import Cost, launch, size
from .._gpu.sums import per_sample_and_mean
from .._layout import dense_order
from . import gradients, outputs


@triton.jit
def style_loss_forward_kernel(
    a, b, result, squares, pixels, channels, tiles, splits, of_split, scale,
    DIRECT: tl.constexpr, WITH_DIFFERENCE: tl.constexpr, A_PLANAR: tl.constexpr, B_PLANAR: tl.constexpr,
    ONE_TILE: tl.constexpr, PRECISION: tl.constexpr, SIDE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Forms a tile of the upper triangle of Gram(a) - Gram(b) over one split of the pixels.

    Where the products of a and b are equal, their difference is exactly 0.

    result: partial sums (batch, splits, tiles, SIDE, SIDE). DIRECT, with one split: squares (batch, tiles) takes the
    sums of the difference's squares and, WITH_DIFFERENCE, result (batch, channels, channels) the difference itself.
    """
    scale = single(scale)
    number = tl.program_id(0)
    i, j = triangle(number % tiles)
    split, image = (number // tiles) % splits, number // tiles // splits
    first = split * of_split
    last = tl.minimum(first + of_split, pixels)
    acc = tile_of_products(
        a, image, i, j, first, last, pixels, channels, scale, A_PLANAR, ONE_TILE, PRECISION, SIDE, STEP
    )
    acc -= tile_of_products(
        b, image, i, j, first, last, pixels, channels, scale, B_PLANAR, ONE_TILE, PRECISION, SIDE, STEP
    )
    if DIRECT:
        value, mirrored = symmetric_tile(acc, i, j)
        tl.store(squares + number, squares_of_tile(value, i, j))
        if WITH_DIFFERENCE:
            store_symmetric(result, value, mirrored, image, i, j, channels, SIDE)
    else:
        at = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
        tl.store(result + tl.cast(number, tl.int64) * (SIDE * SIDE) + at, acc)


@triton.jit
def style_loss_sum_kernel(
    partial, difference, squares, channels, blocks, splits, tiles,
    WITH_DIFFERENCE: tl.constexpr, SIDE: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Sums the splits of partial (batch, splits, tiles, SIDE, SIDE); a program takes a block of SUM x SUM.

    squares (batch, blocks) takes the sums of their squares; WITH_DIFFERENCE, difference (batch, channels, channels)
    takes the sums themselves.
    """
    i, j = triangle(tl.program_id(0) % blocks)
    image = tl.program_id(0) // blocks
    value, mirrored = symmetric_tile(sum_of_splits(partial, image, i, j, splits, tiles, SIDE, SUM), i, j)
    tl.store(squares + tl.program_id(0), squares_of_tile(value, i, j))
    if WITH_DIFFERENCE:
        store_symmetric(difference, value, mirrored, image, i, j, channels, SUM)


@triton.jit
def style_loss_backward_kernel(
    matrix, features, gradient, per_sample, of_samples, of_samples_stride, of_mean, batch, pixels, channels, scale,
    HAS_SAMPLES: tl.constexpr, HAS_MEAN: tl.constexpr, SQUARED: tl.constexpr,
    SYMMETRIC: tl.constexpr, PLANAR: tl.constexpr, PRECISION: tl.constexpr, ROUND: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """gradient = 2 D F scale times the upstream gradient and the norm's derivative, 0 where the norm is 0.

    D: `matrix` (batch, channels, channels), Gram(a) - Gram(b). of_samples, of_mean: the gradients of the loss's
    per-sample values and of their mean, read where HAS_SAMPLES and HAS_MEAN.
    """
    scale = single(scale)
    tiles = tl.cdiv(channels, CHANNELS) * tl.cdiv(pixels, PIXELS)
    tile, image = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    upstream = tl.cast(0.0, tl.float32)
    if HAS_MEAN:
        upstream += tl.div_rn(tl.load(of_mean).to(tl.float32), tl.cast(batch, tl.float32))
    if HAS_SAMPLES:
        upstream += tl.load(of_samples + tl.cast(image, tl.int64) * of_samples_stride).to(tl.float32)
    norm = tl.load(per_sample + image)
    derivative = 2.0 if SQUARED else tl.div_rn(tl.cast(1.0, tl.float32), tl.where(norm == 0.0, 1.0, norm))
    factor = tl.where(norm == 0.0, 0.0, upstream * scale * derivative)
    gradient_tile(
        matrix, features, gradient, tile, image, pixels, channels, factor,
        SYMMETRIC, PLANAR, PRECISION, ROUND, CHANNELS, PIXELS, STEP,
    )  # fmt: skip


def _dense(features: Tensor) -> tuple[Tensor, bool]:
    """Gives the features without gaps in memory, and whether they are planar (B, C, HW)."""
    order = dense_order(features)
    return features.contiguous(memory_format=order), order == torch.contiguous_format


def forward(a, b, squared, with_difference):
    per_sample, mean, difference = outputs(a, with_difference)
    (a, a_planar), (b, b_planar) = _dense(a), _dense(b)
    batch, channels, pixels = a.shape[0], a.shape[1], a.shape[2:].numel()
    problem = products.Problem(batch, channels, pixels, a.dtype, 2)

    def run(tiling: products.Tiling) -> None:
        side, count = tiling.side, batch * tiling.splits * tiling.tiles
        block = side if tiling.direct else min(side, products.SUM_SIDE)
        blocks = products.pairs(triton.cdiv(channels, block))
        squares = per_sample.new_empty((batch, blocks))
        target = difference if tiling.direct else per_sample.new_empty((count, side, side))
        launch(
            style_loss_forward_kernel, (count,), a=a, b=b, result=target, squares=squares, pixels=pixels,
            channels=channels, tiles=tiling.tiles, splits=tiling.splits, of_split=tiling.pixels, scale=problem.scale,
            DIRECT=tiling.direct, WITH_DIFFERENCE=with_difference, A_PLANAR=a_planar, B_PLANAR=b_planar,
            ONE_TILE=tiling.tiles == 1, PRECISION=products.precision(a.dtype), SIDE=side,
            STEP=tiling.step, num_warps=tiling.warps, num_stages=tiling.stages,
            cost=products.cost(problem, tiling, [a, b], [target]),
        )  # fmt: skip
        if not tiling.direct:
            launch(
                style_loss_sum_kernel, (batch * blocks,), partial=target, difference=difference, squares=squares,
                channels=channels, blocks=blocks, splits=tiling.splits, tiles=tiling.tiles,
                WITH_DIFFERENCE=with_difference, SIDE=side, SUM=block, num_warps=4,
                cost=lambda: Cost(
                    float(batch * blocks * (tiling.splits + 2) * block**2), size(target, difference, squares)
                ),
            )  # fmt: skip
        per_sample_and_mean(squares, per_sample, mean, 1, root=not squared)

    tuning.run_best("style_loss", (*problem, a_planar, b_planar), products.tilings(problem), run)
    return per_sample, mean, difference


def backward(a, b, difference, per_sample, grad_per_sample, grad_mean, squared, need):
    of_a, of_b = gradients(a, b, need)
    channels, pixels = a.shape[1], a.shape[2:].numel()
    difference, per_sample = difference.contiguous(), per_sample.contiguous()
    for features, gradient, sign, needed in zip((a, b), (of_a, of_b), (1.0, -1.0), need, strict=True):
        if needed:
            dense, planar = _dense(features)
            products.launch_gradient(
                style_loss_backward_kernel, difference, dense, gradient, planar, per_sample=per_sample,
                of_samples=per_sample if grad_per_sample is None else grad_per_sample,
                of_samples_stride=0 if grad_per_sample is None else grad_per_sample.stride(0),
                of_mean=per_sample if grad_mean is None else grad_mean, batch=a.shape[0],
                scale=sign / (channels * pixels), HAS_SAMPLES=grad_per_sample is not None,
                HAS_MEAN=grad_mean is not None, SQUARED=squared, SYMMETRIC=True,
            )  # fmt: skip
    return of_a, of_b
