"""Runs and exported folders that version 0.2.0 wrote load, resume and export as they did then.

tests/support/written_before holds a run of two steps (`kiln train --eager --data pictures --resolution 16 --filters 1
--hidden 2 --inject 8 --batch-size 2 --steps 2 --threads 1`), its pictures, and what `kiln export` made of it. The
expected numbers are those that version 0.2.0 gave.
"""

import json
import shutil

import pytest
import torch

import engine
from engine import checkpoint, train
from tests.support.checkpoint_reads import count_reads
from tests.support.packages import needs
from tests.support.places import ROOT
from tests.support.tiny_run import command

WRITTEN = ROOT / "tests" / "support" / "written_before"
SUM, PIXEL = 183.02666725439485, [-0.16709557175636292, -0.6590443253517151, -0.2888389229774475]
THIRD_STEP = {"l_real": 0.47540223598480225, "l_fake": 0.5287115573883057, "l_content": 0.7088016271591187}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("folder", ["run", "run/checkpoints/step_00000002", "exported"])
def test_engine_load(folder, fused):
    model = engine.load(WRITTEN / folder, fused=fused)
    refined = model(torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16))
    assert refined.double().sum().item() == pytest.approx(SUM, rel=1e-5)
    assert refined[0, :, 3, 5].tolist() == pytest.approx(PIXEL, abs=1e-5)


def test_configuration():
    saved = checkpoint.load(WRITTEN / "run")
    assert saved.step == 2 and saved.config.system == "refiner" and not saved.config.fused
    assert saved.config.inject == (8,) and saved.config.hidden == 2
    assert checkpoint.read_config(WRITTEN / "run") == saved.config


@needs("nvidia.dali")
def test_resume(tmp_path, monkeypatch):
    """The run goes on to the losses that version 0.2.0 had, and its checkpoint is hashed and loaded once."""
    for name in ("run", "pictures"):
        shutil.copytree(WRITTEN / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    counts = count_reads(monkeypatch)
    monkeypatch.setattr(checkpoint, "save", lambda run_dir, *_: checkpoint.latest(run_dir))
    assert command(train.main, "--resume", "--out", "run", "--steps", 3) == 0
    *_, last = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert last["step"] == 3
    assert {name: last[name] for name in THIRD_STEP} == pytest.approx(THIRD_STEP, rel=1e-4)
    assert counts == {"hashed": len(checkpoint.FILES), "weights": 1, "state": 1}
