"""Samples, tolerances and costs of l1_autoencoder_loss."""

from math import prod

import torch
from torch import Tensor

from .._observers import NativeCall
from .._spec import Sample, Spec, Work


def _sample(*shape: int, layout: str = "channels_last", integers: bool = False) -> Sample:
    name = f"{'x'.join(map(str, shape))} {layout}" + " integers" * integers
    return Sample(name, {"target": shape, "reconstruction": shape}, {}, layout, integers)


def strong(target: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    """The 1-norm of each sample: no tensor of absolute values, and no copy of channels_last samples."""
    axes = tuple(range(1, target.dim()))
    per_sample = torch.linalg.vector_norm(target - reconstruction, 1, axes) / target[0].numel()
    return per_sample, per_sample.mean()


def _work(call: NativeCall) -> Work:
    batch, size = call.integers["batch"], call.integers["size"]
    elements, width = batch * size, 2.0 if call.integers["dtype"] else 4.0
    signs = elements / 4  # two bits each
    if call.function.endswith("_forward"):
        return Work(f"{batch}x{size}", 3.0 * elements, 2 * width * elements + signs)
    gradients = sum(call.pointers[name] != 0 for name in ("dtarget", "dreconstruction"))
    return Work(f"{batch}x{size}", float(gradients * elements), signs + gradients * width * elements)


SPEC = Spec(
    operator="l1_autoencoder_loss",
    samples=[
        _sample(4, 3, 16, 16),
        _sample(1, 1, 1, 1),
        _sample(3, 3, 67, 71),
        _sample(5, 7),
        _sample(2, 3, 12, 9, layout="contiguous"),
        _sample(2, 3, 12, 9, layout="sliced"),
        _sample(3, 3, 8, 8, layout="expanded"),
        _sample(4, 3, 8, 8, integers=True),  # many equal elements: the gradient there is zero
    ],
    benchmarks=[_sample(16, 3, 32, 32), _sample(25, 3, 64, 64), _sample(50, 3, 64, 64), _sample(50, 3, 128, 128)],
    floor={torch.float32: 2e-7, torch.bfloat16: 1e-4, torch.float16: 2e-5},
    flops=lambda s: 5.0 * prod(s.shapes["target"]),
    # two reads forward, two writes backward, and a quarter of a byte of sign written and read
    bytes=lambda s, dtype: (4.0 * dtype.itemsize + 0.5) * prod(s.shapes["target"]),
    strong=strong,
    work=_work,
    sweeps={"": lambda batch, channels, side: _sample(batch, channels, side, side)},
)
