"""A batch of images from stored squares: windows gathered, mirrored and scaled to [-1, 1] in one pass."""

import torch
from torch import Tensor

from .._availability import gpu_function
from .._checks import DTYPES, require, require_dtype
from .._contract import define, publish
from .._native import native_function
from . import reference

NAME = "image_batch"
_native_forward = native_function(f"{NAME}_forward")


@publish(reference.image_batch)
def image_batch(
    store: Tensor,
    rows: Tensor,
    offsets: Tensor,
    mirror: Tensor,
    resolution: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Images cut from stored squares: value v of 0..255 becomes v / 127.5 - 1.

    store:      (M, S, S, C) uint8, dense; it may hold more than 2^31 elements
    rows:       (B,) int64: the square of each image
    offsets:    (B, 2) int64: x, then y of its window's corner in the square, 0 to S - resolution
    mirror:     (B,) bool: whether left and right change places in the window
    resolution: side of the windows, 1 to S
    dtype:      of the result: float32, bfloat16 or float16, rounded from float32

    Returns (B, C, resolution, resolution), channels_last, without gradient. Raises ValueError when a shape, dtype or
    device does not fit, and on the CPU when a row or a window lies outside the store; on a GPU, where to know would be
    to wait, such an image is NaN.
    """
    return _forward(store, rows, offsets, mirror, resolution, dtype)


def check(store: Tensor, rows: Tensor, offsets: Tensor, mirror: Tensor, resolution: int, dtype: torch.dtype) -> None:
    shape, batch = tuple(store.shape), rows.shape[0] if rows.dim() else 0
    square = len(shape) == 4 and shape[1] == shape[2] and 0 not in shape[1:]
    require(square, NAME, f"store must be (M, S, S, C), not {shape}")
    require(store.is_contiguous(), NAME, "store must be contiguous: a copy of it at every step is not meant")
    require(1 <= resolution <= shape[1], NAME, f"resolution is {resolution}; it must be from 1 to {shape[1]}")
    require_dtype(NAME, "dtype", dtype)
    expected = {
        "store": (store, torch.uint8, shape),
        "rows": (rows, torch.int64, (batch,)),
        "offsets": (offsets, torch.int64, (batch, 2)),
        "mirror": (mirror, torch.bool, (batch,)),
    }
    for name, (tensor, kind, size) in expected.items():
        require(tensor.dtype == kind, NAME, f"{name} is {tensor.dtype}; it must be {kind}")
        require(tensor.shape == size, NAME, f"{name} is {tuple(tensor.shape)}; it must be {size}")


def output(store: Tensor, rows: Tensor, resolution: int, dtype: torch.dtype) -> Tensor:
    shape = (rows.shape[0], store.shape[3], resolution, resolution)
    return torch.empty(shape, dtype=dtype, device=store.device, memory_format=torch.channels_last)


def _check_inside(store: Tensor, rows: Tensor, offsets: Tensor, resolution: int) -> None:
    for name, values, end in (("rows", rows, len(store)), ("offsets", offsets, store.shape[1] - resolution + 1)):
        if values.numel():
            low, high = (bound.item() for bound in torch.aminmax(values))
            require(low >= 0 and high < end, NAME, f"{name} hold {low} to {high}; they must lie in 0 .. {end - 1}")


def _forward_cpu(store, rows, offsets, mirror, resolution, dtype):
    _check_inside(store, rows, offsets, resolution)
    images = output(store, rows, resolution, dtype)
    drawn = {"rows": rows.contiguous(), "offsets": offsets.contiguous(), "mirror": mirror.contiguous()}
    sizes = {"batch": len(rows), "side": store.shape[1], "channels": store.shape[3], "resolution": resolution}
    _native_forward(store=store, **drawn, images=images, dtype=DTYPES[dtype], **sizes)
    return images


def _forward_fake(store, rows, offsets, mirror, resolution, dtype):
    return output(store, rows, resolution, dtype)


_forward = define(
    f"{NAME}(Tensor store, Tensor rows, Tensor offsets, Tensor mirror, SymInt resolution, ScalarType dtype) -> Tensor",
    check=check,
    cpu=_forward_cpu,
    cuda=gpu_function(__name__, "forward"),
    fake=_forward_fake,
    reference=reference.image_batch,
)
