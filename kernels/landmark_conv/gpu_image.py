"""The gradients of landmark_conv's image and of the image's weights, both as implicit GEMMs.

The image has few channels, so a product for each of its pixels would be mostly padding. Its gradient is formed for
squares of SIDE x SIDE pixels at once: a convolution of dz whose output channels are the pixels of a square and their
channels, with the kernel's taps spread over them. SIDE is a multiple of the stride, so strides 1 and 2 run the same
code.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._gpu import tuning
from .._gpu.blocks import dot, rounded
from .._gpu.launch import Cost, launch, size
from .gpu_geometry import Geometry, power


@triton.jit
def landmark_conv_image_weight_grad_kernel(
    image, dz, factors, partial, steps, per_split, C, H, W, N, NP, out_height, out_width, padding,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, SCALED: tl.constexpr, PRECISION: tl.constexpr,
    BJ: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """partial (splits, C taps, N) float32: sums over a split's pixels of image (batch, H, W, C) at each tap times dz.

    A step is BP pixels of one sample of dz (batch, out_height, out_width, NP). factors: (batch,) float32, the samples'
    weights where SCALED.
    """
    TAPS: tl.constexpr = KH * KW
    n_blocks = tl.cdiv(N, BN)
    n = tl.program_id(0) % n_blocks * BN + tl.arange(0, BN)
    r = tl.program_id(0) // n_blocks * BJ + tl.arange(0, BJ)
    c, i, j = r // TAPS, r % TAPS // KW, r % TAPS % KW
    tap = (i * W + j) * C + c
    pixels = out_height * out_width
    per_sample = tl.cdiv(pixels, BP)
    acc = tl.zeros((BJ, BN), tl.float32)
    first = tl.program_id(1) * per_split
    for step in range(first, tl.minimum(first + per_split, steps)):
        sample = tl.cast(step // per_sample, tl.int64)
        p = step % per_sample * BP + tl.arange(0, BP)
        y0, x0 = p // out_width * STRIDE - padding, p % out_width * STRIDE - padding
        y, x = y0[:, None] + i[None, :], x0[:, None] + j[None, :]
        inside = (p < pixels)[:, None] & (r < C * TAPS)[None, :] & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        at = (sample * H * W + y0 * W + x0)[:, None] * C + tap[None, :]
        a = tl.load(image + at, mask=inside, other=0.0)
        inside = (p < pixels)[:, None] & (n < NP)[None, :]
        z = tl.load(dz + (sample * pixels + p)[:, None] * NP + n[None, :], mask=inside, other=0.0)
        if SCALED:
            part = dot(tl.trans(a), z, tl.zeros((BJ, BN), tl.float32), PRECISION)
            acc += part * tl.load(factors + sample)
        else:
            acc = dot(tl.trans(a), z, acc, PRECISION)
    to = partial + tl.cast(tl.program_id(1), tl.int64) * C * TAPS * N
    tl.store(to + r[:, None] * N + n[None, :], acc, mask=(r < C * TAPS)[:, None] & (n < N)[None, :])


@triton.jit
def landmark_conv_spread_kernel(
    weight, spread, elements, channels, C, N, NP, padding, first_u, first_v, columns,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """spread (rows columns, NP, SIDE SIDE C): the weight between an output (u, v) and a square's pixel, or zero.

    weight (N, channels, KH, KW) has the image's channels first. Square (a, b) reads rows x columns outputs, the first
    of which is (a SIDE / STRIDE + first_u, b SIDE / STRIDE + first_v).
    """
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    c, x, y = e % C, e // C % SIDE, e // (C * SIDE) % SIDE
    n, at = e // (C * SIDE * SIDE) % NP, e // (C * SIDE * SIDE * NP)
    i = y + padding - (at // columns + first_u) * STRIDE
    j = x + padding - (at % columns + first_v) * STRIDE
    inside = (e < elements) & (n < N) & (i >= 0) & (i < KH) & (j >= 0) & (j < KW)
    source = tl.cast(n * channels + c, tl.int64) * (KH * KW) + i * KW + j
    tl.store(spread + e, tl.load(weight + source, mask=inside, other=0.0), mask=e < elements)


@triton.jit
def landmark_conv_image_grad_kernel(
    dz, spread, result, squares, grid_height, grid_width, C, H, W, NP, out_height, out_width, first_u, first_v, rows,
    columns,
    STRIDE: tl.constexpr, SIDE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """result (batch, H, W, C): dz (batch, out_height, out_width, NP) convolved with `spread`.

    spread: as landmark_conv_spread_kernel writes it. A program takes BM squares, counted over the samples, and BN of a
    square's pixels and channels.
    """
    WIDTH = SIDE * SIDE * C
    n_blocks = tl.cdiv(WIDTH, BN)
    n = tl.program_id(0) % n_blocks * BN + tl.arange(0, BN)
    m = tl.program_id(0) // n_blocks * BM + tl.arange(0, BM)
    sample = tl.cast(m // (grid_height * grid_width), tl.int64)
    a, b = m // grid_width % grid_height, m % grid_width
    u0, v0 = a * (SIDE // STRIDE) + first_u, b * (SIDE // STRIDE) + first_v
    k = tl.arange(0, BK)
    blocks = tl.cdiv(NP, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for step in range(rows * columns * blocks):
        at, z = step // blocks, step % blocks * BK + k
        u, v = u0 + at // columns, v0 + at % columns
        seen = (m < squares) & (u >= 0) & (u < out_height) & (v >= 0) & (v < out_width)
        pixel = (sample * out_height + u) * out_width + v
        of_dz = tl.load(dz + pixel[:, None] * NP + z[None, :], mask=seen[:, None] & (z < NP)[None, :], other=0.0)
        weights = spread + (at * NP + z)[:, None] * WIDTH + n[None, :]
        weights = tl.load(weights, mask=(z < NP)[:, None] & (n < WIDTH)[None, :], other=0.0)
        acc = dot(of_dz, weights, acc, PRECISION)
    y, x = a[:, None] * SIDE + (n // (SIDE * C))[None, :], b[:, None] * SIDE + (n // C % SIDE)[None, :]
    inside = (m < squares)[:, None] & (n < WIDTH)[None, :] & (y < H) & (x < W)
    to = result + ((sample[:, None] * H + y) * W + x) * C + (n % C)[None, :]
    tl.store(to, rounded(acc, result.dtype.element_ty), mask=inside)


def image_weight_gradient(
    dz: Tensor, image: Tensor, scale: Tensor | None, n: int, geometry: Geometry, precision: str
) -> Tensor:
    """Forms the gradient of the image's weights, in parts whose sum it is.

    dz:      (B, NP, Ho, Wo) channels_last, NP >= n
    image:   (B, C, H, W) channels_last
    scale:   the samples' weights, (B,) float32, or None
    returns: (splits, C taps, n) float32, to be summed over the splits
    """
    g, (batch, channels) = geometry, image.shape[:2]
    rows, pixels = channels * g.taps, g.out_height * g.out_width
    bj, bn, bp = power(rows, 16, 64), power(n, 16, 128), tuning.block(pixels, 64 if image.element_size() == 2 else 32)
    steps = batch * triton.cdiv(pixels, bp)
    blocks, n_blocks = triton.cdiv(rows, bj), triton.cdiv(n, bn)
    # a few programs for each multiprocessor, and at least eight steps for each program
    splits = max(1, min(triton.cdiv(4 * tuning.processors(), blocks * n_blocks), triton.cdiv(steps, 8)))
    per_split = triton.cdiv(steps, splits)
    splits = triton.cdiv(steps, per_split)
    partial = torch.empty((splits, rows, n), dtype=torch.float32, device=dz.device)

    def cost() -> Cost:
        gathered = n_blocks * batch * pixels * rows * image.element_size() + blocks * size(dz) + size(partial)
        return Cost(2.0 * batch * pixels * rows * n, size(image, dz, partial), gathered, matrix=True)

    launch(
        landmark_conv_image_weight_grad_kernel, (blocks * n_blocks, splits), image=image, dz=dz,
        factors=dz if scale is None else scale, partial=partial, steps=steps, per_split=per_split, C=channels,
        H=g.height, W=g.width, N=n, NP=dz.shape[1], out_height=g.out_height, out_width=g.out_width, padding=g.padding,
        **g.constants(), SCALED=scale is not None, PRECISION=precision, BJ=bj, BN=bn, BP=bp, cost=cost, num_stages=2,
    )  # fmt: skip
    return partial


def _outputs(side: int, taps: int, stride: int, padding: int) -> tuple[int, int]:
    """Gives (first, number) of the outputs of one axis that read the first `side` pixels, borders left aside."""
    first = -((taps - 1 - padding) // stride)
    return first, (side - 1 + padding) // stride - first + 1


def square_tiles(batch: int, channels: int, geometry: Geometry) -> list[dict[str, int]]:
    """Gives the squares and tiles worth trying, the likely best first: the largest that still occupy the GPU."""
    g = geometry
    sides = [s for s in (4, 2, 1) if s * s * channels <= 64 and s % g.stride == 0] or [g.stride]
    candidates = []  # a tile, and whether its programs are enough for the GPU
    for side in sides:
        bn = power(side * side * channels, 16, 64)
        for bm in (64, 32):
            programs = batch * -(-g.height // side) * -(-g.width // side) / bm * -(-side * side * channels // bn)
            tile = {"SIDE": side, "BM": bm, "BN": bn, "num_warps": 8 if bm * bn >= 64 * 64 else 4}
            candidates.append((tile, programs >= 0.7 * tuning.processors()))
    best = next((i for i, (_, enough) in enumerate(candidates) if enough), len(candidates) - 1)
    neighbours = (*candidates[:best][-1:], *candidates[best + 1 :][:1])
    return [candidates[best][0], *(tile for tile, _ in neighbours)]


def image_gradient(dz: Tensor, weight: Tensor, result: Tensor, geometry: Geometry, precision: str) -> None:
    """Writes the gradient of the image to result (B, C, H, W) channels_last.

    dz:     (B, NP, Ho, Wo) channels_last
    weight: (n, C + count, KH, KW), contiguous
    """
    g, (batch, channels) = geometry, result.shape[:2]
    n, dz_channels, half = weight.shape[0], dz.shape[1], dz.element_size() == 2

    def run(tile: dict[str, int]) -> None:
        side = tile["SIDE"]
        first_u, rows = _outputs(side, g.kernel[0], g.stride, g.padding)
        first_v, columns = _outputs(side, g.kernel[1], g.stride, g.padding)
        width = side * side * channels
        spread = torch.empty((rows * columns, dz_channels, width), dtype=weight.dtype, device=weight.device)
        block = 1024
        launch(
            landmark_conv_spread_kernel, (triton.cdiv(spread.numel(), block),), weight=weight, spread=spread,
            elements=spread.numel(), channels=weight.shape[1], C=channels, N=n, NP=dz_channels, padding=g.padding,
            first_u=first_u, first_v=first_v, columns=columns,
            **g.constants(), SIDE=side, BE=block, cost=lambda: Cost(0.0, size(weight[:, :channels], spread)),
        )  # fmt: skip
        grid_height, grid_width = triton.cdiv(g.height, side), triton.cdiv(g.width, side)
        count = batch * grid_height * grid_width
        blocks, n_blocks = triton.cdiv(count, tile["BM"]), triton.cdiv(width, tile["BN"])

        def cost() -> Cost:
            taps = rows * columns
            gathered = count * taps * dz_channels * dz.element_size() * n_blocks + blocks * size(spread) + size(result)
            return Cost(2.0 * count * taps * dz_channels * width, size(dz, spread, result), gathered, matrix=True)

        launch(
            landmark_conv_image_grad_kernel, (blocks * n_blocks,), dz=dz, spread=spread, result=result, squares=count,
            grid_height=grid_height, grid_width=grid_width, C=channels, H=g.height, W=g.width, NP=dz_channels,
            out_height=g.out_height, out_width=g.out_width, first_u=first_u, first_v=first_v, rows=rows,
            columns=columns, STRIDE=g.stride, PRECISION=precision, BK=power(dz_channels, 16, 64 if half else 32),
            cost=cost, num_stages=4 if half else 3, **tile,
        )  # fmt: skip

    problem = (*result.shape, *g.kernel, g.stride, g.padding, dz_channels, dz.dtype, precision)
    tuning.run_best("landmark_conv_image_grad", problem, square_tiles(batch, channels, g), run)
