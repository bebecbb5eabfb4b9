"""verify finds wrong operators; doctor finds what is missing, and an error inside a check is a finding too."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from engine import doctor, ops, verify
from engine.kernels import _contract, _native, _spec
from engine.kernels._observers import observers
from engine.systems.registry import SYSTEMS
from engine.training import fused_share
from engine.verification import checks, machine
from engine.verification.training_steps import ATTEMPTS
from tests.support.packages import needs
from tests.support.places import ROOT
from tests.support.tiny_run import command

CPU = torch.device("cpu")


def test_every_operator_and_dtype_has_a_row(monkeypatch):
    monkeypatch.setattr(checks, "verify_operator", lambda *what: what)
    arguments = checks.VerifyOptions(steps=0)
    isa = _native.load().isa()
    expected = {(name, dtype, "cpu", isa) for name in _contract.discover() for dtype in ("fp32", "bf16", "fp16")}
    assert set(checks.verify(arguments, CPU)) == expected
    every = checks.verify(replace(arguments, all_isa=True), CPU)
    assert {row[3] for row in every} >= {isa, "baseline"}
    assert _native.load().isa() == isa


def test_float32_is_verified_without_tf32(monkeypatch):
    """PyTorch starts with TF32 allowed for convolutions: on a GPU fused and eager steps would differ by 1e-3."""
    seen, places = [], (torch.backends.cudnn, torch.backends.cuda.matmul)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)

    def look(*rest):
        seen.append([place.allow_tf32 for place in places])
        raise ZeroDivisionError

    monkeypatch.setattr(checks, "build", look)
    monkeypatch.setattr(checks._spec, "compare", look)
    for check in (lambda: checks.verify_training(1, CPU), lambda: checks.verify_captured(1, CPU)):
        with pytest.raises(ZeroDivisionError):
            check()
    assert not checks.verify_operator("gram", "fp32", "cpu").passed
    assert seen == [[False, False]] * 3 and torch.backends.cudnn.allow_tf32


def test_training_steps_alone(monkeypatch, capsys):
    monkeypatch.setattr(checks, "verify_training", lambda steps, device, system: (steps, system))
    assert checks.verify(checks.VerifyOptions(steps=2, system="refiner", operators=False), CPU) == [2, "refiner"]
    for words in (("--operator", "gram"), ("--steps", "0")):
        assert command(verify.main, "--no-operators", *words) == 2
        assert "--no-operators leaves training steps alone" in capsys.readouterr().err


def test_verify_passes_here(capsys):
    assert command(verify.main, "--device", "cpu", "--operator", "linear") == 0
    printed = capsys.readouterr().out
    assert printed.count("PASS ") == 3 and "FAIL" not in printed and "all PASSED" in printed


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_training_rows_pass(system):
    row, trained = checks.verify_training(2, CPU, system)
    assert row.passed and 0 < row.error < 1e-4, row
    assert trained.passed and trained.variant == "after 2 steps" and 0 < trained.error <= trained.allowed, trained
    if system == "refiner":
        assert row.checks == 2 * (9 + 3)  # losses, and the gradients of D, G and the critic
        assert trained.checks > 20 * 4  # outputs and gradients of every layer's call


@pytest.mark.parametrize(
    "factors, passes",
    [
        ([1.001], True),  # wrong on the first images alone, as where rounding decides a sign of v - D(v)
        ([1.001] * ATTEMPTS, False),
        ([1.1], False),  # by more than what one element's sign can change
    ],
)
def test_a_gradient_that_differs(monkeypatch, factors, passes):
    from engine.systems.refiner import RefinerSystem

    honest, left = RefinerSystem._one_pass, list(factors)

    def one_pass(self, batch):
        found = honest(self, batch)
        if left:
            factor = left.pop(0)
            for parameter in self.generator.parameters():
                parameter.grad.mul_(factor)
        return found

    monkeypatch.setattr(RefinerSystem, "_one_pass", one_pass)
    row, _ = checks.verify_training(1, CPU)
    assert row.passed == passes and not left
    assert passes or row.worst == "gradient of the generator at step 1"


def test_an_operator_that_errs_on_trained_tensors_fails(monkeypatch):
    """The operator errs on the tensors of training only, too little for the losses: no sample of spec.py shows it."""
    honest = ops.linear

    def linear(x, weight, bias=None, *, grad_scale=None):
        return honest(x, weight, bias, grad_scale=grad_scale) * 1.000005

    monkeypatch.setattr(ops, "linear", linear)
    monkeypatch.setitem(ops.OPERATORS, "linear", replace(ops.OPERATORS["linear"], function=linear))
    training, trained = checks.verify_training(1, CPU)
    assert training.passed and not trained.passed and "linear" in trained.worst


def test_capturing_leaves_the_operators_alone():
    before = {name: getattr(ops, name) for name in ops.OPERATORS}
    with pytest.raises(ZeroDivisionError), checks.captured():
        assert len(observers) == 1 and ops.linear is before["linear"]
        1 / 0  # noqa: B018
    assert not observers and {name: getattr(ops, name) for name in ops.OPERATORS} == before


def wrong(monkeypatch, function):
    monkeypatch.setitem(_contract.OPERATORS, "linear", replace(_contract.OPERATORS["linear"], function=function))


def test_a_wrong_result_fails(monkeypatch, capsys):
    reference = _contract.OPERATORS["linear"].reference
    wrong(monkeypatch, lambda *args, **options: reference(*args, **options) * 1.00001)
    assert command(verify.main, "--device", "cpu", "--operator", "linear", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    rows = {row["variant"].split()[0]: row for row in found["rows"]}
    assert not found["passed"] and not rows["fp32"]["passed"] and rows["fp32"]["failed"] > 1
    assert rows["fp32"]["error"] == pytest.approx(1e-5, rel=0.2)
    assert rows["bf16"]["passed"]  # 1e-5 is nothing in bf16


def test_a_wrong_gradient_fails(monkeypatch):
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    reference = _contract.OPERATORS["linear"].reference
    wrong(monkeypatch, lambda x, *args, **options: reference(Twice.apply(x), *args, **options))
    row = checks.verify_operator("linear", "fp32", "cpu")
    assert not row.passed and row.worst.startswith("gradient of x")


def test_nan_fails(monkeypatch):
    reference = _contract.OPERATORS["linear"].reference
    wrong(monkeypatch, lambda *args, **options: reference(*args, **options) * float("nan"))
    assert not checks.verify_operator("linear", "fp32", "cpu").passed


def test_an_operator_that_cannot_run_fails_with_its_reason(monkeypatch, capsys):
    def refuse(*args, **options):
        raise NotImplementedError("kiln::linear has no such kernel")

    wrong(monkeypatch, refuse)
    assert command(verify.main, "--device", "cpu", "--operator", "linear") == 1
    printed = capsys.readouterr().out
    assert printed.count("kiln::linear has no such kernel") == 3 and "3 of 3 rows FAILED" in printed


@pytest.mark.parametrize("value", [1.001, float("nan")])
def test_a_training_that_differs_fails(monkeypatch, value):
    from engine.systems.refiner import RefinerSystem

    honest = RefinerSystem.step

    def step(self, batch):
        losses = honest(self, batch)
        return {**losses, "l_real": losses["l_real"] * value} if self.config.fused else losses

    monkeypatch.setattr(RefinerSystem, "step", step)
    row, _ = checks.verify_training(1, CPU)
    assert not row.passed and row.failed == 1 and row.worst == "l_real at step 1"


def test_a_row_without_checks_does_not_pass(monkeypatch):
    spec = replace(_spec.specs()["linear"], samples=[])
    monkeypatch.setattr(_spec, "specs", lambda: {"linear": spec})
    assert not checks.verify_operator("linear", "fp32", "cpu").passed


def test_bad_arguments(capsys):
    assert command(verify.main, "--operator", "linaer") == 2
    assert "the operators are" in capsys.readouterr().err
    assert command(verify.main, "--steps", "-1") == 2
    if not torch.cuda.is_available():
        assert command(verify.main, "--device", "cuda") == 2
        assert "no CUDA device" in capsys.readouterr().err


# doctor


@needs("nvidia.dali")
def test_a_healthy_machine(capsys):
    assert command(doctor.main) == 0
    printed = capsys.readouterr().out
    assert "Training works here." in printed and "BROKEN" not in printed
    assert all(name in printed for name in _contract.discover())
    assert "one fused step of a small refiner works" in printed
    assert all(f"fused ({system})" in printed for system in SYSTEMS)
    assert "Kiln's kernels compute 100.0 % of a step's FLOPs" in printed


BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names} or name in {names}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
from engine.cli import run
from engine.doctor import main
run("doctor", main, {arguments})
"""


def doctor_without(*names: str, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    code = BLOCKED.format(names=set(names), arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("names", "broken", "fix"),
    [
        (("torch", "triton", "nvidia"), ["torch", "dali", "training"], "pip install 'torch"),
        (("engine._native", "nvidia", "tyro"), ["extension", "dali", "tyro", "training (cpu)"], "build_ext --inplace"),
    ],
)
def test_the_doctor_works_where_things_are_missing(names, broken, fix):
    done = doctor_without(*names)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert f"fix: {', '.join(broken)}." in done.stdout
    assert fix in done.stdout


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    def check_oops():
        raise RuntimeError("boom")

    monkeypatch.setattr(machine, "CHECKS", (machine.check_python, check_oops))
    findings = machine.examine()
    assert [finding.state for finding in findings] == ["ok", "BROKEN"]
    assert "boom" in findings[1].found


def test_a_system_that_is_not_fused_is_a_note(monkeypatch):
    shares = {"dcgan": fused_share.FusedShare(95, {"mm": 4, "convolution": 1})}
    whole = fused_share.FusedShare(100, {})
    monkeypatch.setattr(fused_share, "fused_share", lambda config: shares.get(config.system, whole))
    findings = {finding.subject: finding for finding in machine.check_fused()}
    assert [*findings] == [*(f"fused ({system})" for system in SYSTEMS), "fused (wgan, penalty)"]
    low = findings.pop("fused (dcgan)")
    assert low.state == "note" and low.found == (
        "Kiln's kernels compute 95.0 % of a step's FLOPs; PyTorch the rest: convolution, mm"
    )
    assert {finding.state for finding in findings.values()} == {"ok"}


def test_a_share_that_cannot_be_counted_is_a_note(monkeypatch):
    def fail(config):
        raise RuntimeError("no such device")

    monkeypatch.setattr(fused_share, "fused_share", fail)
    (finding,) = machine.check_fused()
    assert finding.state == "note" and finding.found == "not counted: RuntimeError: no such device"


def test_json(monkeypatch, capsys):
    monkeypatch.setattr(machine, "CHECKS", (machine.check_python, machine.check_cpu))
    assert command(doctor.main, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["works"] and [one["subject"] for one in found["findings"]] == ["python", "processor"]
    assert [list(one) for one in found["findings"]] == [["subject", "state", "found", "mend"]] * 2
    assert command(doctor.main, "--jsn") == 2


def test_a_capped_instruction_set_is_told(monkeypatch):
    native = _native.load()
    if native.machine_isa() == "baseline":
        pytest.skip("this machine has one instruction set")
    with checks.limited("baseline"):
        (finding,) = machine.check_extension()
    assert "uses baseline, KILN_ISA caps" in finding.found and "unset KILN_ISA" in finding.fix
