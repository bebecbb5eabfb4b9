"""`python -m benchmarks.gpu.one_operator NAME ROWS`: one operator on the GPU against float64, forward and backward.

Its smallest samples and those of `ops --quick`, in each dtype, on memory that is NaN where nobody wrote. A row for each
is appended to the file ROWS as it comes. The exit status is 1 if a result is wrong, and 3 after an error that CUDA does
not survive.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu.samples import DTYPES, smallest
from benchmarks.suites import operators
from engine.host.tf32 import allow_tf32
from engine.kernels import _spec

LOST = ("CUDA error", "Triton Error")  # after these no later result of the process means anything


def check(name: str, device: str, tell: Callable[[dict], None]) -> int:
    """Checks every sample in every dtype, tells a row for each, and returns the exit status."""
    spec = _spec.specs()[name]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    allow_tf32(False)
    quick = [case.sample for case in operators.cases(name, quick=True) if case.spec is spec]
    failed = 0
    for sample in [*smallest(spec), *quick]:
        for dtype in (dtype for dtype in DTYPES if dtype in spec.floor):
            row = {"operator": name, "sample": sample.name, "dtype": str(dtype).removeprefix("torch.")}
            begun = time.perf_counter()
            try:
                errors = _spec.compare(spec, sample, dtype, device)
                if device == "cuda":
                    torch.cuda.synchronize()
            except Exception as error:
                failed += 1
                print(f"{row}\n{traceback.format_exc()}", flush=True)
                tell(row | {"passed": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
                if any(words in str(error) for words in LOST):
                    return 3
                continue
            worst = max(errors, key=lambda e: e.fused / e.allowed if e.allowed else e.fused)
            wrong = [e for e in errors if not e.passed]
            failed += bool(wrong)
            for e in wrong:
                print(f"{row}: {e.result}: {e.fused:.2e}, allowed {e.allowed:.2e} (eager {e.eager:.2e})", flush=True)
            figures = {"worst": worst.result, "error": worst.fused, "allowed": worst.allowed, "eager": worst.eager}
            tell(row | {"passed": not wrong, "seconds": round(time.perf_counter() - begun, 2), **figures})
    return 1 if failed else 0


def main(argv: list[str]) -> int:
    """Checks one operator on the GPU; returns the exit status."""
    name, rows = argv
    with Path(rows).open("a") as file:

        def tell(row: dict) -> None:
            file.write(json.dumps({"part": "smoke", **row}) + "\n")
            file.flush()

        return check(name, "cuda", tell)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
