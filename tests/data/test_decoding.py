"""Which files are decoded together."""

import pytest

from engine.data.decoding.dali import runs_that_fit

LARGE = 30_000_000


@pytest.mark.parametrize(
    ("pixels", "files", "runs"),
    [
        ([], 4, []),
        ([1] * 4, 4, [range(0, 4)]),
        ([1] * 9, 4, [range(0, 4), range(4, 8), range(8, 9)]),
        ([LARGE, LARGE, 1, 1, LARGE], 4, [range(0, 1), range(1, 4), range(4, 5)]),
        ([3 * LARGE, 1, 3 * LARGE], 4, [range(0, 1), range(1, 2), range(2, 3)]),
    ],
)
def test_runs_hold_few_files_and_few_pixels(pixels: list[int], files: int, runs: list[range]) -> None:
    assert list(runs_that_fit(pixels, files)) == runs
