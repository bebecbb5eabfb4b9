"""The same training by 1 to N processes of one thread each under torchrun: one global batch, shared among them."""

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
EVERY = 5  # steps of a sample
SKIPPED = 2  # samples at the begin: the first steps touch fresh memory
TOLERANCE = 1e-4  # of a loss, after so many steps as a run has


def name() -> str:
    """Of the row."""
    side = OPTIONS["resolution"]
    return f"refiner {side}x{side}, {OPTIONS['filters']} filters, batch {OPTIONS['batch_size']} by processes"


def counts(most: int) -> list[int]:
    """1 to `most`, doubled."""
    return [1 << power for power in range(most.bit_length())]


def measure(rounds: int, most: int) -> tuple[dict[str, dict[int, Timing]], list[str]]:
    """Seconds of a step by competitor and number of processes, or the losses that differ between any two of them."""
    timings: dict[str, dict[int, Timing]] = {"fused": {}, "eager": {}}
    losses: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        loading.write_files(Path(folder) / "pictures", PICTURES)
        for competitor, by in timings.items():
            for processes in counts(most):
                records = train(Path(folder), competitor, processes, (rounds + SKIPPED) * EVERY)
                taken = [OPTIONS["batch_size"] / record["images_per_s"] for record in records[SKIPPED:]]
                by[processes] = Timing(taken)
                losses[f"{competitor}, {processes}"] = {k: v for k, v in records[0].items() if k.startswith("l_")}
    failed = disagreements(losses)
    return ({}, failed) if failed else (timings, [])


def train(folder: Path, competitor: str, processes: int, steps: int) -> list[dict[str, float]]:
    """The records of a run of so many processes, one thread each."""
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
    """The first losses that differ from those of the first run. losses: by run and name."""
    (first, expected), *others = losses.items()
    return [
        f"{key} is {found[key]:.6g} ({run}) and {value:.6g} ({first})"
        for run, found in others
        for key, value in expected.items()
        if not abs(found[key] - value) <= TOLERANCE * max(abs(value), 1e-3)
    ]


def missing() -> str | None:
    """Why this cannot run here; None where it can."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        return "this torch has no gloo, through which processes on a CPU exchange"
    return loading.missing()
