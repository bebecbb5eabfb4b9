"""The memory that tests/conftest.py poisons: an element that no kernel wrote is NaN, and a comparison finds it."""

import pytest
import torch

from engine import ops
from engine.kernels import _spec


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_nobody_wrote_is_nan(dtype):
    x = torch.ones(2, 3, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)
    for made in (torch.empty(5, dtype=dtype), torch.empty_like(x), x.new_empty(7), x.new_empty_strided((2, 3), (1, 2))):
        assert made.isnan().all()
    assert (torch.empty(3, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()


def test_a_kernel_that_leaves_out_an_element_fails():
    """The dtype rule on a result whose last element is whatever torch.empty gave."""
    spec = _spec.specs()["gram"]
    sample, operator = spec.samples[0], ops.OPERATORS["gram"]
    made = _spec.tensors(sample, torch.float32)
    exact, eager = (_spec.run(operator.reference, sample, made, dtype) for dtype in (torch.float64, torch.float32))
    fused = _spec.run(operator.function, sample, made, torch.float32)
    unfinished = torch.empty_like(fused["output"])
    unfinished.view(-1)[:-1] = fused["output"].view(-1)[:-1]
    for output, passed in ((fused["output"], True), (unfinished, False)):
        errors = _spec.judge(exact, eager, fused | {"output": output}, spec.floor[torch.float32])
        assert all(error.passed for error in errors) == passed


@pytest.mark.unpoisoned("shows that the marker leaves memory as it is")
def test_memory_can_be_left_as_it_is():
    assert not torch.are_deterministic_algorithms_enabled()
