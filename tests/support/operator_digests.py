"""What native operators compute, as digests: to compare threads, teams and processes bit for bit.

`python -m tests.support.operator_digests THREADS` prints those of every sample in a process of its own, as JSON.
"""

import hashlib
import json
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

from engine.kernels import _contract, _spec

Case = tuple[_spec.Spec, _spec.Sample]


def cases() -> dict[str, Case]:
    """Every sample of every operator of Kiln's own C++, by a name of its own.

    A product that PyTorch's library makes may be rounded otherwise by another number of threads.
    """
    every = [spec for spec in _spec.specs_with_skeleton().values() if not _is_of_a_library(spec.operator)]
    return {f"{spec.operator}: {sample.name}": (spec, sample) for spec in every for sample in spec.samples}


def _is_of_a_library(operator: str) -> bool:
    return any(row.kind == "library GEMM" for row in _contract.find(operator).implementations())


def results(case: Case) -> dict[str, Tensor]:
    """Outputs and gradients of the operator on the case's tensors, in float32."""
    spec, sample = case
    made = _spec.tensors(sample, torch.float32)
    return _spec.run(_contract.find(spec.operator).function, sample, made, torch.float32)


def digest(case: Case) -> str:
    """Of the bits of all results."""
    hashed = hashlib.sha256()
    for name, value in results(case).items():
        hashed.update(f"{name} {tuple(value.shape)}".encode())
        hashed.update(value.contiguous().numpy().tobytes())
    return hashed.hexdigest()


def digests(names: Iterable[str]) -> dict[str, str]:
    """Of these cases, computed one after another."""
    known = cases()
    return {name: digest(known[name]) for name in names}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    torch.use_deterministic_algorithms(True, warn_only=True)  # memory that nobody wrote is NaN
    print(json.dumps(digests(cases())))
