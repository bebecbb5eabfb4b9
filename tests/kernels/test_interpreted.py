"""The GPU kernels without a GPU: the operators' own tests in processes that interpret Triton (TRITON_INTERPRET=1).

There every CPU tensor goes through the Triton kernels, in all passes of each spec against float64. `make test-all` runs
a share of the samples in each dtype, `make interpret` all of them in every dtype.
The largest operator has a file of its own, test_interpreted_convolution.py, for another worker of pytest-xdist.
"""

import pytest

from tests.support.interpreted import DTYPES, LARGE, SMALL, cases, named, run_interpreted, share

# what `make test` has of every kernel, and all of them but the largest operator's
QUICK = {
    "few samples in float32": cases([LARGE, *SMALL], "float32", few=True),
    "contract": named(
        *("test_grad_scale_weighs", "test_second_derivatives", "test_autocast", "test_nan_is", "test_bad_arguments"),
        "test_wide_gpu_kernels none float32",
    ),
}
THOROUGH = {f"all but the largest operator, {dtype}": share(cases(SMALL, dtype), dtype, 3) for dtype in DTYPES}
THOROUGH["registration"] = named("test_opcheck")
THOROUGH["what the kernels share"] = named("test_gpu_kernels")


# the sweeps over all samples have these too
FEW = pytest.param("few samples in float32", marks=pytest.mark.covered)


@pytest.mark.parametrize("part", [FEW, "contract", *(pytest.param(part, marks=pytest.mark.slow) for part in THOROUGH)])
def test_gpu_kernels_interpreted(part: str):
    run_interpreted((QUICK | THOROUGH)[part])
