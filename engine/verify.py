"""`python -m engine.verify [--device D]`: do the fused operators compute what their references do, on this machine?

Operators: every sample of every kernels/<op>/spec.py, forward and gradients, in three dtypes. An error against the
float64 reference may be at most twice that of eager PyTorch in the same dtype, plus the floor named in spec.py.
Training: steps of the refiner fused and eager, in float32; every loss and every network's gradient must agree to 1e-4.
Both start each step from the state of the eager run: left alone, two runs that differ by rounding drift apart. Exit
status 1 when anything fails.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from tqdm import tqdm

from engine.cli import parse, run
from engine.environment import pick_device
from engine.errors import InputError
from engine.kernels import _native, _spec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOSS_TOLERANCE = 1e-4


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


def verify_training(steps: int, device: torch.device, *, resolution: int = 32, filters: int = 8, batch: int = 4) -> Row:
    """The same refiner steps, fused and eager: the largest relative difference of a loss or a network's gradient."""
    from engine.config import TrainConfig
    from engine.data import Batch
    from engine.systems import build

    config = TrainConfig(resolution=resolution, filters=filters, hidden=16, batch_size=batch, inject=(8, 16), model="B")
    # a k that counts from the first step on
    config = dataclasses.replace(config, gamma=0.9, lambda_k=0.05)
    fused, eager = (build(dataclasses.replace(config, fused=mode), device) for mode in (True, False))
    failed, checks, largest, where = 0, 0, 0.0, ""
    began = time.perf_counter()
    for step in range(1, steps + 1):
        images = training_images(batch, config.channels, resolution, step, device)
        data = Batch(images=images, landmarks=None, indices=torch.arange(batch))
        fused.load_weights(eager.weights())
        fused.load_state_dict(eager.state_dict())
        losses, exact = fused.step(data), eager.step(data)
        differences = {name: relative(losses[name], exact[name]) for name in exact}
        for name, network in eager.networks().items():
            pair = zip(fused.networks()[name].parameters(), network.parameters(), strict=True)
            ours, theirs = zip(*((a.grad.flatten(), b.grad.flatten()) for a, b in pair), strict=True)
            differences[f"gradient of the {name}"] = relative(torch.cat(ours), torch.cat(theirs))
        for name, difference in differences.items():
            checks += 1
            # written so that NaN fails
            failed += not difference <= LOSS_TOLERANCE
            if difference > largest or math.isnan(difference):
                largest, where = difference, f"{name} at step {step}"
    seconds = time.perf_counter() - began
    return Row("training", f"{steps} steps", checks, failed, largest, None, LOSS_TOLERANCE, where, seconds)


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
            rows.append(verify_training(arguments.steps, device))
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
