"""Training runs in processes of their own, which are forked from one that has done the imports."""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

from tests.support.training_fakes import FakeLoader, tiny_config

STEPS = 60
FLAGS = ("--steps", str(STEPS), "--checkpoint-every", "5", "--log-every", "4", "--sample-every", "0", "--ema", "0.9",
         "--gamma", "0.9", "--lambda-k", "0.05", "--lr-schedule", "cosine", "--resume")  # fmt: skip


def forked() -> ForkServerContext:
    """A context whose processes start in a tenth of a second."""
    context = multiprocessing.get_context("forkserver")
    modules = [
        "torch",
        "torch._dynamo",
        "engine.training.events",
        "engine.training.report",
        "engine.training.loop",
        "engine.data",
    ]
    context.set_forkserver_preload([*modules, "engine.systems.refiner", "tests.support.training_fakes"])
    return context


def run_training(out: Path, *flags: str) -> None:
    """Train in this process with FLAGS and `flags`; it prints into a file and ends with the exit status of the run."""
    os.dup2(os.open(out.parent / f"{out.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    sys.exit(trained(out, *flags))


def trained(out: Path, *flags: str) -> int:
    """The exit status of a run with FLAGS and `flags`, on random images and without a report."""
    from engine.training import loop, report

    report.write = lambda run_dir: None
    loop.image_sets = lambda config: []
    loop.open_loaders = lambda config, datasets, device: FakeLoader(config)
    return loop.train(tiny_config(*FLAGS, *flags, mode="--fused", out=out), {})
