"""Training on many GPUs, on paper: the formulas by hand, their limits, and the tables of docs/distributed.md."""

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.prediction import ranks
from benchmarks.prediction.ranks import BETWEEN, GPUS, INSIDE, Arguments, Step, exchange, refiner_sizes, ring, tree
from tests.support.places import ROOT


def test_one_machine_by_hand() -> None:
    assert ring(36e6, 8) == pytest.approx((10 + 14 * 1.9) * 1e-6 + 1.75 * 36e6 / 360e9)
    assert tree(36e6, 8) == pytest.approx((4.4 + 14 * 1.2) * 1e-6 + 2 * 36e6 / 360e9)


def test_four_machines_by_hand() -> None:
    assert ring(32e6, 32) == pytest.approx((10 + 56 * 1.9 + 6 * 4.0) * 1e-6 + 2 * 31 / 32 * 32e6 / 320e9)
    assert tree(32e6, 32) == pytest.approx((4.4 + 14 * 1.2 + 4 * 8.5) * 1e-6 + 2 * 32e6 / 320e9)


def test_limits() -> None:
    assert exchange(1e9, 1) == 0
    for gpus in GPUS:
        assert exchange(12, gpus) == pytest.approx(tree(12, gpus))  # of few bytes, the tree waits less
        bandwidth = INSIDE if gpus == 8 else BETWEEN
        assert exchange(1e12, gpus) == pytest.approx(2 * (gpus - 1) / gpus * 1e12 / bandwidth, rel=0.01)


def test_a_step_is_half_work_at_its_half() -> None:
    step = Step(1e-4, 5e-5, (1_000_000, 12))
    assert step.seconds(1, 10) == pytest.approx(6e-4) and step.overhead(1) == 0
    for gpus in GPUS:
        half = step.half(gpus)
        assert step.seconds(gpus, half) == pytest.approx(2 * half * step.image)


def test_what_the_refiner_exchanges() -> None:
    assert refiner_sizes() == (4 * 2_942_019, 4 * 300_675, 12)


def test_the_tables_are_those_of_the_page(capsys) -> None:
    assert benchmarks.main(["ranks"]) == 0
    printed = capsys.readouterr().out
    page = (ROOT / "docs" / "distributed.md").read_text()
    for table in ranks.tables(Arguments()):
        rows = table.markdown().split("\n\n", 1)[1]
        assert len(table.rows) == 1 + len(GPUS) and rows in printed and rows in page


def test_a_measured_step_takes_the_place_of_the_predicted(capsys) -> None:
    assert benchmarks.main(["ranks", "--step-ms", "3.4", "--fixed", "0"]) == 0
    assert "| 1 | 0 | 3.40 | 7,353 | 100% | 0.0 |" in capsys.readouterr().out
