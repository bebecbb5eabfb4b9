"""Cases of the suite `ops` and a setting of the suite `step` that are small enough for a test."""

import pytest

from benchmarks.arguments import Arguments
from benchmarks.suites.operators import Case
from engine.kernels import _spec

TINY = {"filters": 8, "batch_size": 2, "resolution": 32, "hidden": 8}  # of the refiner
needs_compiler = pytest.mark.skipif(not Arguments().can_compile, reason="torch.compile needs a C++ compiler")


def tiny(operator: str) -> Case:
    """The operator on the cheapest of its samples that has elements."""
    spec = _spec.specs()[operator]
    return Case(spec, min((s for s in spec.samples if "0x" not in s.name), key=spec.flops))


def conv(resize: str, second: int = 0) -> Case:
    """resize_conv_act with ELU from 16 to 24 channels at 8x6 pixels. second: channels of a second input, 0 for none."""
    shapes = {"x": (2, 16, 8, 6), "weight": (24, 16 + second, 3, 3), "bias": (24,)}
    scale = 2 if resize == "up" else 1
    shapes |= {"second": (2, second, 8 * scale, 6 * scale)} if second else {}
    sample = _spec.Sample("test", shapes, {"resize": resize, "activation": "elu"})
    return Case(_spec.specs()["resize_conv_act"], sample)
