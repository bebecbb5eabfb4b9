"""The gradients of landmark_conv's landmarks and of the landmarks' weights: sums over the pixels a stamp reaches."""

import triton
import triton.language as tl
from torch import Tensor

from .._gpu import tuning
from .._gpu.blocks import dot, rounded, single
from .._gpu.launch import Cost, launch, size
from ..landmark_heatmap.gpu import exponent, window
from .gpu_geometry import Geometry, power


@triton.jit
def _reached(first, last, size, padding, TAPS: tl.constexpr, STRIDE: tl.constexpr):
    """Gives (first, number) of the outputs of one axis that read one of pixels [first, last] with one of TAPS taps."""
    low = (tl.maximum(first + padding - TAPS + 1, 0) + STRIDE - 1) // STRIDE
    high = tl.minimum((last + padding) // STRIDE, size - 1)
    return low, tl.where(first <= last, tl.maximum(high - low + 1, 0), 0)


@triton.jit
def landmark_conv_weight_grad_kernel(
    landmarks, dz, factors, partial, batch, per_split, count, H, W, N, NP, out_height, out_width, padding, radius,
    scale,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, SUBPIXEL: tl.constexpr, SCALED: tl.constexpr,
    PRECISION: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """partial (splits, count, taps, N) float32: sums over a split's samples of the Gaussian under each tap times dz.

    A program takes a landmark and BN channels of dz (batch, out_height, out_width, NP). factors: (batch,) float32, the
    samples' weights where SCALED. scale: the factor of a squared distance in the exponent of 2.
    """
    scale = single(scale)
    TAPS: tl.constexpr = KH * KW
    n_blocks = tl.cdiv(N, BN)
    n = tl.program_id(0) % n_blocks * BN + tl.arange(0, BN)
    landmark, split = tl.program_id(0) // n_blocks, tl.program_id(1)
    t = tl.arange(0, BT)
    i, j = (t // KW)[:, None], (t % KW)[:, None]
    acc = tl.zeros((BT, BN), tl.float32)
    for sample in range(split * per_split, tl.minimum((split + 1) * per_split, batch)):
        place = landmarks + (tl.cast(sample, tl.int64) * count + landmark) * 2
        first_x, last_x, centre_x = window(tl.load(place), W, radius, SUBPIXEL)
        first_y, last_y, centre_y = window(tl.load(place + 1), H, radius, SUBPIXEL)
        top, rows = _reached(first_y, last_y, out_height, padding, KH, STRIDE)
        left, columns = _reached(first_x, last_x, out_width, padding, KW, STRIDE)
        start = tl.cast(sample, tl.int64) * out_height * out_width
        part = tl.zeros((BT, BN), tl.float32)
        for m0 in range(0, rows * columns, BP):
            m = m0 + tl.arange(0, BP)
            u, v = top + m // columns, left + m % columns
            inside = (m < rows * columns)[:, None] & (n < NP)[None, :]
            z = tl.load(dz + (start + u * out_width + v)[:, None] * NP + n[None, :], mask=inside, other=0.0)
            y, x = (u * STRIDE - padding)[None, :] + i, (v * STRIDE - padding)[None, :] + j
            under = (y >= first_y) & (y <= last_y) & (x >= first_x) & (x <= last_x) & (t < TAPS)[:, None]
            dy, dx = y.to(tl.float32) - centre_y, x.to(tl.float32) - centre_x
            values = tl.where(under, tl.exp2((dy * dy + dx * dx) * scale), 0.0)
            part = dot(rounded(values, dz.dtype.element_ty), z, part, PRECISION)
        if SCALED:
            part *= tl.load(factors + sample)
        acc += part
    to = partial + tl.cast(split * count + landmark, tl.int64) * TAPS * N
    tl.store(to + t[:, None] * N + n[None, :], acc, mask=(t < TAPS)[:, None] & (n < N)[None, :])


@triton.jit
def landmark_conv_landmark_grad_kernel(
    landmarks, packed, dz, result, count, C, H, W, N, NP, out_height, out_width, padding, radius, scale, steepness,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """result (batch, count, 2): sums of the heatmap's gradient under each tap times the Gaussian's slope.

    A program takes a landmark of a sample; centres are subpixel. packed (C + count, taps, N): the weights. scale: the
    factor of a squared distance in the exponent of 2. steepness: 1 / sigma^2.
    """
    scale, steepness = single(scale), single(steepness)
    TAPS: tl.constexpr = KH * KW
    place = tl.cast(tl.program_id(0), tl.int64)
    sample, landmark = place // count, place % count
    first_x, last_x, centre_x = window(tl.load(landmarks + place * 2), W, radius, True)
    first_y, last_y, centre_y = window(tl.load(landmarks + place * 2 + 1), H, radius, True)
    top, rows = _reached(first_y, last_y, out_height, padding, KH, STRIDE)
    left, columns = _reached(first_x, last_x, out_width, padding, KW, STRIDE)
    t, k = tl.arange(0, BT), tl.arange(0, BK)
    i, j = (t // KW)[None, :], (t % KW)[None, :]
    weights = packed + (C + landmark) * TAPS * N + t[None, :] * N
    start = sample * out_height * out_width
    total_y, total_x = tl.zeros((BP,), tl.float32), tl.zeros((BP,), tl.float32)
    for m0 in range(0, rows * columns, BP):
        m = m0 + tl.arange(0, BP)
        u, v = top + m // columns, left + m % columns
        pixel = (start + u * out_width + v)[:, None] * NP
        of_map = tl.zeros((BP, BT), tl.float32)
        for k0 in range(0, N, BK):
            n = k0 + k
            z = tl.load(dz + pixel + n[None, :], mask=(m < rows * columns)[:, None] & (n < NP)[None, :], other=0.0)
            w = tl.load(weights + n[:, None], mask=(n < N)[:, None] & (t < TAPS)[None, :], other=0.0)
            of_map = dot(z, w, of_map, PRECISION)
        y, x = (u * STRIDE - padding)[:, None] + i, (v * STRIDE - padding)[:, None] + j
        under = (y >= first_y) & (y <= last_y) & (x >= first_x) & (x <= last_x) & (t < TAPS)[None, :]
        under = under & (m < rows * columns)[:, None]
        dy, dx = y.to(tl.float32) - centre_y, x.to(tl.float32) - centre_x
        value = tl.where(under, of_map * tl.exp2((dy * dy + dx * dx) * scale), 0.0)
        total_y += tl.sum(value * dy, axis=1)
        total_x += tl.sum(value * dx, axis=1)
    tl.store(result + place * 2, rounded(tl.sum(total_x, axis=0) * steepness, result.dtype.element_ty))
    tl.store(result + place * 2 + 1, rounded(tl.sum(total_y, axis=0) * steepness, result.dtype.element_ty))


@triton.jit
def landmark_conv_sum_kernel(
    of_image, image_splits, image_rows, of_landmarks, landmark_splits, rows, dweight, bias_partial, bias_rows, dbias, N,
    WITH_WEIGHT: tl.constexpr, WITH_BIAS: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Sums the image's and the landmarks' splits to dweight (N, rows), and the rows of bias_partial to dbias (N,).

    The order of every sum is fixed. of_image (image_splits, image_rows, N), of_landmarks (landmark_splits, rows -
    image_rows, N); a row is a channel and a tap. Program axis 0 counts blocks of rows; its last one is the bias's where
    WITH_BIAS.
    """
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    r = tl.arange(0, BR)
    blocks = tl.num_programs(0) - (1 if WITH_BIAS else 0)
    if WITH_WEIGHT and tl.program_id(0) < blocks:
        first = tl.program_id(0) * BR
        row = first + r
        total = tl.zeros((BR, BN), tl.float32)
        held = (row < image_rows)[:, None] & (n < N)[None, :]
        for split in range(tl.where(first < image_rows, image_splits, 0)):
            at = of_image + (tl.cast(split, tl.int64) * image_rows + row)[:, None] * N
            total += tl.load(at + n[None, :], mask=held, other=0.0)
        held = ((row >= image_rows) & (row < rows))[:, None] & (n < N)[None, :]
        for split in range(tl.where(first + BR > image_rows, landmark_splits, 0)):
            at = of_landmarks + (tl.cast(split, tl.int64) * (rows - image_rows) + row - image_rows)[:, None] * N
            total += tl.load(at + n[None, :], mask=held, other=0.0)
        inside = (row < rows)[:, None] & (n < N)[None, :]
        to = dweight + tl.cast(n, tl.int64)[None, :] * rows + row[:, None]
        tl.store(to, rounded(total, dweight.dtype.element_ty), mask=inside)
    elif WITH_BIAS:
        sums = tl.zeros((BN,), tl.float32)
        for r0 in range(0, bias_rows, BR):
            inside = (r0 + r < bias_rows)[:, None] & (n < N)[None, :]
            at = bias_partial + tl.cast(r0 + r, tl.int64)[:, None] * N
            sums += tl.sum(tl.load(at + n[None, :], mask=inside, other=0.0), axis=0)
        tl.store(dbias + n, rounded(sums, dbias.dtype.element_ty), mask=n < N)


def landmarks_weight_gradient(
    dz: Tensor, points: Tensor, scale: Tensor | None, n: int, geometry: Geometry, precision: str
) -> Tensor:
    """Forms the gradient of the landmarks' weights, in parts whose sum it is.

    dz:      (B, NP, Ho, Wo) channels_last, NP >= n
    points:  the landmarks, (B, count, 2) float32
    scale:   the samples' weights, (B,) float32, or None
    returns: (splits, count taps, n) float32, to be summed over the splits
    """
    batch, channels = dz.shape[:2]
    count, g = points.shape[1], geometry
    bn = power(n, 16, 128)
    blocks = triton.cdiv(n, bn)
    # the samples are split among a few programs for each multiprocessor
    splits = max(1, min(batch, triton.cdiv(4 * tuning.processors(), count * blocks)))
    per_split = triton.cdiv(batch, splits)
    splits = triton.cdiv(batch, per_split)
    partial = points.new_empty((splits, count * g.taps, n))

    def cost() -> Cost:
        windows = batch * count * g.stamp_pixels()
        dz_bytes = windows * n * dz.element_size()
        moved = size(points, partial) + min(dz_bytes, size(dz))
        return Cost(windows * g.taps * (2.0 * n + 14.0 * blocks), moved, dz_bytes + size(partial), matrix=True)

    launch(
        landmark_conv_weight_grad_kernel, (count * blocks, splits), landmarks=points, dz=dz,
        factors=points if scale is None else scale, partial=partial, batch=batch, per_split=per_split, count=count,
        H=g.height, W=g.width, N=n, NP=channels, out_height=g.out_height, out_width=g.out_width, padding=g.padding,
        radius=g.radius, scale=exponent(g.sigma),
        **g.constants(), SUBPIXEL=g.subpixel, SCALED=scale is not None, PRECISION=precision,
        BT=power(g.taps, 16, 64), BN=bn, BP=64 if dz.element_size() == 2 else 32, cost=cost, num_stages=2,
    )  # fmt: skip
    return partial


def landmarks_gradient(
    dz: Tensor, points: Tensor, packed: Tensor, result: Tensor, geometry: Geometry, precision: str
) -> None:
    """Writes the gradient of the landmarks to result (B, count, 2).

    dz:     (B, NP, Ho, Wo) channels_last
    points: the landmarks, (B, count, 2) float32
    packed: the weights (C + count, taps, n)
    """
    count, n, g, half = points.shape[1], packed.shape[2], geometry, dz.element_size() == 2

    def cost() -> Cost:
        windows = points.shape[0] * count * g.stamp_pixels()
        dz_bytes = windows * n * dz.element_size()
        moved = size(points, packed, result) + min(dz_bytes, size(dz))
        return Cost(windows * g.taps * (2.0 * n + 18.0), moved, dz_bytes + points.shape[0] * size(packed), matrix=True)

    launch(
        landmark_conv_landmark_grad_kernel, (points.shape[0] * count,), landmarks=points, packed=packed, dz=dz,
        result=result, count=count, C=packed.shape[0] - count, H=g.height, W=g.width, N=n, NP=dz.shape[1],
        out_height=g.out_height, out_width=g.out_width, padding=g.padding, radius=g.radius, scale=exponent(g.sigma),
        steepness=1.0 / g.sigma / g.sigma, **g.constants(), PRECISION=precision,
        BT=power(g.taps, 16, 64), BP=64 if half else 32, BK=power(n, 16, 64), cost=cost,
        num_stages=2 if half else 1,  # a second stage in float32 needs more registers than a thread has
    )  # fmt: skip


def sum_gradients(
    of_image: Tensor | None, of_landmarks: Tensor | None, dweight: Tensor, bias_rows: Tensor | None, dbias: Tensor
) -> None:
    """Sums the parts of dweight, each (splits, rows, n) float32, and of dbias, (rows, n); None: there is no such part.

    dweight is left as it is without of_landmarks, dbias without bias_rows.
    """
    n = dbias.shape[0] if of_landmarks is None else dweight.shape[0]
    rows = 0 if of_landmarks is None else dweight[0].numel()
    br, bn = 16, power(n, 16, 64)

    def cost() -> Cost:
        parts = size(of_image, of_landmarks, bias_rows)
        return Cost(parts / 4, parts + size(dweight, dbias))

    launch(
        landmark_conv_sum_kernel, (triton.cdiv(rows, br) + (bias_rows is not None), triton.cdiv(n, bn)),
        of_image=dweight if of_image is None else of_image, image_splits=0 if of_image is None else len(of_image),
        image_rows=0 if of_image is None else of_image.shape[1],
        of_landmarks=dweight if of_landmarks is None else of_landmarks,
        landmark_splits=0 if of_landmarks is None else len(of_landmarks), rows=rows, dweight=dweight,
        bias_partial=dweight if bias_rows is None else bias_rows,
        bias_rows=0 if bias_rows is None else len(bias_rows), dbias=dbias, N=n,
        WITH_WEIGHT=of_landmarks is not None, WITH_BIAS=bias_rows is not None,
        BR=br, BN=bn, cost=cost,
    )  # fmt: skip
