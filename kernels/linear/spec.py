"""Samples, tolerances and costs of linear."""

from math import prod

import torch

from .._spec import Sample, Spec


def _sample(batch: int, inputs: int, outputs: int, *, bias: bool = True, grad_scale: bool = True) -> Sample:
    shapes = {"x": (batch, inputs), "weight": (outputs, inputs)}
    if bias:
        shapes["bias"] = (outputs,)
    if grad_scale:
        shapes["grad_scale"] = (batch,)
    name = f"{batch}x{inputs}->{outputs}" + " no bias" * (not bias) + " grad_scale" * grad_scale
    return Sample(name, shapes, {}, "contiguous")


SPEC = Spec(
    operator="linear",
    samples=[
        _sample(4, 20, 7),
        _sample(1, 1, 1),
        _sample(3, 33, 65, bias=False),
        _sample(5, 16, 8, grad_scale=False),
        _sample(0, 16, 8),
    ],
    benchmarks=[_sample(50, 16384, 64), _sample(50, 64, 4096)],
    floor={torch.float32: 5e-7, torch.bfloat16: 4e-3, torch.float16: 1e-3},
    flops=lambda s: 3 * 2.0 * prod(s.shapes["x"]) * s.shapes["weight"][0],
    bytes=lambda s, dtype: 3.0 * dtype.itemsize * (prod(s.shapes["x"]) + prod(s.shapes["weight"])),
)
