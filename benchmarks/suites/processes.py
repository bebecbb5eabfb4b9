"""The part of `scaling` by processes: 1 to N of them under torchrun, one thread each, share a global batch."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.checkout import ROOT
from benchmarks.suites import loading
from benchmarks.timing.measure import Timing

OPTIONS = {"filters": 16, "batch_size": 16, "resolution": 64}
PICTURES = loading.Setting(64, 96, 96, OPTIONS["resolution"], OPTIONS["batch_size"], OPTIONS)
EVERY = 5  # steps that one sample is the mean of
SKIPPED = 2  # samples at the start, because the first steps touch fresh memory
TOLERANCE = 1e-4  # relative, of a loss, after EVERY steps


def name() -> str:
    """The row's name."""
    side = OPTIONS["resolution"]
    return f"refiner {side}x{side}, {OPTIONS['filters']} filters, batch {OPTIONS['batch_size']} by processes"


def counts(most: int) -> list[int]:
    """1 to `most`, doubled."""
    return [1 << power for power in range(most.bit_length())]


def measure(rounds: int, most: int) -> tuple[dict[str, dict[int, Timing]], list[str]]:
    """Seconds of a step by competitor and number of processes, or the losses that differ from those of the first run.

    most: processes
    """
    timings: dict[str, dict[int, Timing]] = {"fused": {}, "eager": {}}
    losses: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        loading.write_files(Path(folder) / "pictures", PICTURES)
        for competitor, by in timings.items():
            for processes in counts(most):
                records = train(Path(folder), competitor, processes, (rounds + SKIPPED) * EVERY)
                by[processes] = Timing([OPTIONS["batch_size"] / record["images_per_s"] for record in records[SKIPPED:]])
                losses[f"{competitor}, {processes}"] = {k: v for k, v in records[0].items() if k.startswith("l_")}
    failed = disagreements(losses)
    return ({}, failed) if failed else (timings, [])


def train(folder: Path, competitor: str, processes: int, steps: int) -> list[dict[str, float]]:
    """Trains with this many processes of one thread each; returns the run's records of metrics.jsonl."""
    out = folder / f"{competitor}{processes}"
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    options = {"data": folder / "pictures", "out": out, "steps": steps, "log_every": EVERY, "sample_every": 0}
    options |= {"checkpoint_every": steps, "threads": 1} | OPTIONS
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", *launcher, "engine.train", f"--{competitor}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{competitor} with {processes} processes: {done.stderr.strip().splitlines()[-1:]}")
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def disagreements(losses: dict[str, dict[str, float]]) -> list[str]:
    """The losses that differ from those of the first run. losses: by run and name, each after EVERY steps."""
    (first, expected), *others = losses.items()
    return [
        f"{name} is {losses_of_run[name]:.6g} ({run}) and {value:.6g} ({first})"
        for run, losses_of_run in others
        for name, value in expected.items()
        # written so that NaN fails
        if not abs(losses_of_run[name] - value) <= TOLERANCE * max(abs(value), 1e-3)
    ]


def missing() -> str | None:
    """Why this part cannot run here; None if it can."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        return "this torch has no gloo, through which processes on a CPU exchange"
    return loading.missing()
