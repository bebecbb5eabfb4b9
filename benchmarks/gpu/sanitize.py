"""`python -m benchmarks.gpu.sanitize`: runs small samples of every operator with GPU kernels, for compute-sanitizer.

The results are not checked here, but in the tests. Tuning is off, so that each kernel runs once.
"""

import os
import sys

import torch

from benchmarks.prediction import launches
from engine.kernels import _spec
from engine.kernels._contract import find

SAMPLES = 3  # of each operator
DTYPES = (torch.float32, torch.bfloat16)


def smallest(spec: _spec.Spec, count: int = SAMPLES) -> list[_spec.Sample]:
    """The cheapest samples with elements, no two with the same options."""
    cheapest: dict[str, _spec.Sample] = {}
    ordered = sorted((s for s in spec.samples if all(0 not in shape for shape in s.shapes.values())), key=spec.flops)
    for sample in ordered:
        cheapest.setdefault(str(sorted(sample.options.items())), sample)
    return list(cheapest.values())[:count]


def main() -> int:
    """Runs the samples; returns 2 without a GPU."""
    if not torch.cuda.is_available():
        print("benchmarks.gpu.sanitize: torch finds no CUDA device", file=sys.stderr)
        return 2
    for name, spec in launches.specs().items():
        for sample in smallest(spec):
            for dtype in DTYPES:
                made = _spec.tensors(sample, dtype, "cuda")
                _spec.run(find(name).function, sample, made, dtype)
                torch.cuda.synchronize()
                print(f"{name} {sample.name} {dtype}", flush=True)
    return 0


if __name__ == "__main__":
    os.environ["KILN_AUTOTUNE"] = "0"
    sys.exit(main())
