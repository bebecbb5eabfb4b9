"""The GPU kernels of resize_conv_act without a GPU, interpreted: every sample of its spec against float64.

Each sample runs in float32 and in one of the half precisions, which take the same way through the kernels.
"""

import pytest

from tests.support.interpreted import DTYPES, LARGE, cases, run_interpreted


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_operator_interpreted(dtype: str):
    samples = {"float32": slice(None), "bfloat16": slice(0, None, 2), "float16": slice(1, None, 2)}[dtype]
    run_interpreted(cases([LARGE], dtype)[samples])
