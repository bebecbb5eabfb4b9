"""A program for test_compiled, to be run without Triton's interpreter: prints what one of its functions returns.

`python -m tests.support.compiled_kernels signature|spilling|subset` prints JSON.
"""

import dataclasses
import json
import sys

import torch
import triton
import triton.language as tl

from benchmarks.prediction import compiled, compiled_report
from engine.kernels._gpu.launch import Cost, noted
from engine.kernels._gpu.launch import launch as start


@triton.jit
def copy_kernel(source, target, one, sixteen, seventeen, large, scale, flag, nothing, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    value = tl.load(source + at) * scale + one + sixteen + seventeen
    if nothing is None and flag:
        value += large
    tl.store(target + at, value)


@triton.jit
def crowded_kernel(source, target, SIZE: tl.constexpr):
    """Every value is needed again after the sum of all, and one warp has no registers for so many."""
    at = tl.arange(0, SIZE)
    value = tl.load(source + at)
    tl.store(target + at, value * tl.sum(value))


@triton.jit
def plain_kernel(source, target, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tile = tl.load(source + at[:, None] * SIZE + at[None, :])
    tl.store(target + at[:, None] * SIZE + at[None, :], tl.dot(tile, tile, input_precision="ieee"))


def signature() -> dict:
    """A launch's signature and attributes: by benchmarks.prediction, and by Triton's launcher from real tensors."""
    storage = torch.zeros(65)
    values = (storage[1:], storage[:64], 1, 16, 17, 2**31, 0.5, True, None, 64)
    with noted(run=False) as recorded:
        start(copy_kernel, (1,), **dict(zip(copy_kernel.arg_names, values, strict=True)), cost=lambda: Cost(0, 0))
    with compiled.target(90):
        mine = compiled.variant(recorded[0])
        other = compiled.variant(dataclasses.replace(recorded[0], num_warps=8))
        theirs = copy_kernel.warmup(*values, grid=(1,), num_warps=4, num_stages=2)
        again = compiled.warm(copy_kernel, mine)
    return {
        "signature": mine.signature,
        "same": again.hash == theirs.hash,
        "attributes": {str(k): v for k, v in again.src.attrs.items()},
        "keys differ": mine.key != other.key,
    }


def spilling() -> dict:
    """Problems of a kernel that spills, and of a kernel with plain float32 products that is called a matrix kernel."""
    tensor = torch.zeros(16384)
    results = {}
    for kernel, size, matrix in ((crowded_kernel, 16384, False), (plain_kernel, 16, True)):
        with noted(run=False) as launches:
            cost = Cost(0, 0, matrix=matrix)
            start(kernel, (1,), source=tensor, target=tensor, SIZE=size, num_warps=1, cost=lambda cost=cost: cost)
        with compiled.target(90):
            wanted = compiled.variant(launches[0])
        made = compiled.compile_one(wanted, 90)
        problems = compiled.problems(wanted, 90, made)
        results[wanted.name] = {"problems": problems, "stack": made.stack, "error": made.error}
    return results


def subset() -> list[dict]:
    """The shipped configurations that every complete test run compiles."""
    return compiled_report.subset()


if __name__ == "__main__":
    print(json.dumps({"signature": signature, "spilling": spilling, "subset": subset}[sys.argv[1]]()))
