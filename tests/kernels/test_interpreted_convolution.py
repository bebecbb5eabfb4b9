"""The GPU kernels of resize_conv_act without a GPU, interpreted: samples of its spec against float64.

`make test-all` runs a share of them, the dtypes in turn; `make interpret` runs all in every dtype.
"""

import pytest

from engine.kernels._spec import Sample
from engine.kernels.resize_conv_act.spec import SPEC, WHERE
from tests.support.interpreted import DTYPES, FULL, LARGE, cases, run_interpreted, share


def plain(sample: Sample) -> bool:
    """Whether it is 3x3 with padding 1, with any resize."""
    return sample.shapes["weight"][-1] == 3 and not sample.options.keys() & set(WHERE[1:])


def in_turn(dtype: str) -> list[str]:
    """The cases of a dtype. The many that are not plain are four shapes of each kind, of which one at least is run."""
    first = sum(map(plain, SPEC.samples))
    assert all(map(plain, SPEC.samples[:first])), "those of other kinds come last"
    names = cases([LARGE], dtype)
    others = names[first:] if FULL else names[first + 2 * DTYPES.index(dtype) :: 7]
    return share(names[:first], dtype, 4) + others


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_operator_interpreted(dtype: str):
    run_interpreted(in_turn(dtype))
