"""The suite `latency`: its forms of a model agree, a form that differs has no time, and its rows are saved."""

import json

import pytest

import benchmarks.__main__ as bench
from benchmarks.reports import saved
from benchmarks.suites import latency
from engine.networks.refiner import RefinerGenerator
from engine.systems.refiner import RefinerConfig
from tests.support.tiny_run import command

TINY = RefinerConfig(resolution=32, filters=8, hidden=8, inject=(8, 16), device="cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """No more rounds than the test asks for."""
    monkeypatch.setattr(latency, "IN_ALL", 0.0)


def test_forms_agree():
    timings, failed = latency.measure(TINY, "cpu", 10, lambda _: None, False)
    assert not failed and set(timings) == {"fused", "eager contiguous", "eager channels_last"}
    assert all(len(timing.samples) == 10 for timing in timings.values())


def test_a_form_that_differs_is_not_timed(monkeypatch):
    honest = RefinerGenerator.forward

    def wrong(self, *inputs):
        return honest(self, *inputs) * (1.01 if self.first.fused else 1)

    monkeypatch.setattr(RefinerGenerator, "forward", wrong)
    timings, failed = latency.measure(TINY, "cpu", 10, lambda _: None, False)
    assert not timings and len(failed) == 1 and failed[0].startswith("fused differs by ")


def test_the_suite_saves_rows(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(latency, "cases", lambda only, quick: {"refiner tiny": TINY})
    assert command(bench.main, "latency", "--quick", "--json", tmp_path / "a.json") == 0
    assert "refiner tiny" in capsys.readouterr().out
    (row,) = saved.read(tmp_path / "a.json")["rows"]
    assert row["suite"] == "latency" and set(row["speedup"]) == {"eager"}
    assert json.loads((tmp_path / "a.json").read_text())["rows"][0]["name"] == "refiner tiny"


@pytest.mark.parametrize("quick, count", [(True, 1), (False, 2)])
def test_cases(quick, count):
    assert len(latency.cases("", quick)) == count and not latency.cases("nothing", quick)
    assert all(c.resolution == 64 for c in latency.cases("", quick).values())
