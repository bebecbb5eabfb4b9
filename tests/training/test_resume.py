"""A run that is interrupted at any moment and resumed ends with the same bits as one that is not."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine import checkpoint
from tests.support.packages import needs
from tests.support.training_processes import STEPS, forked, run_training


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return forked()


@pytest.fixture(scope="module")
def uninterrupted(processes, tmp_path_factory) -> checkpoint.Checkpoint:
    out = tmp_path_factory.mktemp("whole") / "run"
    process = processes.Process(target=run_training, args=(out,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return checkpoint.load(out)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key != "elapsed")
    return a == b


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_interrupted_at_random_moments(processes, uninterrupted, tmp_path: Path, number: int) -> None:
    out, draw = tmp_path / "run", random.Random(number)
    interruptions = 0
    for _ in range(40):
        process = processes.Process(target=run_training, args=(out,))
        process.start()
        metrics = out / "metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        # a process that trains has its signal handlers
        while process.is_alive() and (not metrics.exists() or metrics.stat().st_size == before) and interruptions < 4:
            time.sleep(0.002)
        if interruptions < 4:
            time.sleep(draw.uniform(0, 0.05))
            with contextlib.suppress(ProcessLookupError):  # the process has ended
                os.kill(process.pid, number)
        process.join(60)
        if process.exitcode == 0:
            break
        expected = -signal.SIGKILL if number == signal.SIGKILL else 128 + number
        assert process.exitcode == expected
        interruptions += 1
        if number != signal.SIGKILL:
            # the step that was running is saved, not lost
            steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
            assert checkpoint.load(out).step >= max(steps)
    assert process.exitcode == 0 and interruptions >= 2
    resumed = checkpoint.load(out)
    assert resumed.step == uninterrupted.step == STEPS
    assert same(resumed.weights, uninterrupted.weights)
    assert same(resumed.state, uninterrupted.state)
    name = "weights.safetensors"
    assert (resumed.path / name).read_bytes() == (uninterrupted.path / name).read_bytes()

    def losses(run: Path) -> list[dict]:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in r.items() if k.startswith(("step", "l", "k", "measure"))} for r in records]

    assert losses(out) == losses(uninterrupted.path.parents[1])


@needs("nvidia.dali")
def test_the_command_interrupted_and_resumed_on_image_files(tmp_path: Path) -> None:
    """The real command with the real reader, two threads, random crops and mirroring."""
    images = tmp_path / "images"
    images.mkdir()
    draw = np.random.default_rng(0)
    for index in range(12):
        coarse = Image.fromarray(draw.integers(0, 255, (4, 5, 3), dtype=np.uint8))
        coarse.resize((25, 20), Image.Resampling.BILINEAR).save(images / f"{index:02d}.png")
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    environment["OMP_WAIT_POLICY"] = "passive"  # three processes on two cores do not spin while they wait

    def command(out: str, *flags: str) -> subprocess.Popen:
        words = ["-m", "engine.train", "--out", str(tmp_path / out), *flags]
        return subprocess.Popen(
            [sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    flags = ["--fused", "--data", str(images), "--resolution", "16", "--filters", "4", "--batch-size", "5", "--steps",
             "150", "--crop", "random", "--log-every", "1", "--checkpoint-every", "1000"]  # fmt: skip
    whole, parts = command("whole", *flags), command("parts", *flags)
    metrics = tmp_path / "parts" / "metrics.jsonl"
    while parts.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 7):
        time.sleep(0.01)
    parts.send_signal(signal.SIGTERM)
    text, _ = parts.communicate(timeout=300)
    assert parts.returncode == 143, text
    assert "--resume" in text and "stopped by SIGTERM after step" in text
    text, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, text
    again = command("parts", "--resume")
    text, _ = again.communicate(timeout=300)
    assert again.returncode == 0, text
    assert "going on from step" in text
    a, b = checkpoint.load(tmp_path / "whole"), checkpoint.load(tmp_path / "parts")
    assert a.step == b.step == 150
    assert same(a.weights, b.weights) and same(a.state, b.state)
