"""`python -m engine.verify [--device D]`: do the fused operators compute what their references do, on this machine?

Operators: every sample of every kernels/<op>/spec.py, forward and gradients, in three dtypes. An error against the
float64 reference may be at most twice that of eager PyTorch in the same dtype, plus the floor named in spec.py.
Training: steps of the refiner fused and eager, in float32; every loss and every network's gradient must agree to 1e-4.
Both start each step from the state of the eager run: left alone, two runs that differ by rounding drift apart.
Trained: after those steps, one more in float64 too. Its losses, and every operator call of the fused step on the very
weights, activations and gradients that training has made, keep the operators' rule.
Captured (on cuda): the same fused steps launched kernel by kernel and as a CUDA graph. Exit status 1 when anything
fails.
"""

import contextlib
import copy
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
import tyro
from tqdm import tqdm

from engine import ops
from engine.calls import Call, captured
from engine.cli import parse, run
from engine.environment import pick_device
from engine.errors import InputError
from engine.graph import WARM_UP, GraphedStep, Recorder
from engine.kernels import _native, _spec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOSS_TOLERANCE = 1e-4
# |v - D(v)| has no derivative at 0: where rounding decides an element's sign, a gradient may differ by this much. It
# has to agree on the same weights and other images then; what is wrong is wrong on those too
KINK_TOLERANCE, ATTEMPTS = 1e-2, 3
WINOGRAD = 2e-5  # relative: what Winograd tiles may add to twice eager's error (the operator's docstring names it)

if TYPE_CHECKING:
    from engine.config import TrainConfig
    from engine.data import Batch
    from engine.systems.base import System


@dataclass
class Arguments:
    """What `python -m engine.verify` takes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to verify; auto takes cuda when there is one."""
    steps: int = 10
    """Training steps to compare; 0 leaves them out."""
    operator: str | None = None
    """Only this operator (and no training steps)."""
    all_isa: tyro.conf.FlagCreatePairsOff[bool] = False
    """On the CPU: every instruction set of this machine, not only the one in use."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of the table."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    subject, variant:        operator and dtype (and instruction set), or "training" and what ran
    checks, failed:          comparisons made and those outside the tolerance
    error, reference_error:  the worst one's error and that of eager PyTorch; allowed: its limit
    worst:                   where that was, or why nothing could run
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


def verify_operator(name: str, dtype_name: str, device: str, isa: str = "") -> Row:
    """Every sample of an operator in one dtype. A sample that raises counts as failed."""
    spec, dtype = _spec.specs()[name], DTYPES[dtype_name]
    variant = f"{dtype_name} {isa}".strip()
    checks = failed = 0
    worst: tuple[float, _spec.Error, str] | None = None
    began = time.perf_counter()
    for sample in spec.samples:
        try:
            errors = _spec.compare(spec, sample, dtype, device)
        except Exception as error:  # any refusal is a failed check here, and the table has to show the others too
            reason = f"{sample.name}: {type(error).__name__}: {' '.join(str(error).split())}"
            seconds = time.perf_counter() - began
            return Row(name, variant, checks + 1, failed + 1, None, None, None, reason, seconds)
        for found in errors:
            checks += 1
            failed += not found.passed
            share = found.fused / found.allowed if found.allowed else float(found.fused > 0)
            if worst is None or share > worst[0]:
                worst = (share, found, f"{found.result}, {sample.name}")
    seconds = time.perf_counter() - began
    if worst is None:
        return Row(name, variant, 0, 0, None, None, None, "no samples", seconds)
    _, found, where = worst
    return Row(name, variant, checks, failed, found.fused, found.eager, found.allowed, where, seconds)


def training_images(count: int, channels: int, resolution: int, step: int, device: torch.device) -> torch.Tensor:
    """(count, channels, R, R) in [-1, 1], channels_last: smooth shapes with a little noise, from the step's number."""
    generator = torch.Generator().manual_seed(step)
    coarse = torch.randn(count, channels, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, size=resolution, mode="bicubic", align_corners=False)
    noise = 0.1 * torch.randn(count, channels, resolution, resolution, generator=generator)
    return torch.tanh(smooth + noise).to(device).contiguous(memory_format=torch.channels_last)


def training_config(resolution: int = 32, filters: int = 8, batch: int = 4) -> "TrainConfig":
    """A small refiner with a k that counts from the first step on."""
    from engine.systems.refiner import RefinerConfig

    config = RefinerConfig(
        resolution=resolution, filters=filters, hidden=16, batch_size=batch, inject=(8, 16), model="B"
    )
    return dataclasses.replace(config, gamma=0.9, lambda_k=0.05)


def training_batch(config: "TrainConfig", step: int, device: torch.device) -> "Batch":
    """The images of a step."""
    from engine.data import Batch

    images = training_images(config.batch_size, config.channels, config.resolution, step, device)
    return Batch(images=images, landmarks=None, indices=torch.arange(config.batch_size))


def verify_training(steps: int, device: torch.device) -> tuple[Row, Row]:
    """The same refiner steps, fused and eager, and the operators' errors where these steps have led.

    returns: the row "training": the largest relative difference of a loss or a network's gradient; the row "trained".
    """
    from engine.systems import build

    config = training_config()
    fused, eager = (build(dataclasses.replace(config, fused=mode), device) for mode in (True, False))
    failed, checks, largest, where = 0, 0, 0.0, ""
    began = time.perf_counter()
    for step in range(1, steps + 1):
        for name, difference in step_differences(fused, eager, step, steps).items():
            checks += 1
            # written so that NaN fails
            failed += not difference <= LOSS_TOLERANCE
            if difference > largest or math.isnan(difference):
                largest, where = difference, f"{name} at step {step}"
    seconds = time.perf_counter() - began
    row = Row("training", f"{steps} steps", checks, failed, largest, None, LOSS_TOLERANCE, where, seconds)
    return row, verify_trained(fused, eager, steps)


def step_differences(fused: "System", eager: "System", step: int, steps: int) -> dict[str, float]:
    """One step of both from eager's state: the relative difference of each loss and each network's gradient."""
    before = {name: tensor.clone() for name, tensor in eager.weights().items()}, copy.deepcopy(eager.state_dict())
    smallest: dict[str, float] = {}
    for attempt in range(ATTEMPTS):
        for system in (fused, eager):
            system.load_weights(before[0])
            system.load_state_dict(before[1])
        # further attempts take images of no other step
        data = training_batch(eager.config, step + attempt * 1000 * steps, eager.device)
        losses, exact = fused.step(data), eager.step(data)
        of_losses = {name: relative(losses[name], exact[name]) for name in exact}
        gradients = {f"gradient of the {name}": relative(*pair) for name, pair in gradient_pairs(fused, eager).items()}
        for name, difference in {**of_losses, **gradients}.items():
            # a loss is continuous: the worst attempt counts; of a gradient, the best
            take = min if name in gradients else max
            smallest[name] = take(smallest[name], difference) if name in smallest else difference
        if not any(LOSS_TOLERANCE < difference <= KINK_TOLERANCE for difference in gradients.values()):
            break
    return smallest


def gradient_pairs(fused: "System", eager: "System") -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Each network's gradient of the step just done, flat: fused and eager."""

    def flat(system: "System", name: str) -> torch.Tensor:
        return torch.cat([parameter.grad.flatten() for parameter in system.networks()[name].parameters()])

    return {name: (flat(fused, name), flat(eager, name)) for name in eager.networks()}


def verify_trained(fused: "System", eager: "System", steps: int) -> Row:
    """One more step from eager's state, and each operator call in it: fused and eager in float32 against float64."""
    from engine.systems import build

    began = time.perf_counter()
    exact = build(eager.config, eager.device)
    for network in {**exact.networks(), **exact.averaged()}.values():
        network.double()
    for system in (fused, exact):
        system.load_weights(eager.weights())
        system.load_own_state(eager.own_state())
    data = training_batch(eager.config, steps + 1, eager.device)
    in_float64 = exact.step(dataclasses.replace(data, images=data.images.double()))
    with captured() as calls:
        of_fused = fused.step(data)
    of_eager = eager.step(data)
    errors = []
    for name, truth in in_float64.items():
        of_reference = relative(of_eager[name], truth)
        allowed = 2 * of_reference + WINOGRAD
        errors.append(_spec.Error(f"loss {name}", relative(of_fused[name], truth), of_reference, allowed))
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
    return Row("trained", f"after {steps} steps", len(errors), len(failed), *figures, seconds)


def verify_captured(steps: int, device: torch.device, recorder: Recorder | None = None) -> Row:
    """Fused steps from the same start, launched kernel by kernel and as a CUDA graph: every loss, then the weights.

    recorder: of the graph; None records on the GPU. The learning rate changes with every step.
    """
    from engine.systems import build

    config = training_config()
    plain, recorded = (build(dataclasses.replace(config, fused=True), device) for _ in range(2))
    graphed = GraphedStep(recorded, recorder)
    began = time.perf_counter()
    differences = {}
    for step in range(1, WARM_UP + steps + 1):
        data = training_batch(config, step, device)
        for system in (plain, recorded):
            system.set_learning_rate(config.lr / step)
        exact, losses = plain.step(data), graphed(data)
        differences |= {f"{name} at step {step}": relative(losses[name], value) for name, value in exact.items()}
    weights = recorded.weights()
    differences |= {f"the weights {name}": relative(weights[name], value) for name, value in plain.weights().items()}
    # written so that NaN fails
    failed = [name for name, difference in differences.items() if not difference <= LOSS_TOLERANCE]
    where = failed[0] if failed else max(differences, key=differences.get)
    figures = (differences[where], None, LOSS_TOLERANCE, where)
    variant = f"{WARM_UP} + {steps} steps"
    return Row("captured", variant, len(differences), len(failed), *figures, time.perf_counter() - began)


def call_errors(call: Call) -> list[_spec.Error]:
    """The dtype rule in float32 on one call's tensors."""
    operator, floor = ops.OPERATORS[call.operator], _spec.specs()[call.operator].floor[torch.float32]
    truth = call.results(operator.reference, torch.float64)
    plain, ours = (call.results(function, torch.float32) for function in (operator.reference, operator.function))
    return _spec.judge(truth, plain, ours, floor)


def relative(value: torch.Tensor, exact: torch.Tensor) -> float:
    """||value - exact|| / ||exact||, in float64."""
    return (value.double() - exact.double()).norm().item() / max(exact.double().norm().item(), 1e-6)


@contextlib.contextmanager
def limited(isa: str) -> Iterator[None]:
    """Run with this instruction set."""
    native = _native.load()
    before = native.isa()
    native.limit_isa(isa)
    try:
        yield
    finally:
        native.limit_isa(before)


def instruction_sets(device: torch.device, every: bool) -> list[str]:
    """The sets to verify, best first; [""] where there is no choice (GPU, extension missing)."""
    if device.type != "cpu":
        return [""]
    try:
        native = _native.load()
    except _native.NativeMissing:
        return [""]
    known = ["baseline", "avx2", "avx512"]
    return known[known.index(native.isa()) :: -1] if every else [native.isa()]


def verify(arguments: Arguments, device: torch.device) -> list[Row]:
    """Every row asked for."""
    names = list(_spec.specs())
    if arguments.operator is not None:
        if arguments.operator not in names:
            raise InputError(f"unknown operator {arguments.operator!r}; the operators are {', '.join(names)}")
        names = [arguments.operator]
    sets = instruction_sets(device, arguments.all_isa)
    plan = [(name, dtype, isa) for isa in sets for name in names for dtype in DTYPES]
    rows = []
    for name, dtype, isa in tqdm(plan, desc="operators", disable=None, leave=False):
        with limited(isa) if isa else contextlib.nullcontext():
            rows.append(verify_operator(name, dtype, str(device), isa))
    if arguments.steps and arguments.operator is None:
        try:
            rows += verify_training(arguments.steps, device)
            if device.type == "cuda":
                rows.append(verify_captured(arguments.steps, device))
        except (NotImplementedError, _native.NativeMissing) as error:
            rows.append(Row("training", f"{arguments.steps} steps", 1, 1, None, None, None, str(error), 0.0))
    return rows


def table(rows: list[Row]) -> str:
    """The rows for the terminal, each with its worst case."""

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


def main(argv: list[str]) -> int:
    """Verify the operators and some training steps; 1 when anything fails."""
    arguments = parse(Arguments, argv, prog="kiln verify", description="Check the operators against the references.")
    if arguments.steps < 0:
        raise InputError(f"--steps must not be negative, got {arguments.steps}")
    device = pick_device(arguments.device)
    rows = verify(arguments, device)
    failed = [row for row in rows if not row.passed]
    if arguments.json:
        found = [{**asdict(row), "passed": row.passed} for row in rows]
        print(
            json.dumps(
                {"device": str(device), "torch": torch.__version__, "passed": not failed, "rows": found}, indent=2
            )
        )
    else:
        print(table(rows))
        checks = sum(row.checks for row in rows)
        verdict = f"{len(failed)} of {len(rows)} rows FAILED" if failed else "all PASSED"
        print(f"\n{checks} checks on {device}: {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    run("verify", main)
