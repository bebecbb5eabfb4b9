"""landmark_conv in Triton: a tile of the output sums the products of the image and of the few stamps that reach it.

A landmark's part is a product whose depth is the kernel's taps: the values of its Gaussian under each tap, formed where
they are needed, times its weights. A stamp costs nothing where it does not reach, nothing is scattered, and every sum
has a fixed order. The gradients are in gpu_gradients.py and gpu_image.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._gpu import tuning
from .._gpu.activation_backward import through_activation
from .._gpu.blocks import activate, dot, rounded, single
from .._gpu.launch import Cost, launch, size
from .._layout import channels_last
from ..landmark_heatmap.gpu import exponent, window
from ..resize_conv_act import ACTIVATION_NUMBERS
from ..resize_conv_act.gpu_convolution import precision
from . import gradients, output
from .gpu_geometry import Geometry, power
from .gpu_gradients import landmarks_gradient, landmarks_weight_gradient, sum_gradients
from .gpu_image import image_gradient, image_weight_gradient


@triton.jit
def landmark_conv_pack_kernel(
    weight, packed, unusual, channels, N, TAPS: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr
):
    """Copies weight (N, channels, TAPS) to packed (channels, TAPS, N); a program per channel and block of N.

    unusual (channels, blocks) int32: 1 where one of the block's weights is NaN or infinite.
    """
    channel, block = tl.program_id(0), tl.program_id(1)
    n, t = block * BN + tl.arange(0, BN), tl.arange(0, BT)
    inside = (n < N)[:, None] & (t < TAPS)[None, :]
    value = tl.load(weight + (n[:, None] * channels + channel) * TAPS + t[None, :], mask=inside, other=0.0)
    tl.store(packed + (channel * TAPS + t)[None, :] * N + n[:, None], value, mask=inside)
    infinite = tl.where(tl.abs(value.to(tl.float32)) < float("inf"), 0, 1)
    tl.store(unusual + channel * tl.num_programs(1) + block, tl.max(tl.max(infinite, axis=1), axis=0))


@triton.jit
def _add_image(
    acc, image, packed, sample, y0, x0, n, C, H, W, N,
    TAPS: tl.constexpr, KW: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to acc (BM, BN) the image's products from pixels (y0, x0) on; channels and taps are one axis."""
    first = image + tl.cast(sample, tl.int64) * H * W * C
    pixel = tl.cast(y0 * W + x0, tl.int64) * C
    for k0 in range(0, C * TAPS, BK):
        k = k0 + tl.arange(0, BK)
        c, i, j = k // TAPS, (k % TAPS) // KW, (k % TAPS) % KW
        y, x = y0[:, None] + i[None, :], x0[:, None] + j[None, :]
        inside = (k < C * TAPS)[None, :] & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        a = tl.load(first + pixel[:, None] + ((i * W + j) * C + c)[None, :], mask=inside, other=0.0)
        inside = (k < C * TAPS)[:, None] & (n < N)[None, :]
        b = tl.load(packed + k[:, None] * N + n[None, :], mask=inside, other=0.0)
        acc = dot(a, b, acc, PRECISION)
    return acc


@triton.jit
def _add_stamp(
    acc, place, packed, y0, x0, n, H, W, N, radius, scale,
    SUBPIXEL: tl.constexpr, TAPS: tl.constexpr, KW: tl.constexpr, BT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to acc (BM, BN) one landmark's part: its Gaussian at pixels (y0, x0) + tap times its weights.

    place:  pointer to the landmark's (x, y), float32
    packed: the landmark's weights (taps, N), all finite
    y0, x0: float32
    scale:  the factor of a squared distance in the exponent of 2
    """
    t = tl.arange(0, BT)
    inside = (t < TAPS)[:, None] & (n < N)[None, :]
    weights = tl.load(packed + t[:, None] * N + n[None, :], mask=inside, other=0.0)
    first_y, last_y, centre_y = window(tl.load(place + 1), H, radius, SUBPIXEL)
    first_x, last_x, centre_x = window(tl.load(place), W, radius, SUBPIXEL)
    # taps past the last lie outside of every window; the window as its middle and half its size takes one comparison
    # of each value
    i, j = tl.where(t < TAPS, (t // KW).to(tl.float32), float("inf")), (t % KW).to(tl.float32)
    dy, dx = y0[:, None] + (i - centre_y)[None, :], x0[:, None] + (j - centre_x)[None, :]
    middle_y, middle_x = (first_y + last_y) * 0.5, (first_x + last_x) * 0.5
    inside = tl.abs(y0[:, None] + (i - middle_y)[None, :]) <= (last_y - first_y) * 0.5
    inside = inside & (tl.abs(x0[:, None] + (j - middle_x)[None, :]) <= (last_x - first_x) * 0.5)
    values = tl.where(inside, tl.exp2((dy * dy + dx * dx) * scale), 0.0)
    return dot(rounded(values, packed.dtype.element_ty), weights, acc, PRECISION)


@triton.jit
def _add_unusual_stamp(
    acc, place, packed, y0, x0, n, H, W, N, radius, scale,
    SUBPIXEL: tl.constexpr, TAPS: tl.constexpr, KW: tl.constexpr,
):  # fmt: skip
    """Adds what _add_stamp does, for weights that may be NaN or infinite: no product is formed outside the window."""
    first_y, last_y, centre_y = window(tl.load(place + 1), H, radius, SUBPIXEL)
    first_x, last_x, centre_x = window(tl.load(place), W, radius, SUBPIXEL)
    for tap in range(TAPS):
        weights = tl.load(packed + tap * N + n, mask=n < N, other=0.0).to(tl.float32)
        y, x = y0 + tap // KW, x0 + tap % KW
        inside = (y >= first_y) & (y <= last_y) & (x >= first_x) & (x <= last_x)
        values = tl.exp2(((y - centre_y) * (y - centre_y) + (x - centre_x) * (x - centre_x)) * scale)
        acc += tl.where(inside[:, None], values[:, None] * weights[None, :], 0.0)
    return acc


@triton.jit
def landmark_conv_kernel(
    landmarks, packed, unusual, bias, image, y, count, C, H, W, N, out_height, out_width, padding, radius, scale, slope,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, SUBPIXEL: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_IMAGE: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y (batch, out_height, out_width, N): a program writes a tile of BH x BW pixels and BN channels of one sample.

    landmarks:       (batch, count, 2) float32
    packed, unusual: as landmark_conv_pack_kernel writes them
    image:           (batch, H, W, C), read where HAS_IMAGE
    scale:           the factor of a squared distance in the exponent of 2
    """
    scale, slope = single(scale), single(slope)
    TAPS: tl.constexpr = KH * KW
    CHUNK: tl.constexpr = 32  # landmarks tested at once; those that reach the tile are the bits of one number
    n_blocks, tiles_y, tiles_x = tl.cdiv(N, BN), tl.cdiv(out_height, BH), tl.cdiv(out_width, BW)
    block, rest = tl.program_id(0) % n_blocks, tl.program_id(0) // n_blocks
    top, left, sample = (rest // tiles_x) % tiles_y * BH, rest % tiles_x * BW, rest // (tiles_x * tiles_y)
    n = block * BN + tl.arange(0, BN)
    m = tl.arange(0, BH * BW)
    v, u = left + m % BW, top + m // BW
    y0, x0 = u * STRIDE - padding, v * STRIDE - padding
    acc = tl.zeros((BH * BW, BN), tl.float32)
    if HAS_IMAGE:
        acc = _add_image(acc, image, packed, sample, y0, x0, n, C, H, W, N, TAPS, KW, BK, PRECISION)
    # the pixels of the maps that the tile reads; a landmark reaches the tile if its window has some of them
    low_y, high_y = top * STRIDE - padding, (top + BH - 1) * STRIDE - padding + KH - 1
    low_x, high_x = left * STRIDE - padding, (left + BW - 1) * STRIDE - padding + KW - 1
    places = landmarks + tl.cast(sample, tl.int64) * count * 2
    of_landmarks, flags = packed + tl.cast(C * TAPS, tl.int64) * N, unusual + C * n_blocks + block
    fy, fx = y0.to(tl.float32), x0.to(tl.float32)
    unusual_ones = 0
    for start in range(0, count, CHUNK):
        each = start + tl.arange(0, CHUNK)
        at_x = tl.load(places + each * 2, mask=each < count, other=0.0)
        at_y = tl.load(places + each * 2 + 1, mask=each < count, other=0.0)
        plain = tl.load(flags + each * n_blocks, mask=each < count, other=0) == 0
        first_x, last_x, _ = window(at_x, W, radius, SUBPIXEL)
        first_y, last_y, _ = window(at_y, H, radius, SUBPIXEL)
        reaches = (tl.maximum(first_x, low_x) <= tl.minimum(last_x, high_x)) & (each < count)
        reaches = reaches & (tl.maximum(first_y, low_y) <= tl.minimum(last_y, high_y))
        unusual_ones += tl.sum(tl.where(reaches & ~plain, 1, 0), axis=0)
        reaches = reaches & plain
        bits = tl.sum(tl.where(reaches, 1 << tl.arange(0, CHUNK), 0), axis=0)
        for _ in range(tl.sum(tl.where(reaches, 1, 0), axis=0)):
            lowest = bits & -bits
            bits -= lowest
            # the bit's place is the exponent of the number as a float, of either sign
            landmark = start + ((lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) & 255) - 127
            acc = _add_stamp(
                acc, places + landmark * 2, of_landmarks + tl.cast(landmark * TAPS, tl.int64) * N, fy, fx, n, H, W, N,
                radius, scale, SUBPIXEL, TAPS, KW, BT, PRECISION,
            )  # fmt: skip
    for landmark in range(tl.where(unusual_ones > 0, count, 0)):
        if tl.load(flags + landmark * n_blocks) != 0:
            acc = _add_unusual_stamp(
                acc, places + landmark * 2, of_landmarks + tl.cast(landmark * TAPS, tl.int64) * N, fy, fx, n, H, W, N,
                radius, scale, SUBPIXEL, TAPS, KW,
            )  # fmt: skip
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION, slope)
    inside = ((u < out_height) & (v < out_width))[:, None] & (n < N)[None, :]
    pixel = (tl.cast(sample, tl.int64) * out_height + u) * out_width + v
    tl.store(y + pixel[:, None] * N + n[None, :], rounded(acc, y.dtype.element_ty), mask=inside)


def packed_weights(weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Packs weight (N, channels, KH, KW) as (channels, taps, N), and tells which blocks of N have a weight not finite.

    returns: packed, in weight's dtype, and (channels, blocks) int32
    """
    n, channels, kh, kw = weight.shape
    taps = kh * kw
    packed = torch.empty((channels, taps, n), dtype=weight.dtype, device=weight.device)
    unusual = torch.empty((channels, triton.cdiv(n, block)), dtype=torch.int32, device=weight.device)
    launch(
        landmark_conv_pack_kernel, tuple(unusual.shape), weight=weight.contiguous(), packed=packed, unusual=unusual,
        channels=channels, N=n, TAPS=taps, BT=power(taps, 1, 64), BN=block,
        cost=lambda: Cost(0.0, size(weight, packed, unusual)),
    )  # fmt: skip
    return packed, unusual


def tiles(batch: int, geometry: Geometry, n_blocks: int, half: bool) -> list[dict[str, int]]:
    """Gives the tiles worth trying, the likely best first: larger tiles read a landmark's weights less often."""
    height, width = geometry.out_height, geometry.out_width

    def tile(columns: int, num_warps: int) -> dict[str, int]:
        return {"BH": tuning.block(height, 8), "BW": tuning.block(width, columns), "num_warps": num_warps}

    if not half:  # a float32 product is three products, and the parts of its factors stay in registers
        return [tile(8, 8)]
    small, large = tile(8, 4), tile(16, 8)
    return [large, small] if batch * height * width * n_blocks >= 128 * 4 * tuning.processors() else [small, large]


def forward(
    landmarks, weight, bias, image, grad_scale,
    height, width, stride, padding, sigma, radius, subpixel, activation, negative_slope,
):  # fmt: skip
    y = output(landmarks, weight, height, width, stride, padding)
    batch, n = y.shape[:2]
    count = landmarks.shape[1]
    channels = weight.shape[1] - count
    g = Geometry(height, width, tuple(weight.shape[2:]), stride, padding, sigma, radius, subpixel, *y.shape[2:])
    points, image = landmarks.float().contiguous(), channels_last(image)
    bn = power(n, 16, 128)
    packed, unusual = packed_weights(weight, bn)
    blocks, pixels = triton.cdiv(n, bn), batch * g.out_height * g.out_width

    def cost() -> Cost:
        # the landmarks' products as if no border cut a stamp, and the image's products
        stamps = batch * count * g.stamp_pixels() * g.taps
        flops = 2.0 * n * (stamps + pixels * g.taps * channels) + 12.0 * stamps * blocks
        gathered = pixels * g.taps * channels * y.element_size() * blocks + size(y) + batch * size(packed)
        return Cost(flops, size(points, image, packed, bias, y), gathered, matrix=True)

    def run(tile: dict[str, int]) -> None:
        grid = (batch * triton.cdiv(g.out_height, tile["BH"]) * triton.cdiv(g.out_width, tile["BW"]) * blocks,)
        launch(
            landmark_conv_kernel, grid, landmarks=points, packed=packed, unusual=unusual,
            bias=packed if bias is None else bias.contiguous(), image=packed if image is None else image, y=y,
            count=count, C=channels, H=height, W=width, N=n, out_height=g.out_height, out_width=g.out_width,
            padding=padding, radius=radius, scale=exponent(sigma), slope=negative_slope,
            **g.constants(), SUBPIXEL=subpixel, ACTIVATION=ACTIVATION_NUMBERS[activation], HAS_IMAGE=image is not None,
            HAS_BIAS=bias is not None, PRECISION=precision(y.dtype, False),
            BN=bn, BT=power(g.taps, 16, 64), BK=16, cost=cost, num_stages=1, **tile,
        )  # fmt: skip

    problem = (batch, count, channels, *g.kernel, stride, radius, g.out_height, g.out_width, n, y.dtype)
    tuning.run_best(
        "landmark_conv",
        (*problem, precision(y.dtype, False)),
        tiles(batch, g, blocks, weight.dtype != torch.float32),
        run,
    )
    return y


def backward(
    grad, y, landmarks, weight, bias, image, grad_scale,
    height, width, stride, padding, sigma, radius, subpixel, activation, negative_slope, need,
):  # fmt: skip
    results = gradients([landmarks, weight, bias, image], need)
    dlandmarks, dweight, dbias, dimage = results
    if landmarks.shape[0] == 0:
        for gradient in (dweight, dbias):
            gradient.zero_()
        return tuple(results)
    n = weight.shape[0]
    g = Geometry(height, width, tuple(weight.shape[2:]), stride, padding, sigma, radius, subpixel, *grad.shape[2:])
    points, weight, image = landmarks.float().contiguous(), weight.contiguous(), channels_last(image)
    scale = None if grad_scale is None else grad_scale.float().contiguous()
    grad, products = channels_last(grad), precision(grad.dtype, False)
    # channels in multiples of 16, so that a pixel's gradients are whole 16-byte words
    dz, _, bias_rows = through_activation(
        grad, grad if y is None else channels_last(y), scale, ACTIVATION_NUMBERS[activation], negative_slope,
        with_bias=need[2], channels=-(-n // 16) * 16,
    )  # fmt: skip
    of_landmarks = landmarks_weight_gradient(dz, points, scale, n, g, products) if need[1] else None
    of_image = image_weight_gradient(dz, image, scale, n, g, products) if need[1] and image is not None else None
    if need[1] or need[2]:
        sum_gradients(of_image, of_landmarks, dweight, bias_rows, dbias)
    if need[0]:
        packed, _ = packed_weights(weight, power(n, 16, 128))
        landmarks_gradient(dz, points, packed, dlandmarks, g, products)
    if need[3]:
        image_gradient(dz, weight, dimage, g, products)
    return tuple(results)
