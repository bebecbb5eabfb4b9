"""The instruction sets that the native operators are compiled for, and running with one of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.kernels import _native
from engine.verification.checks import limited

INSTRUCTION_SETS = ["baseline", "avx2", "avx512"]


@contextmanager
def limited_to(name: str) -> Iterator[None]:
    """Within the block native operators run with this instruction set; a test is skipped where the machine lacks it."""
    with limited(name):
        if _native.load().isa() != name:
            pytest.skip(f"this machine has no {name}")
        yield
