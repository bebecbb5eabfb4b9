"""The benchmark's test of itself judges rightly, and plants what it says. No timing is asserted."""

import copy
import subprocess
import sys

import pytest
import torch

import benchmarks.__main__ as bench
from benchmarks import selftest
from benchmarks.arguments import Arguments
from benchmarks.reports import saved
from benchmarks.suites import operators
from benchmarks.timing import rows
from benchmarks.timing.measure import Timing
from engine import ops
from engine.kernels import _spec
from engine.kernels._observers import observers
from tests.support.places import ROOT
from tests.support.tiny_run import command

NAMES = [f"{name} channels_last" for name in selftest.ROWS]


def result(fused: float = 1.0, only: tuple[str, ...] = selftest.ROWS) -> dict:
    """Rows as the command saves them: fused takes a second with some noise, times `fused` in the rows of `only`."""
    found = []
    for name in NAMES:
        factor = fused if name.startswith(only) else 1.0
        noise = [1 + 0.002 * (i % 7) for i in range(selftest.ROUNDS)]
        taken = {"fused": Timing([factor * x for x in noise]), "eager contiguous": Timing([2 * x for x in noise])}
        found.append(rows.row("ops", name, taken, []))
    return saved.newest({"schema": saved.SCHEMA, "rows": found, "machine": {}, "threads": 2}, "x")


def wrong(**plant: list[str]) -> dict:
    made = result()
    for row in made["rows"]:
        if row["name"].startswith(selftest.WRONG):
            row.clear()
            row.update({"suite": "ops", "name": "style_loss 1x1x1x1"} | plant)
    return made


def results(**other: dict) -> dict[str, dict]:
    slower = result(1 + selftest.SLOWER, selftest.PLANTED)
    return {"first": result(), "second": result(), "slower": slower, "wrong": wrong(failed=["off"])} | other


STATUS = {"first": 0, "second": 0, "slower": 0, "wrong": 1}


def test_a_benchmark_that_finds_everything():
    assert all(finding.held for finding in selftest.judge(results(), STATUS))


@pytest.mark.parametrize(
    "number, other, status",
    [
        (0, {"second": result(1.08, selftest.ROWS[2:3])}, {}),
        (1, {"slower": result()}, {}),
        (1, {"slower": result(1.1, selftest.PLANTED[:1])}, {}),
        (2, {"slower": result(1.1, selftest.ROWS)}, {}),
        (3, {"wrong": result()}, {}),
        (3, {}, {"wrong": 0}),
    ],
)
def test_each_thing_that_is_not_found_is_said(number, other, status):
    findings = selftest.judge(results(**copy.deepcopy(other)), STATUS | status)
    assert not findings[number].held and all(f.held for i, f in enumerate(findings) if i != number)


def test_the_planted_error_fails_its_row_alone(monkeypatch, tmp_path):
    spec = _spec.specs()["style_loss"]
    sample = min((s for s in spec.samples if "0x" not in s.name), key=spec.flops)
    monkeypatch.setattr(operators, "cases", lambda only, quick=False: [(spec, sample)])
    monkeypatch.setattr(Arguments, "can_compile", False)
    monkeypatch.setattr(bench, "measure_limits", lambda device, precision: bench.Limits(1e11, 1e10, 2e10))
    honest = ops.OPERATORS["style_loss"]
    with selftest.planted("style_loss"):
        assert command(bench.main, "ops", "--json", tmp_path / "wrong.json") == 1
    assert ops.OPERATORS["style_loss"] is honest and not observers
    (row,) = saved.read(tmp_path / "wrong.json")["rows"]
    assert "failed" in row and "speedup" not in row


def test_the_planted_slowdown_is_of_the_rows_it_names(monkeypatch):
    spec = _spec.specs()["resize_conv_act"]
    first, other = (next(s for s in spec.benchmarks if NAMES[i].endswith(s.name)) for i in (0, 1))
    made = _spec.tensors(first, torch.float32)
    honest, now, waited = operators.both_passes, [0.0], []
    monkeypatch.setattr(selftest.time, "perf_counter", lambda: waited.append(1) or now.append(now[-1] + 1) or now[-1])
    with selftest.slowed({NAMES[0]: 5.0}):
        plain = operators.both_passes(ops.OPERATORS["resize_conv_act"].reference, made, first)
        slow = operators.both_passes(ops.OPERATORS["resize_conv_act"].function, made, first)
        unnamed = operators.both_passes(ops.OPERATORS["resize_conv_act"].function, made, other)
        for call, waits in ((plain, 0), (unnamed, 0), (slow, 6)):
            waited.clear()
            assert len(call()) == 3 and len(waited) == waits
    assert operators.both_passes is honest


def test_pytest_benchmarks():
    """The same cases as the command's, a test for each competitor."""
    words = ["benchmarks", "--quick", "--benchmark-disable", "-p", "no:cacheprovider", "-k"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "l1_autoencoder_loss and not compile"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    count = len(operators.names(*next(operators.cases("l1_autoencoder_loss", quick=True)), compiled=False))
    assert done.returncode == 0 and f"{count} passed" in done.stdout, done.stdout
