"""The suite `ops`: its baselines compute the same, and what differs has no speed. No timing is asserted."""

import dataclasses
import json

import pytest
import torch

import benchmarks.__main__ as bench
from benchmarks.suites import operators
from benchmarks.timing import measure, rows
from benchmarks.timing.measure import Timing
from engine import ops
from engine.kernels import _spec
from tests.support.benchmark_cases import conv, needs_compiler, tiny
from tests.support.tape import NoWaiting
from tests.support.tiny_run import command

STRONG = [
    pytest.param(spec, sample, id=f"{name}: {sample.name}", marks=marks)
    for name, spec in _spec.specs().items()
    if spec.strong
    for samples, marks in ((spec.samples, ()), (spec.benchmarks, pytest.mark.slow))
    for sample in samples
    if not marks or spec.flops(sample) < 1e8
]


@pytest.mark.parametrize("spec, sample", STRONG)
def test_strong_is_the_reference(spec, sample):
    """Outputs and every gradient, in float64, at the samples' odd sizes, second inputs and grad_scale."""
    inputs = _spec.tensors(sample, torch.float64)
    expected = _spec.run(ops.OPERATORS[spec.operator].reference, sample, inputs, torch.float64)
    results = _spec.run(spec.strong, sample, inputs, torch.float64)
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            results[name], value, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("competitor", ["reference", "strong"])
@pytest.mark.parametrize("spec", _spec.specs().values(), ids=_spec.specs())
def test_no_baseline_makes_the_host_wait(spec, competitor):
    """Waiting would slow a baseline on a GPU, and a CUDA graph refuses it."""
    function = spec.strong if competitor == "strong" else ops.OPERATORS[spec.operator].reference
    if function is None:
        pytest.skip("the reference is the strongest baseline")
    for sample in spec.samples:
        if all(0 not in shape for shape in sample.shapes.values()):
            call = operators.both_passes(function, _spec.tensors(sample, torch.float32), sample)
            call()
            with NoWaiting():
                call()


@pytest.mark.slow
@needs_compiler
def test_an_operator_against_every_baseline():
    timings, failed = operators.measure(conv("up"), "cpu", rounds=2)
    names = {f"{name} {layout}" for name in ("eager", "compile", "strong") for layout in operators.LAYOUTS}
    assert not failed and timings.keys() == {"fused"} | names
    assert all(len(t.samples) == 2 and min(t.samples) > 0 for t in timings.values())


@pytest.mark.parametrize("operator", list(ops.OPERATORS))
def test_every_operator_runs(operator):
    case = tiny(operator)
    timings, failed = operators.measure(case, "cpu", rounds=2, compiled=False)
    assert not failed and {"fused", "eager channels_last"} <= timings.keys()
    products = operators.flops(case, "cpu")
    assert products > 0 if case.spec.work or operator == "linear" else products is None


@pytest.mark.parametrize("operator", list(ops.OPERATORS))
def test_eager_in_bf16_beside_every_operator(operator):
    case = tiny(operator)
    timings, failed = operators.measure(case, "cpu", rounds=2, compiled=False, bf16=True)
    assert not failed and timings.keys() >= {f"bf16-eager {layout}" for layout in case.layouts}
    assert rows.row("ops", "x", timings, failed)["bf16"].keys() == {"eager"}


@pytest.mark.slow
@needs_compiler
def test_compile_in_bf16_beside_an_operator():
    timings, failed = operators.measure(conv("up"), "cpu", rounds=2, bf16=True)
    assert not failed and rows.row("ops", "x", timings, failed)["bf16"].keys() == {"eager", "compile"}


@pytest.mark.parametrize("precision", list(measure.PRECISIONS))
def test_an_operator_in_each_precision(precision):
    """The CPU has no TF32, and strong keeps its dtype there too."""
    timings, failed = operators.measure(conv("down"), "cpu", rounds=2, compiled=False, precision=precision)
    assert not failed and "strong channels_last" in timings


def test_a_wrong_operator_has_no_speed():
    case = tiny("linear")
    wrong = dataclasses.replace(case, substitute=lambda *a, **o: case.reference(*a, **o) * 1.00001)
    timings, failed = operators.measure(wrong, "cpu", rounds=2, compiled=False)
    assert not timings and any(text.startswith("output: error 1") for text in failed)
    assert "speedup" not in (row := rows.row("ops", "linear", timings, failed)) and row["failed"] == failed
    assert "DIFFERENT" in rows.cells(row)[1]


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_baseline_that_computes_something_else_has_no_speed(factor):
    case = conv("down")
    off = dataclasses.replace(case.spec, strong=lambda *a, **o: factor * case.spec.strong(*a, **o))
    timings, failed = operators.measure(dataclasses.replace(case, spec=off), "cpu", rounds=2, compiled=False)
    assert not timings and all("of strong" in text for text in failed)


def test_of_two_passes_the_calmer_counts():
    def taken(fused: float, eager: float) -> operators.Measured:
        return {"fused": Timing([fused] * 3), "eager contiguous": Timing([eager] * 3)}, []

    calm, disturbed, failed = taken(1.0, 3.0), taken(0.9, 3.2), ({}, ["output: error 1"])
    # all competitors together decide, although fused alone was faster in the disturbed pass
    assert operators.calmer([disturbed, calm]) is calm
    assert operators.calmer([calm, failed]) is failed and operators.calmer([disturbed]) is disturbed


def test_the_ops_suite_passes_twice(small, monkeypatch, tmp_path):
    monkeypatch.setattr(operators, "IN_ALL", 0.0)
    assert command(bench.main, "ops", "--filter", "linear", "--json", tmp_path / "x.json") == 0
    (row,) = json.loads((tmp_path / "x.json").read_text())["rows"]
    seconds = sum(timing["median"] for timing in row["timings"].values())
    assert len(row["passes"]) == operators.PASSES and seconds == pytest.approx(min(row["passes"]))


def test_quick_takes_one_shape_of_each_kind():
    every, quick = list(operators.cases("")), list(operators.cases("", quick=True))
    kinds, of_quick = ({(c.spec.operator, c.sample.options.get("resize")) for c in chosen} for chosen in (every, quick))
    assert len(quick) == len(kinds) and kinds == of_quick
    assert all(any(case.sample is other.sample for other in every) for case in quick)
    assert all("up" in case.sample.name for case in operators.cases(" up ")) and not list(operators.cases("conv9"))
