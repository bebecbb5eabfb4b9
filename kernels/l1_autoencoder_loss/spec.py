"""Samples, tolerances and costs of l1_autoencoder_loss."""

from math import prod

import torch

from .._spec import Sample, Spec


def _sample(*shape: int, layout: str = "channels_last", integers: bool = False) -> Sample:
    name = f"{'x'.join(map(str, shape))} {layout}" + " integers" * integers
    return Sample(name, {"target": shape, "reconstruction": shape}, {}, layout, integers)


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
    benchmarks=[_sample(25, 3, 64, 64), _sample(50, 3, 64, 64), _sample(16, 3, 256, 256)],
    floor={torch.float32: 2e-7, torch.bfloat16: 1e-4, torch.float16: 2e-5},
    flops=lambda s: 5.0 * prod(s.shapes["target"]),
    # two reads and the sign's write; backward scales it for each of the two arguments
    bytes=lambda s, dtype: (2 + 1 + 2 + 2) * float(dtype.itemsize) * prod(s.shapes["target"]),
)
