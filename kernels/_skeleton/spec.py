"""Samples, tolerances and costs of skeleton: one list drives the tests, `verify` and the benchmark."""

from math import prod

import torch

from .._observers import NativeCall
from .._spec import Sample, Spec, Work


def _sample(*shape: int, layout: str = "contiguous") -> Sample:
    return Sample(f"{'x'.join(map(str, shape))} {layout}", {"x": shape, "scale": shape[:1]}, {}, layout)


def _work(call: NativeCall) -> Work:
    batch, size = call.integers["batch"], call.integers["size"]
    elements, width = batch * size, 2.0 if call.integers["dtype"] else 4.0
    passes = 1 if call.function.endswith("_forward") else sum(call.pointers[name] != 0 for name in ("dx", "dscale"))
    return Work(f"{batch}x{size}", float(passes * elements), (1.0 + passes) * width * elements)


SPEC = Spec(
    operator="skeleton",
    samples=[
        _sample(2, 3, 5, 7),
        _sample(1, 1),
        _sample(3, 40, 33, layout="expanded"),
        _sample(4, 3, 8, 9, layout="channels_last"),
        _sample(2, 3, 8, 9, layout="sliced"),
        _sample(5),
        _sample(0, 4),
    ],
    benchmarks=[_sample(25, 3, 16, 16)],
    floor={torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3},
    flops=lambda s: 4.0 * prod(s.shapes["x"]),
    # x and its upstream gradient read, y and its gradient written, x read once more for the scale's
    bytes=lambda s, dtype: 5.0 * dtype.itemsize * prod(s.shapes["x"]),
    work=_work,
)
