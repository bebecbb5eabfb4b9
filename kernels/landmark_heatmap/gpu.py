"""landmark_heatmap in Triton: every value of the maps is written once, from its landmark's coordinates.

In channels_last maps a program writes the same columns of a few rows, and holds their distances along x; in planar maps
it writes the same pixels of a few landmarks, and holds their coordinates. The gradient reads each landmark's window
only.
"""

import math

import torch
import triton
import triton.language as tl

from .._gpu.blocks import rounded, single
from .._gpu.launch import Cost, launch, size
from . import gradient, output

BLOCK = 1024  # values that a program writes at a time
WINDOW = 1024  # most pixels that a program of the gradient reads at a time


@triton.jit
def pixel_of(at, SUBPIXEL: tl.constexpr):
    """Rounds a float32 coordinate to the pixel that its window is centred at, as float32; NaN and infinity stay.

    SUBPIXEL: to the nearest pixel, halves to even; else towards zero.
    """
    low = tl.floor(at)
    if SUBPIXEL:
        part, odd = at - low, low - 2.0 * tl.floor(low * 0.5) == 1.0
        return tl.where((part > 0.5) | ((part == 0.5) & odd), low + 1.0, low)
    else:
        return tl.where(at < 0, tl.ceil(at), low)


@triton.jit
def window(at, size, radius, SUBPIXEL: tl.constexpr):
    """Gives (first, last, centre) of a stamp along an axis of `size` pixels, in which last < first if it reaches none.

    first, last: int32, the window's pixels; centre: float32, the Gaussian's
    """
    pixel = pixel_of(at, SUBPIXEL)
    reaches = (pixel >= -radius) & (pixel <= size - 1 + radius)  # false for NaN
    near = tl.where(reaches, pixel, 0.0).to(tl.int32)
    first = tl.maximum(near - radius, 0)
    last = tl.where(reaches, tl.minimum(near + radius, size - 1), -1)
    return first, last, tl.where(reaches, at if SUBPIXEL else pixel, 0.0)


@triton.jit
def landmark_heatmap_rows_kernel(
    landmarks, maps, N, H, row, radius, scale, SUBPIXEL: tl.constexpr, ROWS: tl.constexpr, BE: tl.constexpr
):
    """maps (B, H, row), row = W N, channels_last: a program writes BE values in each of ROWS rows.

    scale: the factor of a squared distance in the exponent of 2.
    """
    scale = single(scale)
    blocks = tl.cdiv(row, BE)
    bands = tl.cdiv(H, ROWS)
    e = (tl.program_id(0) % blocks) * BE + tl.arange(0, BE)
    rest = tl.program_id(0) // blocks
    first, sample = (rest % bands) * ROWS, tl.cast(rest // bands, tl.int64)
    inside = e < row
    place = landmarks + (sample * N + e % N) * 2
    at_x = tl.load(place, mask=inside, other=0.0)
    at_y = tl.load(place + 1, mask=inside, other=0.0)
    pixel_x, pixel_y = pixel_of(at_x, SUBPIXEL), pixel_of(at_y, SUBPIXEL)
    centre_x, centre_y = (at_x, at_y) if SUBPIXEL else (pixel_x, pixel_y)
    x = (e // N).to(tl.float32)
    near, square = tl.abs(x - pixel_x) <= radius, (x - centre_x) * (x - centre_x)
    for y in range(first, tl.minimum(first + ROWS, H)):
        at = tl.cast(y, tl.float32)
        reached = near & (tl.abs(at - pixel_y) <= radius)
        value = tl.exp2((square + (at - centre_y) * (at - centre_y)) * scale)
        value = tl.where(reached, value, 0.0)
        tl.store(maps + (sample * H + y) * row + e, rounded(value, maps.dtype.element_ty), mask=inside)


@triton.jit
def landmark_heatmap_planes_kernel(
    landmarks, maps, N, W, pixels, radius, scale, SUBPIXEL: tl.constexpr, COUNT: tl.constexpr, BE: tl.constexpr
):
    """maps (B, N, pixels), pixels = H W, planar: a program writes BE values in each of COUNT maps.

    scale: the factor of a squared distance in the exponent of 2.
    """
    scale = single(scale)
    blocks = tl.cdiv(pixels, BE)
    groups = tl.cdiv(N, COUNT)
    e = (tl.program_id(0) % blocks) * BE + tl.arange(0, BE)
    rest = tl.program_id(0) // blocks
    first, sample = (rest % groups) * COUNT, tl.cast(rest // groups, tl.int64)
    y, x = (e // W).to(tl.float32), (e % W).to(tl.float32)
    for n in range(first, tl.minimum(first + COUNT, N)):
        plane = sample * N + n
        at_x, at_y = tl.load(landmarks + plane * 2), tl.load(landmarks + plane * 2 + 1)
        pixel_x, pixel_y = pixel_of(at_x, SUBPIXEL), pixel_of(at_y, SUBPIXEL)
        centre_x, centre_y = (at_x, at_y) if SUBPIXEL else (pixel_x, pixel_y)
        reached = (tl.abs(x - pixel_x) <= radius) & (tl.abs(y - pixel_y) <= radius)
        value = tl.exp2(((x - centre_x) * (x - centre_x) + (y - centre_y) * (y - centre_y)) * scale)
        value = tl.where(reached, value, 0.0)
        tl.store(maps + plane * pixels + e, rounded(value, maps.dtype.element_ty), mask=e < pixels)


@triton.jit
def landmark_heatmap_backward_kernel(
    landmarks, grad, result, N, H, W, radius, scale, steepness,
    CHANNELS_LAST: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    """result (B, N, 2): the sum over the window of the gradient times the Gaussian's slope; a program per landmark.

    Centres are subpixel. scale: the factor of a squared distance in the exponent of 2; steepness: 1 / sigma^2.
    """
    scale, steepness = single(scale), single(steepness)
    plane = tl.cast(tl.program_id(0), tl.int64)
    at_x, at_y = tl.load(landmarks + plane * 2), tl.load(landmarks + plane * 2 + 1)
    first_x, last_x, centre_x = window(at_x, W, radius, True)
    first_y, last_y, centre_y = window(at_y, H, radius, True)
    if CHANNELS_LAST:
        start, step = (plane // N) * N * H * W + plane % N, N
    else:
        start, step = plane * H * W, 1
    total_x, total_y = tl.zeros((BY,), tl.float32), tl.zeros((BY,), tl.float32)
    for y0 in range(first_y, last_y + 1, BY):
        y = y0 + tl.arange(0, BY)
        dy = y.to(tl.float32) - centre_y
        for x0 in range(first_x, last_x + 1, BX):
            x = x0 + tl.arange(0, BX)
            dx = x.to(tl.float32) - centre_x
            inside = (y <= last_y)[:, None] & (x <= last_x)[None, :]
            at = tl.cast(y[:, None] * W + x[None, :], tl.int64) * step
            value = tl.load(grad + start + at, mask=inside, other=0.0).to(tl.float32)
            value *= tl.exp2((dy * dy)[:, None] * scale + (dx * dx)[None, :] * scale)
            total_x += tl.sum(value * dx[None, :], axis=1)
            total_y += tl.sum(value, axis=1) * dy
    to = result + plane * 2
    tl.store(to, rounded(tl.sum(total_x, axis=0) * steepness, result.dtype.element_ty))
    tl.store(to + 1, rounded(tl.sum(total_y, axis=0) * steepness, result.dtype.element_ty))


def exponent(sigma: float) -> float:
    """The factor of a squared distance in the exponent of 2 of the Gaussian."""
    return -0.5 / math.log(2.0) / sigma / sigma


def forward(landmarks, height, width, sigma, radius, subpixel, dtype, channels_last):
    maps = output(landmarks, height, width, dtype, channels_last)
    batch, count = landmarks.shape[:2]
    points = landmarks.float().contiguous()

    def cost() -> Cost:
        return Cost(9.0 * maps.numel(), size(points, maps))

    if channels_last:
        row, rows = width * count, 8
        grid = (batch * triton.cdiv(height, rows) * triton.cdiv(row, BLOCK),)
        launch(
            landmark_heatmap_rows_kernel, grid, landmarks=points, maps=maps, N=count, H=height, row=row, radius=radius,
            scale=exponent(sigma), SUBPIXEL=subpixel, ROWS=rows, BE=BLOCK, cost=cost,
        )  # fmt: skip
    else:
        pixels, planes = height * width, 4
        grid = (batch * triton.cdiv(count, planes) * triton.cdiv(pixels, BLOCK),)
        launch(
            landmark_heatmap_planes_kernel, grid, landmarks=points, maps=maps, N=count, W=width, pixels=pixels,
            radius=radius, scale=exponent(sigma), SUBPIXEL=subpixel, COUNT=planes, BE=BLOCK, cost=cost,
        )  # fmt: skip
    return maps


def backward(grad, landmarks, sigma, radius):
    channels_last = grad.is_contiguous(memory_format=torch.channels_last)
    grad = grad if channels_last else grad.contiguous()
    points, result = landmarks.float().contiguous(), gradient(landmarks)
    batch, count, height, width = grad.shape
    columns = min(64, triton.next_power_of_2(2 * radius + 1))
    rows = min(WINDOW // columns, columns)

    def cost() -> Cost:
        pixels = batch * count * min(2 * radius + 1, height) * min(2 * radius + 1, width)
        # in channels_last a pixel's maps lie side by side, so one map's values lie in a sector of 32 bytes each
        sector = 32.0 if channels_last else grad.element_size()
        return Cost(10.0 * pixels, size(points, result) + pixels * sector)

    launch(
        landmark_heatmap_backward_kernel, (batch * count,), landmarks=points, grad=grad, result=result, N=count,
        H=height, W=width, radius=radius, scale=exponent(sigma), steepness=1.0 / sigma / sigma,
        CHANNELS_LAST=channels_last, BY=rows, BX=columns,
        cost=cost, num_warps=1 if rows * columns <= 64 else 4,
    )  # fmt: skip
    return result
