"""The GPU kernels without a GPU: the operators' own tests in processes that interpret Triton (TRITON_INTERPRET=1).

There every CPU tensor goes through the Triton kernels: all samples, passes and dtypes of each spec against float64.
"""

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from engine.kernels import _spec
from tests.support.places import ROOT

LARGE = "resize_conv_act"  # its samples take as long as all others together
SMALL = " or ".join(name for name in _spec.specs_with_skeleton() if name not in (LARGE, "linear"))
PARTS = {
    f"{LARGE}, {dtype}": f"test_dtype_rule and {LARGE} and {dtype}" for dtype in ("float32", "bfloat16", "float16")
}
PARTS["the other operators"] = f"test_dtype_rule and ({SMALL})"
CONTRACT = ("grad_scale_weighs", "second_derivatives", "autocast", "nan_is", "bad_arguments", "opcheck", "gpu_kernels")
PARTS["contract"] = " or ".join(f"test_{name}" for name in CONTRACT)


@pytest.fixture(scope="module")
def runs():
    """Every part's process, as many at once as there are cores."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}

    def run(selection: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/kernels/test_operators.py"]
        command += ["tests/gpu/test_gpu_kernels.py", "-k", selection]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {part: pool.submit(run, selection) for part, selection in PARTS.items()}


@pytest.mark.parametrize("part", PARTS)
def test_gpu_kernels_interpreted(part: str, runs: dict[str, Future]):
    done = runs[part].result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
