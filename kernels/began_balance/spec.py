"""Samples, tolerances and costs of began_balance."""

import torch

from .._observers import NativeCall
from .._spec import Sample, Spec, Work


def _sample(n: int, layout: str = "contiguous", **options: float) -> Sample:
    options = {"gamma": 0.7, "lambda_k": 0.001, "lambda_r": 0.1} | options
    named = [f"{name} {value:g}" for name, value in options.items()]
    return Sample(
        " ".join([f"2x{n}", *(["expanded"] if layout == "expanded" else []), *named]),
        {"per_sample": (2 * n,), "content": (), "k": ()},
        options,
        layout,
        # real losses lie in these ranges, and k between its bounds
        uniform={"per_sample": (0.05, 0.8), "content": (0.05, 0.8), "k": (0.1, 0.4)},
        fixed=("per_sample", "content", "k"),
    )


def _flops(n: int) -> float:
    return 2.0 * n + 15.0


def _work(call: NativeCall) -> Work:
    n = call.integers["n"]
    return Work(f"2x{n}", _flops(n), 8.0 * n + 32)


def _n(sample: Sample) -> int:
    return sample.shapes["per_sample"][0] // 2


SPEC = Spec(
    operator="began_balance",
    samples=[
        _sample(16),
        _sample(1),
        _sample(5, gamma=1.0, lambda_k=0.5),
        _sample(128, lambda_r=1.0),
        _sample(129, lambda_k=0.0),
        _sample(1000, gamma=0.3, lambda_k=0.1),
        _sample(7, layout="expanded"),
        _sample(6, gamma=1000.0, lambda_k=1000.0),  # k at its upper bound
        _sample(6, gamma=0.0, lambda_k=1000.0, lambda_r=0.0),  # k at its lower bound
    ],
    benchmarks=[_sample(16), _sample(50)],
    # everything is computed in float32 or better from the same numbers; a difference of losses loses a digit
    floor={torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6},
    flops=lambda s: _flops(_n(s)),
    # the losses, content and k read, six numbers written
    bytes=lambda s, dtype: dtype.itemsize * (2.0 * _n(s) + 2) + 24,
    work=_work,
)
