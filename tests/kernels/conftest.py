"""What the operators' tests share."""

import pytest

from tests.support.instruction_sets import limited_to


@pytest.fixture
def instruction_set(request):
    """Native operators run with the instruction set that is the test's parameter."""
    with limited_to(request.param):
        yield request.param
