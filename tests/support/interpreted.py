"""Runs tests of the operators in a process that interprets Triton (TRITON_INTERPRET=1).

There every CPU tensor goes through the Triton kernels.
"""

import os
import subprocess
import sys

import pytest

from engine.kernels import _availability, _spec
from tests.support.places import ROOT

OPERATORS = "tests/kernels/test_operators.py"
LARGE = "resize_conv_act"  # its samples take longer than all others together
SMALL = [name for name in _spec.specs_with_skeleton() if name not in (LARGE, "linear")]  # linear has no Triton kernel
DTYPES = ["float32", "bfloat16", "float16"]
FULL = os.environ.get("KILN_INTERPRET") == "1"  # set by `make interpret`
KERNELS = "tests/gpu/test_gpu_kernels.py"


def small(spec: _spec.Spec, sample: _spec.Sample) -> bool:
    """Few operations on few pixels: the interpreter runs one program after another."""
    sides = [side for shape in sample.shapes.values() for side in shape[2:]]
    return spec.flops(sample) < 2e7 and max(sides, default=1) <= 25


def cases(operators: list[str], dtype: str, few: bool = False) -> list[str]:
    """The names of test_dtype_rule on samples of operators; few: every eighth of the small ones, and eight at most."""
    names = []
    for name in operators:
        spec = _spec.specs_with_skeleton()[name]
        samples = spec.samples
        if few:
            samples = [sample for sample in samples if small(spec, sample)]
            samples = samples[:: max(8, -(-len(samples) // 8))]
        names += [f"{OPERATORS}::test_dtype_rule[{name}: {sample.name}-torch.{dtype}]" for sample in samples]
    return names


def share(names: list[str], dtype: str, every: int) -> list[str]:
    """One of `every` names in float32, and half as many in each 16-bit dtype: they take the same way through a kernel.

    With KILN_INTERPRET=1 all of them.
    """
    if FULL:
        return names
    first, step = {"float32": (0, every), "bfloat16": (1, 2 * every), "float16": (every + 1, 2 * every)}[dtype]
    return names[first::step]


def named(*words: str) -> list[str]:
    """The tests of operators, and of what the Triton kernels share, whose names have all words of one of the texts."""
    return [OPERATORS, KERNELS, "-k", " or ".join(f"({' and '.join(text.split())})" for text in words)]


def run_interpreted(selection: list[str]) -> None:
    """Run tests in a process that interprets Triton; they have to pass, and at least one of them has to run."""
    if why := _availability.why_not_interpreted():
        pytest.skip(why)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *selection]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
