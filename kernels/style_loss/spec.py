"""Samples, tolerances, costs and the strongest library form of style_loss."""

from math import prod

import torch
from torch import Tensor

from .._observers import NativeCall
from .._spec import Sample, Spec, Work


def _sample(*shape: int, layout: str = "channels_last", squared: bool = False) -> Sample:
    name = f"{'x'.join(map(str, shape))} {layout}" + " squared" * squared
    return Sample(name, {"a": shape, "b": shape}, {"squared": squared}, layout)


class _Difference(torch.autograd.Function):
    """Gram(a) - Gram(b), the second product subtracted in place; backward is one product for each argument."""

    @staticmethod
    def forward(ctx, a, b, scale):
        ctx.save_for_backward(a, b)
        ctx.scale = scale
        result = torch.bmm(a, a.transpose(1, 2))
        return result.baddbmm_(b, b.transpose(1, 2), beta=scale, alpha=-scale)

    @staticmethod
    def backward(ctx, grad):
        # the norm's gradient is symmetric, as its argument
        a, b = ctx.saved_tensors
        twice = grad * (2 * ctx.scale)
        for_a = torch.bmm(twice, a) if ctx.needs_input_grad[0] else None
        for_b = torch.bmm(twice.neg_(), b) if ctx.needs_input_grad[1] else None
        return for_a, for_b, None


def strong(a: Tensor, b: Tensor, *, squared: bool = False) -> tuple[Tensor, Tensor]:
    """Two batched products forward and, knowing the symmetry, one for each argument backward."""
    difference = _Difference.apply(a.flatten(2), b.flatten(2), 1 / prod(a.shape[1:])).flatten(1)
    per_sample = difference.square().sum(1) if squared else torch.linalg.vector_norm(difference, dim=1)
    return per_sample, per_sample.mean()


def _work(call: NativeCall) -> Work:
    batch, pixels, channels = (call.integers[name] for name in ("batch", "pixels", "channels"))
    backward = call.function.endswith("_backward")
    width = 2.0 if call.integers["dtype"] else 4.0
    features, matrix = batch * pixels * channels * width, 4.0 * batch * channels**2
    shape, once = f"{batch}x{channels}x{pixels} pixels", batch * pixels * channels
    if not backward:  # of each argument the half of the products on and above the diagonal
        return Work(shape, 2.0 * once * (channels + 1), 2 * features + matrix)
    gradients = sum(call.pointers[name] != 0 for name in ("da", "db"))
    return Work(shape, 2.0 * gradients * once * channels, gradients * 2 * features + matrix)


SPEC = Spec(
    operator="style_loss",
    samples=[
        _sample(2, 24, 9, 7),
        _sample(1, 1, 1, 1),
        _sample(3, 3, 5, 4, layout="contiguous"),
        _sample(2, 71, 13, 11, layout="sliced"),
        _sample(3, 40, 6, 6, layout="expanded"),
        _sample(1, 130, 33, 31),
        _sample(2, 47, 7, 19, layout="contiguous"),
        _sample(2, 24, 9, 7, squared=True),
    ],
    benchmarks=[_sample(8, 256, 16, 16), _sample(25, 64, 32, 32), _sample(16, 128, 32, 32)],
    floor={torch.float32: 5e-7, torch.bfloat16: 4e-3, torch.float16: 1e-3},
    # as written: two products forward, four in backward
    flops=lambda s: 12.0 * prod(s.shapes["a"]) * s.shapes["a"][1],
    # each argument is read twice and its gradient written; the difference is written once and read twice
    bytes=lambda s, dtype: (
        6.0 * dtype.itemsize * prod(s.shapes["a"]) + 3.0 * 4 * s.shapes["a"][0] * s.shapes["a"][1] ** 2
    ),
    strong=strong,
    work=_work,
    sweeps={"": lambda batch, channels, side: _sample(batch, channels, side, side)},
)
