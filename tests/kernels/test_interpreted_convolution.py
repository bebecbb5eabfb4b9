"""The GPU kernels of resize_conv_act without a GPU, interpreted: every sample and dtype of its spec against float64."""

import pytest

from tests.support.interpreted import DTYPES, LARGE, cases, run_interpreted


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_operator_interpreted(dtype: str):
    run_interpreted(cases([LARGE], dtype))
