"""The few samples of an operator that a GPU is tried with first, and their dtypes."""

import torch

from engine.kernels import _spec

COUNT = 3  # of each operator
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def smallest(spec: _spec.Spec, count: int = COUNT) -> list[_spec.Sample]:
    """The cheapest samples with elements, no two with the same options."""
    cheapest: dict[str, _spec.Sample] = {}
    ordered = sorted((s for s in spec.samples if all(0 not in shape for shape in s.shapes.values())), key=spec.flops)
    for sample in ordered:
        cheapest.setdefault(str(sorted(sample.options.items())), sample)
    return list(cheapest.values())[:count]
