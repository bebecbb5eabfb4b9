"""gram in Triton: forward sums F F^T over splits of the pixels in a fixed order; backward is one product."""

import torch
import triton
import triton.language as tl

from .._gpu import gram as products
from .._gpu import tuning
from .._gpu.blocks import single
from .._gpu.gram import gradient_tile, store_symmetric, sum_of_splits, symmetric_tile, tile_of_products, triangle
from .._gpu.launch import Cost, launch, size
from .._layout import dense_order
from . import output


@triton.jit
def gram_forward_kernel(
    features, result, pixels, channels, tiles, splits, of_split, scale,
    DIRECT: tl.constexpr, PLANAR: tl.constexpr, ONE_TILE: tl.constexpr, PRECISION: tl.constexpr,
    SIDE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Forms a tile of the Gram matrices' upper triangles over one split of the pixels, times scale.

    result: partial sums (batch, splits, tiles, SIDE, SIDE), or where DIRECT the matrices (batch, channels, channels).
    """
    scale = single(scale)
    number = tl.program_id(0)
    i, j = triangle(number % tiles)
    split, image = (number // tiles) % splits, number // tiles // splits
    first = split * of_split
    last = tl.minimum(first + of_split, pixels)
    acc = tile_of_products(
        features, image, i, j, first, last, pixels, channels, scale, PLANAR, ONE_TILE, PRECISION, SIDE, STEP
    )
    if DIRECT:
        value, mirrored = symmetric_tile(acc, i, j)
        store_symmetric(result, value, mirrored, image, i, j, channels, SIDE)
    else:
        at = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
        tl.store(result + tl.cast(number, tl.int64) * (SIDE * SIDE) + at, acc)


@triton.jit
def gram_sum_kernel(partial, result, channels, blocks, splits, tiles, SIDE: tl.constexpr, SUM: tl.constexpr):
    """Sums the splits of partial (batch, splits, tiles, SIDE, SIDE) to result (batch, channels, channels).

    A program takes a block of SUM x SUM.
    """
    i, j = triangle(tl.program_id(0) % blocks)
    image = tl.program_id(0) // blocks
    value, mirrored = symmetric_tile(sum_of_splits(partial, image, i, j, splits, tiles, SIDE, SUM), i, j)
    store_symmetric(result, value, mirrored, image, i, j, channels, SUM)


@triton.jit
def gram_backward_kernel(
    matrix, features, gradient, pixels, channels, scale,
    SYMMETRIC: tl.constexpr, PLANAR: tl.constexpr, PRECISION: tl.constexpr, ROUND: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """gradient = (dG + dG^T) F scale, where dG is `matrix` (batch, channels, channels); a program takes a tile."""
    scale = single(scale)
    tiles = tl.cdiv(channels, CHANNELS) * tl.cdiv(pixels, PIXELS)
    tile, image = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    gradient_tile(
        matrix, features, gradient, tile, image, pixels, channels, scale,
        SYMMETRIC, PLANAR, PRECISION, ROUND, CHANNELS, PIXELS, STEP,
    )  # fmt: skip


def forward(features):
    result = output(features)
    order = dense_order(features)
    dense = features.contiguous(memory_format=order)
    batch, channels, pixels = features.shape[0], features.shape[1], features.shape[2:].numel()
    problem = products.Problem(batch, channels, pixels, features.dtype)

    def run(tiling: products.Tiling) -> None:
        side, count = tiling.side, batch * tiling.splits * tiling.tiles
        target = result if tiling.direct else result.new_empty((count, side, side))
        launch(
            gram_forward_kernel, (count,), features=dense, result=target, pixels=pixels, channels=channels,
            tiles=tiling.tiles, splits=tiling.splits, of_split=tiling.pixels, scale=problem.scale,
            DIRECT=tiling.direct, PLANAR=order == torch.contiguous_format, ONE_TILE=tiling.tiles == 1,
            PRECISION=products.precision(features.dtype), SIDE=side, STEP=tiling.step, num_warps=tiling.warps,
            num_stages=tiling.stages, cost=products.cost(problem, tiling, [dense], [target]),
        )  # fmt: skip
        if not tiling.direct:
            block = min(side, products.SUM_SIDE)
            blocks = products.pairs(triton.cdiv(channels, block))
            launch(
                gram_sum_kernel, (batch * blocks,), partial=target, result=result, channels=channels, blocks=blocks,
                splits=tiling.splits, tiles=tiling.tiles, SIDE=side, SUM=block, num_warps=4,
                cost=lambda: Cost(float(batch * blocks * tiling.splits * block**2), size(target, result)),
            )  # fmt: skip

    tuning.run_best("gram", (*problem, order), products.tilings(problem), run)
    return result


def backward(grad, features):
    order = dense_order(features)
    dense, grad = features.contiguous(memory_format=order), grad.contiguous()
    result = torch.empty_like(dense, memory_format=order)
    channels, pixels = features.shape[1], features.shape[2:].numel()
    products.launch_gradient(
        gram_backward_kernel, grad, dense, result, order == torch.contiguous_format,
        scale=1.0 / (channels * pixels), SYMMETRIC=False,
    )  # fmt: skip
    return result
