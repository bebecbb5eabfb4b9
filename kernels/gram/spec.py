"""Samples, tolerances, costs and the strongest library form of gram."""

from math import prod

import torch
from torch import Tensor

from .._observers import NativeCall
from .._spec import Sample, Spec, Work


def _sample(*shape: int, layout: str = "channels_last") -> Sample:
    return Sample(f"{'x'.join(map(str, shape))} {layout}", {"features": shape}, {}, layout)


class _Symmetric(torch.autograd.Function):
    """One batched product forward and, knowing the symmetry, one backward."""

    @staticmethod
    def forward(ctx, flat, scale):
        ctx.save_for_backward(flat)
        ctx.scale = scale
        result = flat.new_empty((flat.shape[0], flat.shape[1], flat.shape[1]))
        return torch.baddbmm(result, flat, flat.transpose(1, 2), beta=0, alpha=scale)

    @staticmethod
    def backward(ctx, grad):
        (flat,) = ctx.saved_tensors
        return torch.bmm((grad + grad.transpose(1, 2)).mul_(ctx.scale), flat), None


def strong(features: Tensor) -> Tensor:
    """The scaled product in one call, and a backward of one product instead of two."""
    return _Symmetric.apply(features.flatten(2), 1 / prod(features.shape[1:]))


def _work(call: NativeCall) -> Work:
    batch, pixels, channels = (call.integers[name] for name in ("batch", "pixels", "channels"))
    backward = call.function.endswith("_backward")
    width = 2.0 if call.integers["dtype"] else 4.0
    features, matrix = batch * pixels * channels * width, 4.0 * batch * channels**2
    # forward, the half of the products on and above the diagonal; backward, all
    products = batch * pixels * channels * (2 * channels if backward else channels + 1)
    shape = f"{batch}x{channels}x{pixels} pixels"
    return Work(shape, float(products), (2 if backward else 1) * features + matrix)


SPEC = Spec(
    operator="gram",
    samples=[
        _sample(2, 24, 9, 7),
        _sample(1, 1, 1, 1),
        _sample(3, 3, 5, 4, layout="contiguous"),
        _sample(2, 71, 13, 11, layout="sliced"),
        _sample(3, 40, 6, 6, layout="expanded"),
        _sample(1, 130, 33, 31),
        _sample(2, 47, 7, 19, layout="contiguous"),
        _sample(0, 8, 4, 4),
    ],
    benchmarks=[_sample(8, 256, 16, 16), _sample(25, 64, 32, 32), _sample(16, 128, 32, 32)],
    floor={torch.float32: 5e-7, torch.bfloat16: 4e-3, torch.float16: 1e-3},
    # as written: the full product, and two in backward
    flops=lambda s: 6.0 * prod(s.shapes["features"]) * s.shapes["features"][1],
    # two reads and the gradient's write; the matrix and its gradient, written and read
    bytes=lambda s, dtype: (
        3.0 * dtype.itemsize * prod(s.shapes["features"])
        + 4.0 * 4 * s.shapes["features"][0] * s.shapes["features"][1] ** 2
    ),
    strong=strong,
    work=_work,
)
