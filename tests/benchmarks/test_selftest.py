"""The self-test judges rightly, and plants what it says. No timing is asserted."""

import copy
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import run, selftest
from benchmarks.arguments import Arguments
from benchmarks.reports import saved
from benchmarks.suites import operators
from benchmarks.suites.operators import Case
from benchmarks.timing import rows
from benchmarks.timing.measure import Limits, Timing
from engine import ops
from engine.kernels import _spec
from tests.support.places import ROOT

NAMES = [f"{name} channels_last" for name in selftest.ROWS]


def result(fused: float = 1.0, only: tuple[str, ...] = selftest.ROWS) -> dict:
    """A result as the command saves it: fused takes a second with some noise, times `fused` in the rows of `only`."""
    measured = []
    for name in NAMES:
        factor = fused if name.startswith(only) else 1.0
        noise = [1 + 0.002 * (i % 7) for i in range(selftest.ROUNDS)]
        timings = {"fused": Timing([factor * x for x in noise]), "eager contiguous": Timing([2 * x for x in noise])}
        measured.append(rows.row("ops", name, timings, []))
    return saved.newest({"schema": saved.SCHEMA, "rows": measured, "machine": {}, "threads": 2}, "x")


def wrong(**plant: list[str]) -> dict:
    with_wrong = result()
    for row in with_wrong["rows"]:
        if row["name"].startswith(selftest.WRONG):
            row.clear()
            row.update({"suite": "ops", "name": "style_loss 1x1x1x1"} | plant)
    return with_wrong


def without(name: str) -> dict:
    slower = result(1 + selftest.SLOWER, selftest.SLOWED)
    return slower | {"rows": [row for row in slower["rows"] if not row["name"].startswith(name)]}


def results(**other: dict) -> dict[str, dict]:
    slower = result(1 + selftest.SLOWER, selftest.SLOWED)
    return {"first": result(), "second": result(), "slower": slower, "wrong": wrong(failed=["off"])} | other


STATUS = {"first": 0, "second": 0, "slower": 0, "wrong": 1}


def test_every_finding_holds():
    assert all(finding.held for finding in selftest.judge(results(), STATUS))


@pytest.mark.parametrize(
    "number, other, status",
    [
        (0, {"second": result(1.08, selftest.ROWS[2:3])}, {}),
        (1, {"slower": result()}, {}),
        (1, {"slower": result(1.1, selftest.SLOWED[:1])}, {}),
        (1, {"slower": without(selftest.SLOWED[0])}, {}),
        (2, {"slower": result(1.1, selftest.ROWS)}, {}),
        (3, {"wrong": result()}, {}),
        (3, {}, {"wrong": 0}),
    ],
)
def test_each_finding_that_does_not_hold_is_judged_so(number, other, status):
    findings = selftest.judge(results(**copy.deepcopy(other)), STATUS | status)
    assert not findings[number].held and all(f.held for i, f in enumerate(findings) if i != number)


def test_the_planted_error_fails_its_row_alone(monkeypatch, tmp_path):
    """Beside the same case as it is; the operator itself is left alone."""
    spec = _spec.specs()[selftest.WRONG]
    small, other = sorted((s for s in spec.samples if "0x" not in s.name), key=spec.flops)[:2]
    cases = [selftest.with_error(Case(spec, small)), Case(spec, other)]
    monkeypatch.setattr(run, "measure_limits", lambda device, precision: Limits(1e11, 1e10, 2e10))
    monkeypatch.setattr(operators, "IN_ALL", 0.0)
    arguments = Arguments(suite="ops", json=tmp_path / "wrong.json")
    assert run.run(arguments, [selftest.suite_of(cases)]) == 1
    wrong, right = saved.read(tmp_path / "wrong.json")["rows"]
    assert "failed" in wrong and "speedup" not in wrong and right["speedup"].keys() == {"eager", "strong"}
    assert cases[1].fused is ops.OPERATORS[selftest.WRONG].function
    inputs = cases[0].tensors("fp32", "cpu")
    exact, off = (case.fused(**inputs, **small.options) for case in reversed(cases))
    for right, wrong in zip(exact, off, strict=True):
        torch.testing.assert_close(wrong, right * (1 + selftest.ERROR), rtol=1e-6, atol=0)


def test_the_planted_slowdown_is_of_the_rows_it_names(monkeypatch):
    cases = {case.label: case for case in selftest.planted("slower", dict.fromkeys(NAMES, 50.0))}
    case = cases[NAMES[0]]
    inputs = case.tensors("fp32", "cpu")
    now, asked = [0.0], []
    monkeypatch.setattr(selftest.time, "perf_counter", lambda: asked.append(1) or now.append(now[-1] + 1) or now[-1])
    plain = operators.both_passes(case.reference, inputs, case.sample)
    slow = operators.both_passes(case.fused, inputs, case.sample)
    for call, times in ((plain, 0), (slow, 6)):  # the clock goes on by a second when asked, and 5 seconds are planted
        asked.clear()
        assert len(call()) == 3 and len(asked) == times
    assert {label for label, case in cases.items() if case.substitute} == set(NAMES[:2])


@pytest.mark.parametrize("plant, count", [("first", 0), ("second", 0), ("wrong", 1)])
def test_what_is_planted_where(plant, count):
    cases = selftest.planted(plant, {})
    assert len(cases) == len(selftest.ROWS)
    assert [case.spec.operator for case in cases if case.substitute] == [selftest.WRONG] * count


def test_pytest_benchmarks(tmp_path):
    """`pytest benchmarks` has the cases of the command, and a test for each competitor, here without a compiler."""
    words = ["benchmarks", "--quick", "--benchmark-disable", "-p", "no:cacheprovider", "-k"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "l1_autoencoder_loss"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PATH": str(tmp_path)},
    )  # fmt: skip
    count = len(operators.names(next(operators.cases("l1_autoencoder_loss", quick=True)), compiled=False))
    assert done.returncode == 0 and f"{count} passed" in done.stdout, done.stdout
