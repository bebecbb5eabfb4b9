"""`python -m benchmarks.gpu.sanitize [NAME]`: runs small samples of every operator, or of one, for compute-sanitizer.

The results are not checked here, but in the tests. Tuning is off, so that each kernel runs once.
"""

import os
import sys

import torch

from benchmarks.gpu.samples import smallest
from benchmarks.prediction import launches
from engine.kernels import _spec
from engine.kernels._contract import find

DTYPES = (torch.float32, torch.bfloat16)


def main(argv: list[str]) -> int:
    """Runs the samples of the operators named, or of all; returns 2 without a GPU."""
    if not torch.cuda.is_available():
        print("benchmarks.gpu.sanitize: torch finds no CUDA device", file=sys.stderr)
        return 2
    for name, spec in launches.specs().items():
        if argv and name not in argv:
            continue
        for sample in smallest(spec):
            for dtype in DTYPES:
                made = _spec.tensors(sample, dtype, "cuda")
                _spec.run(find(name).function, sample, made, dtype)
                torch.cuda.synchronize()
                print(f"{name} {sample.name} {dtype}", flush=True)
    return 0


if __name__ == "__main__":
    os.environ["KILN_AUTOTUNE"] = "0"
    sys.exit(main(sys.argv[1:]))
