"""image_batch in Triton: every element of the batch is converted from its byte in the store."""

import triton
import triton.language as tl

from .._gpu.blocks import rounded
from .._gpu.launch import Cost, launch, size
from . import output

BLOCK = 1024  # elements that a program writes


@triton.jit
def image_batch_forward_kernel(
    store, rows, offsets, mirror, images, count, side, channels, resolution, blocks,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """images (batch, resolution, resolution, channels) from store (count, side, side, channels).

    A program writes BLOCK elements of one image. An image whose row or window lies outside the store is NaN. WIDE: one
    image has more than 2^31 elements.
    """
    image, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    row = tl.load(rows + image)
    left, top = tl.load(offsets + 2 * image), tl.load(offsets + 2 * image + 1)
    mirrored = tl.load(mirror + image) != 0
    length = resolution * channels
    if WIDE:
        block = tl.cast(block, tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    y, along = at // length, at % length
    x, c = along // channels, along % channels
    x = tl.where(mirrored, resolution - 1 - x, x)
    room = side - resolution
    held = (row >= 0) & (row < count) & (left >= 0) & (left <= room) & (top >= 0) & (top <= room)
    wanted = y < resolution
    pixel = (row * side + top + y) * side + left + x
    value = tl.load(store + pixel * channels + c, mask=wanted & held, other=0).to(tl.float32)
    value = tl.div_rn(value, tl.full((BLOCK,), 127.5, tl.float32)) - 1.0
    value = tl.where(held, value, float("nan"))
    of_image = images + tl.cast(image, tl.int64) * length * resolution
    tl.store(of_image + at, rounded(value, images.dtype.element_ty), mask=wanted)


def forward(store, rows, offsets, mirror, resolution, dtype):
    images = output(store, rows, resolution, dtype)
    count, side, _, channels = store.shape
    elements = resolution * resolution * channels
    blocks = triton.cdiv(elements, BLOCK)
    launch(
        image_batch_forward_kernel, (rows.shape[0] * blocks,), store=store, rows=rows.contiguous(),
        offsets=offsets.contiguous(), mirror=mirror.contiguous(), images=images, count=count, side=side,
        channels=channels, resolution=resolution, blocks=blocks, WIDE=elements + BLOCK >= 2**31, BLOCK=BLOCK,
        cost=lambda: Cost(2.0 * images.numel(), images.numel() + size(rows, offsets, mirror, images)),
    )  # fmt: skip
    return images
