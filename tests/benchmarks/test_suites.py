"""The benchmark: its baselines compute the same, its figures count what they say. No timing is asserted."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import benchmarks.__main__ as bench
from benchmarks.arguments import Arguments
from benchmarks.reports import saved
from benchmarks.suites import fuse, fuse_models, loading, operators, processes, profile, step, sweeps, threads
from benchmarks.suites.strong import StrongConv, StrongRefiner
from benchmarks.timing import measure, native_calls, rows
from benchmarks.timing.measure import Limits, Timing, interleaved
from benchmarks.timing.table import Table
from engine import ops
from engine.kernels import _native, _spec
from engine.systems.refiner import RefinerSystem
from tests.support.places import ROOT
from tests.support.tiny_run import command

TINY = {"filters": 8, "batch_size": 2, "resolution": 32, "hidden": 8}
STRONG = [
    pytest.param(spec, sample, id=f"{name}: {sample.name}", marks=marks)
    for name, spec in _spec.specs().items()
    if spec.strong
    for samples, marks in ((spec.samples, ()), (spec.benchmarks, pytest.mark.slow))
    for sample in samples
    if not marks or spec.flops(sample) < 1e8
]
needs_compiler = pytest.mark.skipif(not Arguments().can_compile, reason="torch.compile needs a C++ compiler")


def tiny(operator: str) -> tuple[_spec.Spec, _spec.Sample]:
    spec = _spec.specs()[operator]
    return spec, min((s for s in spec.samples if "0x" not in s.name), key=spec.flops)


def conv(resize: str, second: int = 0) -> tuple[_spec.Spec, _spec.Sample]:
    shapes = {"x": (2, 16, 8, 6), "weight": (24, 16 + second, 3, 3), "bias": (24,)}
    scale = 2 if resize == "up" else 1
    shapes |= {"second": (2, second, 8 * scale, 6 * scale)} if second else {}
    return _spec.specs()["resize_conv_act"], _spec.Sample("test", shapes, {"resize": resize, "activation": "elu"})


# baselines


@pytest.mark.parametrize("spec, sample", STRONG)
def test_strong_is_the_reference(spec, sample):
    """Outputs and every gradient, in float64: odd sizes, second inputs and grad_scale as the samples have them."""
    made = _spec.tensors(sample, torch.float64)
    expected = _spec.run(ops.OPERATORS[spec.operator].reference, sample, made, torch.float64)
    found = _spec.run(spec.strong, sample, made, torch.float64)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: name + text)


def test_the_shared_step_is_the_textbook_step():
    """Losses and gradients of the strong step in float64, at a k that counts."""
    eager, batch = step.build("eager channels_last", TINY, "cpu")
    strong = StrongRefiner(eager.config, "cpu")
    assert all(type(m) is StrongConv for m in strong.generator.modules() if hasattr(m, "resize"))
    for system in (eager, strong):
        for network in {**system.networks(), **system.averaged()}.values():
            network.double()
        system.load_own_state({"k": torch.tensor(0.3)})
    batch = dataclasses.replace(batch, images=batch.images.double())
    expected, found = eager.step(batch), strong.step(batch)
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-6, atol=1e-6)  # gamma and the lambdas are float32
    for name, network in eager.networks().items():
        for (key, a), b in zip(network.named_parameters(), strong.networks()[name].parameters(), strict=True):
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12, msg=lambda text, key=key: key + text)


@needs_compiler
def test_an_operator_against_every_baseline():
    spec, sample = conv("up")
    timings, failed = operators.measure(spec, sample, "cpu", rounds=2)
    names = {f"{name} {layout}" for name in ("eager", "compile", "strong") for layout in operators.LAYOUTS}
    assert not failed and timings.keys() == {"fused"} | names
    assert all(len(t.samples) == 2 and min(t.samples) > 0 for t in timings.values())


@needs_compiler
@pytest.mark.slow
def test_a_step_against_every_competitor():
    timings, failed = step.measure(TINY, "cpu", 2, lambda _: None)
    assert not failed and tuple(timings) == step.COMPETITORS


@pytest.mark.parametrize("operator", list(ops.OPERATORS))
def test_every_operator_runs(operator):
    spec, sample = tiny(operator)
    timings, failed = operators.measure(spec, sample, "cpu", rounds=2, compiled=False)
    assert not failed and {"fused", "eager channels_last"} <= timings.keys()
    products = operators.flops(spec, sample, "cpu")
    assert products > 0 if spec.work or operator == "linear" else products is None


# equivalence comes first


def test_a_wrong_operator_has_no_speed(monkeypatch):
    spec, sample = tiny("linear")
    operator = ops.OPERATORS["linear"]
    wrong = dataclasses.replace(operator, function=lambda *a, **o: operator.reference(*a, **o) * 1.00001)
    monkeypatch.setitem(ops.OPERATORS, "linear", wrong)
    timings, failed = operators.measure(spec, sample, "cpu", rounds=2, compiled=False)
    assert not timings and any(text.startswith("output: error 1") for text in failed)
    assert "speedup" not in (row := rows.row("ops", "linear", timings, failed)) and row["failed"] == failed
    assert "DIFFERENT" in rows.cells(row)[1]


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_baseline_that_computes_something_else_is_none(factor):
    spec, sample = conv("down")
    spec = dataclasses.replace(spec, strong=lambda *a, **o: factor * _spec.specs()[spec.operator].strong(*a, **o))
    timings, failed = operators.measure(spec, sample, "cpu", rounds=2, compiled=False)
    assert not timings and all("of strong" in text for text in failed)


@pytest.mark.parametrize("who", ["fused", "strong"])
def test_a_step_that_differs_has_no_speed(monkeypatch, who):
    honest = RefinerSystem.step

    def off(self, batch):
        losses = honest(self, batch)
        wrong = self.config.fused if who == "fused" else isinstance(self, StrongRefiner)
        return {**losses, "l_fake": losses["l_fake"] * 1.001} if wrong else losses

    monkeypatch.setattr(RefinerSystem, "step", off)
    timings, failed = step.measure(TINY, "cpu", 2, lambda _: None, ("fused", "strong"))
    assert not timings and len(failed) == step.CHECKED and all("l_fake is" in text and who in text for text in failed)


# what is counted


@pytest.mark.parametrize(
    "resize, second, products",
    [
        # per image: pixels, products of Cin x Cout for each; the second input beside nearest x2 has its own, direct
        ("up", 0, 9 * 48 * 16),
        ("up", 3, 9 * 48 * 16 + 9 * 4 * 48 * 3),
        ("none", 0, 16 * 48 // 4 * 16),
        ("none", 3, 16 * 48 // 4 * 19),
        ("down", 0, 9 * 12 * 16),
        ("down", 3, 9 * 12 * 19),
    ],
)
def test_products_of_the_forms(resize, second, products):
    _, sample = conv(resize, second)
    made = _spec.tensors(sample, torch.float32)
    leaves = {name: tensor.requires_grad_() for name, tensor in made.items()}
    with native_calls.recorded() as calls:
        y = ops.resize_conv_act(**leaves, **sample.options)
    (forward,) = calls
    assert forward.function == "resize_conv_act_forward" and forward.seconds > 0
    if forward.integers[3] != 2:  # 4x4 tiles: counted below
        assert forward.work().flops == 2.0 * 2 * products * 24
    elements = sum(t.numel() for t in made.values()) - 24 + y.numel()
    assert forward.work().bytes == 4.0 * elements
    with native_calls.recorded() as calls:
        y.sum().backward()
        for wanted in ("weight", "x"):
            only = {name: tensor.detach().requires_grad_(name == wanted) for name, tensor in made.items()}
            ops.resize_conv_act(**only, **sample.options).sum().backward()
    calls = [call for call in calls if call.function.endswith(("_forward", "_backward"))]  # not the kept weights'
    everything, _, of_weight, _, of_x = (call.work() for call in calls)
    assert everything.flops == 2 * forward.work().flops and of_weight.flops == forward.work().flops
    assert 0 < of_x.flops <= forward.work().flops and of_x.bytes < everything.bytes
    assert native_calls.flops(calls) == everything.flops + of_weight.flops + of_x.flops + 2 * forward.work().flops


def test_4x4_tiles_take_36_products_for_16_outputs():
    integers = [0, 0, 1, 2, 1, 16, 0, 8, 8, 24]
    work = _spec.specs()["resize_conv_act"].work("resize_conv_act_forward", [1] * 5, integers)
    assert work.flops == 2.0 * 36 * 4 * 16 * 24 and "4x4 tiles" in work.shape


def test_recording_leaves_the_calls_alone():
    honest = _native.call
    with pytest.raises(ZeroDivisionError), native_calls.recorded():
        assert _native.call is not honest
        1 / 0  # noqa: B018
    assert _native.call is honest
    assert native_calls.Call("no_operator_forward", (), (1,), 0.1).work() is None
    assert native_calls.flops([]) is None


def test_launches_of_backward_passes_are_noted():
    """On a GPU autograd would run them in a thread of its own, where nothing is noted."""
    seen = []

    class Probe(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x.clone())

        @staticmethod
        def backward(ctx, grad):
            seen.append(torch.autograd.is_multithreading_enabled())
            return grad

    assert native_calls.launched(lambda: Probe.apply(torch.ones(1, requires_grad=True)).backward()) == []
    assert seen == [False] and torch.autograd.is_multithreading_enabled()


def test_an_error_on_a_gpu_is_the_case_s_failure():
    arguments = Arguments(device="cuda")
    assert rows.guarded(arguments, lambda x: 1 / x, 0) == ({}, ["ZeroDivisionError: division by zero"])
    with pytest.raises(ZeroDivisionError):
        rows.guarded(Arguments(), lambda x: 1 / x, 0)


def test_interleaving():
    order = []
    calls = {name: lambda name=name: (order.append(name), time.sleep(0.001)) for name in "ab"}
    rounds = []
    timings = interleaved(calls, rounds=3, least_seconds=0, after_round=rounds.append)
    assert "".join(order) == "aabb" + "ab" + "ba" + "ab" and rounds == [1, 2, 3]
    assert Timing([1.0, 2.0, 3.0, 4.0]).to_json()["median"] == 2.5 and len(timings["a"].samples) == 3


def test_rounds_go_on_until_enough_is_sampled():
    told, calls = [], {"a": lambda: time.sleep(0.001)}
    timings = interleaved(calls, rounds=2, least_seconds=0, in_all=0.02, after_round=told.append)
    assert 2 < len(timings["a"].samples) <= 20 and told == [1, 2]


ASKS_FOR_HUGE_PAGES = """
import os, torch
from benchmarks.timing.measure import steady_memory
steady_memory()
held = torch.ones(1 << 24)
flags = [line.split() for line in open("/proc/self/smaps") if line.startswith("VmFlags")]
print(any("hg" in words for words in flags), "THP_MEM_ALLOC_ENABLE" in os.environ)
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(),
    reason="the system knows no transparent huge pages",
)
def test_steady_memory_asks_for_huge_pages():
    run = [sys.executable, "-c", ASKS_FOR_HUGE_PAGES]
    done = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"]  # asked for; other processes are as they are without it


def test_of_two_passes_the_calmer_counts():
    def taken(fused: float, eager: float) -> operators.Measured:
        return {"fused": Timing([fused] * 3), "eager contiguous": Timing([eager] * 3)}, []

    calm, disturbed, failed = taken(1.0, 3.0), taken(0.9, 3.2), ({}, ["output: error 1"])
    assert operators.calmer([disturbed, calm]) is calm  # all together, whichever is faster alone
    assert operators.calmer([calm, failed]) is failed and operators.calmer([disturbed]) is disturbed


def test_the_ops_suite_passes_twice(small, monkeypatch, tmp_path):
    monkeypatch.setattr(operators, "IN_ALL", 0.0)
    assert command(bench.main, "ops", "--filter", "linear", "--json", tmp_path / "x.json") == 0
    (found,) = json.loads((tmp_path / "x.json").read_text())["rows"]
    taken = sum(timing["median"] for timing in found["timings"].values())
    assert len(found["passes"]) == operators.PASSES and taken == pytest.approx(min(found["passes"]))


def test_quick_takes_one_shape_of_each_kind():
    every, quick = list(operators.cases("")), list(operators.cases("", quick=True))
    kinds = {(spec.operator, sample.options.get("resize")) for spec, sample in every}
    assert len(quick) == len(kinds) and kinds == {(spec.operator, s.options.get("resize")) for spec, s in quick}
    assert all(any(sample is other for _, other in every) for _, sample in quick)
    assert all("up" in sample.name for _, sample in operators.cases(" up ")) and not list(operators.cases("conv9"))
    assert list(step.settings("", quick=True)) == [step.QUICK]


def test_the_better_layout_and_the_missing_baselines():
    timings = {"fused": 1.0, "eager channels_last": 6.0, "eager contiguous": 4.0}
    entry = rows.row("ops", "x", {name: Timing([value] * 3) for name, value in timings.items()}, [])
    assert entry["speedup"] == {"eager": 4.0, "strong": 4.0}  # nothing stronger than the reference; nothing compiled
    limits = Limits(matrix_flops=100.0, copy_bytes_per_s=10.0, fill_bytes_per_s=20.0)
    entry = rows.shares(entry, limits, 50.0, 2.0)
    assert (entry["share_of_matrix"], entry["share_of_copy"]) == (0.5, 0.2)
    assert rows.cells(entry)[3:] == ["4000", "4.00", "-", "-", "4000", "4.00", "50%", "20%"]


def test_tables():
    table = Table("Title", [("name", 6), ("ms", 5)])
    assert table.add(["a", "1.00"]) == "a       1.00" and table.add(["wrong: all of it"]) == "wrong: all of it"
    assert table.head() == "\nTitle\n\nname      ms"
    assert table.markdown().splitlines()[2:5] == ["| name | ms |", "| --- | ---: |", "| a | 1.00 |"]
    assert len(rows.comparison("").head().splitlines()[-1]) <= 140


# scaling and profile


@pytest.mark.parametrize("fixed, power", [(0.0, 2.0), (3e-4, 1.0), (2e-3, 1.37)])
def test_the_law_is_found_again(fixed, power):
    by = {x: Timing([fixed + 1e-5 * x**power] * 3) for x in (8, 16, 32, 64, 128)}
    law = sweeps.fit(by)
    assert law.fixed == pytest.approx(fixed, abs=1e-7) and law.power == pytest.approx(power, abs=0.005)
    assert law(32) == pytest.approx(by[32].median, rel=1e-3) and law.worst < 1e-3


def test_a_law_has_no_negative_part():
    """Faster than in proportion at the small end, as where caches hold what is small."""
    law = sweeps.fit({1: Timing([1.0]), 2: Timing([4.0]), 4: Timing([9.0])})
    assert law.fixed == 0 and law.unit > 0 and 0.05 < law.worst < 0.3


def test_every_operator_s_sweep_grows_what_it_says():
    seen = {(sweep.name, sweep.axis) for sweep in sweeps.cases("", False, "cpu")}
    assert {("refiner step", axis) for axis in ("side", "channels", "batch")} <= seen and len(seen) >= 18
    for operator, spec in _spec.specs().items():
        for kind, sized in spec.sweeps.items():
            costs = [spec.flops(sized(*at)) for at in ((2, 16, 32), (4, 16, 32), (2, 32, 32), (2, 16, 64))]
            assert min(costs[1:]) > costs[0] and costs[1] == 2 * costs[0], (operator, kind)


def test_a_sweep_that_differs_has_no_time():
    sweep = sweeps.Sweep("x", "batch", (1, 2), lambda value: ({"fused": lambda: None}, ["off"] if value == 2 else []))
    timings, failed = sweeps.measure(sweep, 2, lambda: None)
    assert timings == {} and failed == ["batch 2: off"]
    assert sweeps.row(sweep, timings, failed) == {
        "suite": "scaling", "name": "x by batch", "axis": "batch", "failed": failed
    }  # fmt: skip


def test_the_share_that_threads_do_not_shorten():
    by = {n: Timing([0.2 + 0.8 / n]) for n in (1, 2, 4)}
    assert threads.serial_share(by) == pytest.approx(0.2) and threads.serial_share({1: Timing([1.0])}) is None


def test_allocations():
    def call():
        first = torch.empty(1 << 20)
        del first
        return torch.empty(1 << 18)

    peak = measure.allocation_peak(call)
    assert 4 << 20 <= peak < (4 << 20) + 4096


def test_thread_counts():
    counts = {1: [1], 2: [1, 2], 4: [1, 2, 3, 4], 6: [1, 2, 3, 4, 6], 64: [1, 2, 3, 4, 8, 16, 32, 64]}
    assert {most: threads.counts(most) for most in counts} == counts


def test_threads_are_left_as_they_were():
    before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(2)
    try:
        timings = threads.measure({"fused": lambda: seen.add(torch.get_num_threads())}, rounds=2)
        assert torch.get_num_threads() == 2 and seen == {1, 2} and timings["fused"].keys() == {1, 2}
    finally:
        torch.set_num_threads(before)


def test_a_profile_accounts_for_the_step():
    found = profile.measure(TINY, "cpu", 2, lambda _: None)
    layers = {line.layer for line in found.lines}
    assert {"generator.first", "discriminator.encoder.first", "discriminator.decoder.last"} <= layers
    passes = [line.function for line in found.lines if line.layer == "generator.decoder.blocks.2"]
    assert passes == ["resize_conv_act_forward", "resize_conv_act_backward"]
    assert found.outside.keys() >= {"aten::_fused_adam_", "aten::_foreach_lerp_", "aten::cat"}
    total = sum(line.seconds for line in found.lines) + sum(found.outside.values())
    assert total == pytest.approx(found.wall.median)


def test_peak_memory_of_a_fresh_process():
    assert step.peak_memory("fused", TINY, "cpu") > 100_000


# the command

TIMED = Timing([0.1] * 10)
LOADED = loading.row("dali", loading.SETTINGS[0], dict.fromkeys(("dali", "step", *loading.PEERS), TIMED), 0.5)


@pytest.fixture
def small(monkeypatch):
    """The command over one tiny setting and three tiny shapes, without compiling."""
    monkeypatch.setattr(step, "SETTINGS", {"refiner tiny": TINY})
    monkeypatch.setattr(step, "QUICK", "refiner tiny")
    monkeypatch.setattr(step, "peak_memory", lambda name, *setting: 2**20 * (1 if name == "fused" else 2))
    chosen = [conv("up"), conv("down"), tiny("linear")]
    monkeypatch.setattr(operators, "cases", lambda only, quick=False: [c for c in chosen if only in c[0].operator])
    monkeypatch.setattr(sweeps, "BASE", {"batch": 1, "channels": 8, "side": 8})
    monkeypatch.setattr(sweeps, "VALUES", {"batch": (1, 2, 3)})
    monkeypatch.setattr(sweeps, "STEP_BASE", TINY)
    monkeypatch.setattr(sweeps, "STEP_VALUES", {"batch": ("batch_size", (2, 3))})
    monkeypatch.setattr(loading, "measure", lambda setting, rounds, tick: [LOADED | {"name": setting.name}])
    tiny_model = fuse_models.Architecture("tiny", "", lambda: fuse_models.DCGAN(8), (2, 64))
    monkeypatch.setattr(fuse, "ARCHITECTURES", [tiny_model])
    monkeypatch.setattr(Arguments, "can_compile", False)
    monkeypatch.setattr(bench, "measure_limits", lambda device, precision: Limits(1e11, 1e10, 2e10))


def test_the_command(small, tmp_path, capsys):
    json_file, markdown = tmp_path / "result.json", tmp_path / "result.md"
    assert command(bench.main, "all", "--quick", "--json", json_file, "--markdown", markdown) == 0
    result, printed = json.loads(json_file.read_text()), capsys.readouterr().out
    assert result["schema"] == saved.SCHEMA and result["limits"]["matrix_flops"] == 1e11
    found = result["rows"]
    assert {row["suite"] for row in found} == set(bench.SUITES)
    first = next(row for row in found if row["suite"] == "ops")
    assert first["speedup"].keys() == {"eager", "strong"} and len(first["timings"]["fused"]["samples"]) == 10
    assert len(first["timings"]["strong contiguous"]["quartiles"]) == 2
    assert (
        first["share_of_matrix"] > 0
        and first["share_of_copy"] > 0
        and first["flops_as_written"] > first["algebra_flops"]
    )
    whole = next(row for row in found if row["suite"] == "step")
    assert whole["memory"] == {"fused": 2**20, "eager": 2**21, "compile": None, "strong": 2**21}
    scaled = next(row for row in found if row["suite"] == "scaling")
    assert scaled["axis"] == "threads" and scaled["speedup_over_one"]["fused"]["1"] == 1
    swept = {row["name"]: row for row in found if row["suite"] == "scaling" and row["axis"] == "batch"}
    assert swept.keys() == {"refiner step by batch", "resize_conv_act up elu by batch"}
    assert list(swept["refiner step by batch"]["timings"]["eager"]) == ["2", "3"]
    assert whole["allocated"]["fused"] < whole["allocated"]["eager"] and "compile" not in whole["allocated"]
    assert "no C++ compiler" in printed and "Native calls of one fused step" in printed and "50%" in printed
    assert markdown.read_text().count("| --- |") >= 6 and "resize_conv_act_backward" in markdown.read_text()


def test_a_wrong_result_is_the_exit_status(small, monkeypatch, capsys):
    monkeypatch.setattr(operators, "measure", lambda *a, **o: ({}, ["output: error 1, allowed 0"]))
    assert command(bench.main, "ops", "--filter", "linear") == 1
    assert "DIFFERENT: output: error 1" in capsys.readouterr().out


def test_a_spent_budget_names_what_was_left_out(small, tmp_path, capsys):
    assert command(bench.main, "ops", "--budget", "-1", "--json", tmp_path / "result.json") == 0
    found = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert len(found) == 3 and all("budget" in row["not_run"] for row in found)
    assert "not run" in capsys.readouterr().out


def test_limits_of_this_machine():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_floats", lambda device: 1 << 16)
        limits = measure.measure_limits("cpu", "bf16")
    assert min(vars(limits).values()) > 0


def test_tf32_is_as_before():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(ZeroDivisionError), measure.tf32_allowed(not before[0]):
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is not before[0]
        1 / 0  # noqa: B018
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


@pytest.mark.parametrize("precision", list(measure.PRECISIONS))
def test_an_operator_in_each_precision(precision):
    """The CPU has no TF32, and strong keeps its dtype there too."""
    spec, sample = conv("down")
    timings, failed = operators.measure(spec, sample, "cpu", rounds=2, compiled=False, precision=precision)
    assert not failed and "strong channels_last" in timings


def test_a_step_in_bfloat16():
    timings, failed = step.measure(TINY, "cpu", 2, lambda _: None, ("fused", "strong"), "bf16")
    assert not failed and timings.keys() == {"fused", "strong"}


def test_what_needs_a_gpu(small, capsys):
    for arguments in (("ops", "--precision", "bf16"), ("step", "--autotune")):
        assert command(bench.main, *arguments) == 2
        assert "needs --device cuda" in capsys.readouterr().err


def test_bad_arguments(small, capsys, tmp_path):
    assert command(bench.main, "ops", "--rounds", "9") == 2
    assert "--rounds must be at least 10" in capsys.readouterr().err
    assert command(bench.main, "ops", "--filter", "conv9") == 2
    assert "no case contains 'conv9'" in capsys.readouterr().err
    assert command(bench.main, "ops", "--markdown", tmp_path / "no" / "file.md") == 2
    assert "--markdown" in capsys.readouterr().err


# processes


def test_processes_whose_losses_differ_have_no_time():
    losses = {"fused, 1": {"l_real": 0.5, "l_fake": 0.25}, "fused, 2": {"l_real": 0.5, "l_fake": 0.2501}}
    (said,) = processes.disagreements(losses)
    assert said == "l_fake is 0.2501 (fused, 2) and 0.25 (fused, 1)"
    assert processes.counts(1) == [1] and processes.counts(2) == [1, 2] and processes.counts(6) == [1, 2, 4]


def test_what_is_measured_is_kept_when_a_later_suite_breaks(small, monkeypatch, tmp_path):
    monkeypatch.setitem(bench.SUITES, "step", bench.Suite(lambda arguments, limits: 1 / 0, lambda only, quick: ["x"]))
    with pytest.raises(ZeroDivisionError):
        bench.main(["all", "--quick", "--json", str(tmp_path / "result.json")])
    assert {row["suite"] for row in json.loads((tmp_path / "result.json").read_text())["rows"]} == {"ops"}
