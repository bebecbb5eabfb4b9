"""The GPU kernels without a GPU: the operators' own tests in processes that interpret Triton (TRITON_INTERPRET=1).

There every CPU tensor goes through the Triton kernels: all samples, passes and dtypes of each spec against float64.
"""

import os
import subprocess
import sys

import pytest

from engine.kernels import _spec
from tests.support.places import ROOT

OPERATORS = "tests/kernels/test_operators.py"
LARGE = "resize_conv_act"  # its samples take longer than all others together
SMALL = [name for name in _spec.specs_with_skeleton() if name not in (LARGE, "linear")]  # linear has no Triton kernel
DTYPES = ["float32", "bfloat16", "float16"]
KERNELS = "tests/gpu/test_gpu_kernels.py"


def small(spec: _spec.Spec, sample: _spec.Sample) -> bool:
    """Few operations on few pixels: the interpreter runs one program after another."""
    sides = [side for shape in sample.shapes.values() for side in shape[2:]]
    return spec.flops(sample) < 2e7 and max(sides, default=1) <= 25


def cases(operators: list[str], dtype: str, few: bool = False) -> list[str]:
    """The names of test_dtype_rule on samples of operators; few: every eighth of the small ones."""
    found = []
    for name in operators:
        spec = _spec.specs_with_skeleton()[name]
        samples = [sample for sample in spec.samples if small(spec, sample)][::8] if few else spec.samples
        found += [f"{OPERATORS}::test_dtype_rule[{name}: {sample.name}-torch.{dtype}]" for sample in samples]
    return found


def named(*words: str) -> list[str]:
    """The tests of operators, and of what the Triton kernels share, whose names have all words of one of the texts."""
    return [OPERATORS, KERNELS, "-k", " or ".join(f"({' and '.join(text.split())})" for text in words)]


# what `make test` has of every kernel, and all of it
QUICK = {
    "few samples in float32": cases([LARGE, *SMALL], "float32", few=True),
    "contract": named(
        *("test_grad_scale_weighs", "test_second_derivatives", "test_autocast", "test_nan_is", "test_bad_arguments"),
        "test_wide_gpu_kernels none float32",
    ),
}
THOROUGH = {
    f"{part}, {dtype}": cases(operators, dtype)
    for dtype in DTYPES
    for part, operators in ((LARGE, [LARGE]), ("the other operators", SMALL))
}
THOROUGH["registration"] = named("test_opcheck")
THOROUGH["what the kernels share"] = named("test_gpu_kernels")


@pytest.mark.parametrize("part", [*QUICK, *(pytest.param(part, marks=pytest.mark.slow) for part in THOROUGH)])
def test_gpu_kernels_interpreted(part: str):
    selection = (QUICK | THOROUGH)[part]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *selection]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
