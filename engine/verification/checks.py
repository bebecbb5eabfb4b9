"""Makes the rows of `kiln verify`: operators, training steps, operators on trained tensors, captured steps."""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import tyro
from tqdm import tqdm

from engine import ops
from engine.errors import InputError
from engine.host.tf32 import tf32_allowed
from engine.kernels import _native, _spec
from engine.systems.base import System
from engine.systems.registry import SYSTEMS, build, system_class
from engine.training.cuda_graph import WARM_UP, GraphedStep, Recorder
from engine.verification.operator_calls import Call, captured
from engine.verification.recorded_steps import recorded_differences
from engine.verification.training_steps import (
    LOSS_TOLERANCE,
    restore,
    results,
    saved_state,
    step_differences,
    training_batch,
    training_config,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class VerifyOptions:
    """The options of `kiln verify`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to verify; auto takes cuda when there is one."""
    steps: int = 10
    """How many training steps to compare; 0 compares none."""
    system: str = "all"
    """The system whose training steps to compare, or all."""
    operator: str | None = None
    """Check only this operator, and no training steps."""
    operators: bool = True
    """Check the operators on the samples of their specs; without it only training steps are compared."""
    all_isa: tyro.conf.FlagCreatePairsOff[bool] = False
    """On the CPU, check every instruction set of this machine, not only the one in use."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of the table."""

    def check(self) -> None:
        """Raise InputError for values that cannot work."""
        self.systems()
        if not self.operators and (self.operator is not None or self.steps == 0):
            raise InputError("--no-operators leaves training steps alone, so it goes without --operator and --steps 0")
        if self.steps < 0:
            raise InputError(f"--steps must not be negative, got {self.steps}")

    def systems(self) -> list[str]:
        """The names of the systems to compare. Raises InputError for an unknown system."""
        return list(SYSTEMS) if self.system == "all" else [system_class(self.system).name]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    subject:         an operator, or "training", "trained" or "captured" and a system
    variant:         dtype and instruction set of an operator, or the steps that ran
    checks, failed:  number of comparisons, and how many of them are outside the tolerance
    error:           relative error of the worst comparison; None where nothing could run
    reference_error: error of eager PyTorch in that comparison; None where there is no such error
    allowed:         limit of the error in that comparison
    worst:           what the worst comparison compared, or why nothing could run
    seconds:         time that the row took
    """

    subject: str
    variant: str
    checks: int
    failed: int
    error: float | None
    reference_error: float | None
    allowed: float | None
    worst: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.checks > 0 and not self.failed


@tf32_allowed(False)
def verify_operator(name: str, dtype_name: str, device: str, isa: str = "") -> Row:
    """Check every sample of an operator in one dtype; a sample that raises an error counts as failed."""
    spec, dtype = _spec.specs()[name], DTYPES[dtype_name]
    variant = f"{dtype_name} {isa}".strip()
    checks = failed = 0
    worst: tuple[float, _spec.Error, str] | None = None
    began = time.perf_counter()
    for sample in spec.samples:
        try:
            errors = _spec.compare(spec, sample, dtype, device)
        except Exception as problem:  # any error is a failed check, and the table has to show the other operators too
            reason = f"{sample.name}: {type(problem).__name__}: {' '.join(str(problem).split())}"
            seconds = time.perf_counter() - began
            return Row(name, variant, checks + 1, failed + 1, None, None, None, reason, seconds)
        for error in errors:
            checks += 1
            failed += not error.passed
            share = error.fused / error.allowed if error.allowed else float(error.fused > 0)
            if worst is None or share > worst[0]:
                worst = (share, error, f"{error.result}, {sample.name}")
    seconds = time.perf_counter() - began
    if worst is None:
        return Row(name, variant, 0, 0, None, None, None, "no samples", seconds)
    _, error, where = worst
    return Row(name, variant, checks, failed, error.fused, error.eager, error.allowed, where, seconds)


@tf32_allowed(False)
def verify_training(steps: int, device: torch.device, system: str = "refiner") -> tuple[Row, Row]:
    """Check the same steps of a system fused and eager, then the operators on the tensors that these steps lead to.

    Returns the row "training", with the largest relative difference of a loss or a gradient, and the row "trained".
    """
    config = training_config(system)
    fused, eager = (build(dataclasses.replace(config, fused=mode), device) for mode in (True, False))
    failed, checks, largest, where = 0, 0, 0.0, ""
    began = time.perf_counter()
    for step in range(1, steps + 1):
        for name, difference in step_differences(fused, eager, step, steps).items():
            checks += 1
            # "not <=" instead of ">", so that NaN fails
            failed += not difference <= LOSS_TOLERANCE
            if difference > largest or math.isnan(difference):
                largest, where = difference, f"{name} at step {step}"
    seconds = time.perf_counter() - began
    row = Row(f"training {system}", f"{steps} steps", checks, failed, largest, None, LOSS_TOLERANCE, where, seconds)
    return row, verify_trained(fused, eager, steps)


def verify_trained(fused: System, eager: System, steps: int) -> Row:
    """Check each operator call of one more step from eager's state: fused and eager in float32 against float64."""
    began = time.perf_counter()
    restore(fused, saved_state(eager))
    with captured() as calls:
        results(fused, training_batch(eager.config, steps + 1, eager.device), seed=steps + 1)
    errors = []
    for number, call in enumerate(calls):
        shape = "x".join(map(str, next(iter(call.tensors.values())).shape))
        errors += [
            dataclasses.replace(error, result=f"{error.result}, {call.operator} {number + 1} of {len(calls)}, {shape}")
            for error in call_errors(call)
        ]
    failed = [error for error in errors if not error.passed]
    worst = max(errors, key=lambda error: error.fused / error.allowed if error.allowed else error.fused)
    seconds = time.perf_counter() - began
    figures = (worst.fused, worst.eager, worst.allowed, worst.result)
    return Row(f"trained {eager.config.system}", f"after {steps} steps", len(errors), len(failed), *figures, seconds)


@tf32_allowed(False)
def verify_captured(steps: int, device: torch.device, recorder: Recorder | None = None, system: str = "refiner") -> Row:
    """Check that fused steps are the same kernel by kernel and as a CUDA graph, each from the same state.

    recorder: records the graph; None records on the GPU. The learning rate changes with every step.
    """
    config = training_config(system)
    plain, recorded = (build(dataclasses.replace(config, fused=True), device) for _ in range(2))
    graphed = GraphedStep(recorded, recorder)
    began = time.perf_counter()
    differences = []
    for step in range(1, WARM_UP + steps + 1):
        for one in (plain, recorded):
            one.set_learning_rate(config.lr / step)
        found = recorded_differences(plain, recorded, graphed, step, WARM_UP + steps)
        differences += [dataclasses.replace(one, what=f"{one.what} at step {step}") for one in found]
    failed = [one for one in differences if not one.passed]
    worst = failed[0] if failed else max(differences, key=lambda one: one.relative / one.allowed)
    figures = (worst.relative, None, worst.allowed, worst.what)
    variant = f"{WARM_UP} + {steps} steps"
    return Row(f"captured {system}", variant, len(differences), len(failed), *figures, time.perf_counter() - began)


def call_errors(call: Call) -> list[_spec.Error]:
    """The errors of one call's outputs and gradients, judged by the rule of the operators in float32."""
    operator, floor = ops.OPERATORS[call.operator], _spec.specs()[call.operator].floor[torch.float32]
    truth = call.results(operator.reference, torch.float64)
    plain, ours = (call.results(function, torch.float32) for function in (operator.reference, operator.function))
    return _spec.judge(truth, plain, ours, floor)


@contextlib.contextmanager
def limited(isa: str) -> Iterator[None]:
    """Within the block the operators use this instruction set."""
    native = _native.load()
    before = native.isa()
    native.limit_isa(isa)
    try:
        yield
    finally:
        native.limit_isa(before)


def instruction_sets(device: torch.device, every: bool) -> list[str]:
    """The instruction sets to check, the best first; [""] where there is no choice (on a GPU, without the extension).

    every: all sets of this machine, not only the one in use
    """
    if device.type != "cpu":
        return [""]
    try:
        native = _native.load()
    except _native.NativeMissing:
        return [""]
    known = ["baseline", "avx2", "avx512"]
    return known[known.index(native.isa()) :: -1] if every else [native.isa()]


def verify(options: VerifyOptions, device: torch.device) -> list[Row]:
    """Make every row that the options ask for. Raises InputError for an unknown operator."""
    names = list(_spec.specs())
    if options.operator is not None:
        if options.operator not in names:
            raise InputError(f"unknown operator {options.operator!r}; the operators are {', '.join(names)}")
        names = [options.operator]
    sets = instruction_sets(device, options.all_isa)
    plan = [(name, dtype, isa) for isa in sets for name in names for dtype in DTYPES if options.operators]
    rows = []
    for name, dtype, isa in tqdm(plan, desc="operators", disable=None, leave=False):
        with limited(isa) if isa else contextlib.nullcontext():
            rows.append(verify_operator(name, dtype, str(device), isa))
    if options.steps and options.operator is None:
        try:
            for system in tqdm(options.systems(), desc="systems", disable=None, leave=False):
                rows += verify_training(options.steps, device, system)
                if device.type == "cuda":
                    rows.append(verify_captured(options.steps, device, system=system))
        except (NotImplementedError, _native.NativeMissing) as error:
            rows.append(Row("training", f"{options.steps} steps", 1, 1, None, None, None, str(error), 0.0))
    return rows


def table(rows: list[Row]) -> str:
    """The rows for the terminal, each with its worst comparison."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.1e}"

    lines = [("", "what", "variant", "checks", "error", "eager's", "allowed", "worst at")]
    for row in rows:
        errors = (number(row.error), number(row.reference_error), number(row.allowed))
        state = "PASS" if row.passed else "FAIL"
        checks = str(row.checks) if not row.failed else f"{row.failed}/{row.checks}"
        lines.append((state, row.subject, row.variant, checks, *errors, row.worst))
    widths = [max(len(line[i]) for line in lines) for i in range(7)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[7]]) for line in lines)


def page(rows: list[Row], device: torch.device) -> str:
    """The table and the verdict for the terminal."""
    failed = sum(not row.passed for row in rows)
    verdict = f"{failed} of {len(rows)} rows FAILED" if failed else "all PASSED"
    return f"{table(rows)}\n\n{sum(row.checks for row in rows)} checks on {device}: {verdict}"


def as_json(rows: list[Row], device: torch.device) -> str:
    """The rows and the verdict as JSON."""
    entries = [{**dataclasses.asdict(row), "passed": row.passed} for row in rows]
    passed = all(row.passed for row in rows)
    about = {"device": str(device), "torch": torch.__version__, "passed": passed}
    return json.dumps({**about, "rows": entries}, indent=2)
