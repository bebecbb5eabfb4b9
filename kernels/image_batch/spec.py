"""Samples, tolerances and costs of image_batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from .._observers import NativeCall
from .._spec import Sample, Spec, Work


def _below(end: int, dtype: torch.dtype) -> Callable[[torch.Generator, tuple[int, ...]], Tensor]:
    """What draws whole numbers 0 to end - 1."""

    def draw(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(0, end, shape, generator=generator).to(dtype)

    return draw


def _sample(batch: int, count: int, side: int, channels: int, resolution: int) -> Sample:
    return Sample(
        f"{batch}x{channels}x{resolution}x{resolution} of {count}x{side}x{side}",
        {"store": (count, side, side, channels), "rows": (batch,), "offsets": (batch, 2), "mirror": (batch,)},
        {"resolution": resolution},
        drawn={
            "store": _below(256, torch.uint8),
            "rows": _below(count, torch.int64),
            "offsets": _below(side - resolution + 1, torch.int64),
            "mirror": _below(2, torch.bool),
        },
    )


def _elements(sample: Sample) -> int:
    return sample.shapes["rows"][0] * sample.shapes["store"][3] * sample.options["resolution"] ** 2


def _work(call: NativeCall) -> Work:
    batch, channels, resolution = (call.integers[name] for name in ("batch", "channels", "resolution"))
    elements = batch * channels * resolution**2
    moved = (3.0 if call.integers["dtype"] else 5.0) * elements
    return Work(f"{batch}x{channels}x{resolution}x{resolution}", 2.0 * elements, moved)


SPEC = Spec(
    operator="image_batch",
    samples=[
        _sample(4, 7, 18, 3, 16),
        _sample(1, 1, 1, 1, 1),
        _sample(5, 3, 9, 1, 7),
        _sample(2, 4, 37, 3, 37),
        _sample(3, 2, 20, 4, 5),
        _sample(6, 40, 12, 2, 11),
        _sample(0, 3, 8, 3, 8),
    ],
    benchmarks=[_sample(25, 2000, 64, 3, 64), _sample(50, 500, 144, 3, 128)],
    # the reference rounds where fused does
    floor={torch.float32: 1e-9, torch.bfloat16: 1e-9, torch.float16: 1e-9},
    flops=lambda s: 2.0 * _elements(s),
    # a byte read and a number written
    bytes=lambda s, dtype: (1.0 + dtype.itemsize) * _elements(s),
    work=_work,
)
