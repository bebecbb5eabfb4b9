"""`make gpu` without a GPU: a part that fails stops no other, and every part has its row."""

import dataclasses
import json
import sys
import time
from pathlib import Path

import pytest
import torch

import benchmarks.gpu.__main__ as gpu
from benchmarks.arguments import Arguments
from benchmarks.gpu import parts, sanitize, train
from benchmarks.gpu.parts import FAILED, NOT_RUN, OK, Outcome, Part, Place
from engine import cli
from engine.data import avatars
from engine.kernels import _spec
from engine.systems.refiner import RefinerConfig
from tests.support.tiny_run import command


@pytest.fixture
def place(tmp_path) -> Place:
    (tmp_path / "scratch").mkdir()
    return Place(tmp_path, tmp_path / "scratch", 20.0)


def prints(text: str, status: int = 0) -> tuple[str, ...]:
    return sys.executable, "-c", f"import sys; print({text!r}); sys.exit({status})"


def test_without_a_gpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command(gpu.main, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "no CUDA device" in message and message.count("\n") == 1 and not (tmp_path / "out").exists()
    assert sanitize.main() == 2 and train.main([str(tmp_path), "1", "bf16"]) == 2


def test_wrong_usage(monkeypatch, tmp_path, capsys):
    assert command(gpu.main) == 2 and "make gpu OUT=folder" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "file").touch()
    assert command(gpu.main, tmp_path / "file") == 2 and "name another folder" in capsys.readouterr().err


def test_a_failing_part_stops_no_other(monkeypatch, tmp_path, capsys):
    def fails(place):
        raise ZeroDivisionError("of all things")

    figures = [["refiner", "bf16", "900", "4.00", "1.50", "1.30", "50%"]]
    made_up = (
        Part("first", 5, fails),
        Part("second", 5, lambda place: Outcome(OK, f"{place.seconds:g} s", figures, {"a": 1})),
        Part("third", 5, lambda place: Outcome(NOT_RUN, "no tool")),
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "run_all", lambda out, run_all=gpu.run_all: run_all(out, made_up))
    assert command(gpu.main, tmp_path / "out") == 1
    result, printed = json.loads((tmp_path / "out" / "gpu.json").read_text()), capsys.readouterr().out
    assert [(row["part"], row["status"]) for row in result["parts"]] == [
        ("first", FAILED), ("second", OK), ("third", NOT_RUN)
    ]  # fmt: skip
    assert result["parts"][0]["line"] == "ZeroDivisionError: of all things"
    assert result["parts"][1]["results"] == {"a": 1} and result["schema"] == gpu.SCHEMA
    assert "Fused on this GPU" in printed and "no tool" in printed and "1.50" in printed


def test_all_parts_fit_into_the_time(tmp_path):
    seen = []
    made_up = tuple(Part(str(n), 50, lambda place: (seen.append(place.seconds), Outcome(OK, ""))[1]) for n in range(3))
    rows = gpu.run_all(tmp_path, made_up, seconds=30)
    assert len(rows) == 3 and max(seen) <= 30
    rows = gpu.run_all(tmp_path, made_up, seconds=5)
    assert [row["status"] for row in rows] == [NOT_RUN] * 3 and len(seen) == 3
    assert gpu.SECONDS < 8 * 60 and len({part.name for part in gpu.PARTS}) == len(gpu.PARTS)


def test_commands_are_logged_and_ended(place):
    assert place.run(*prints("hello")).strip() == "hello"
    with pytest.raises(RuntimeError, match="exit status 3: bad luck"):
        place.run(*prints("bad luck", 3))
    started = time.monotonic()
    sleeper = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with pytest.raises(RuntimeError, match="ended after 2 s"):
        Place(place.out, place.scratch, 2.0).run(sys.executable, "-c", sleeper)
    assert time.monotonic() - started < 30
    log = (place.out / "gpu.log").read_text()
    assert "hello" in log and "bad luck" in log and log.count("$ ") == 3


def test_the_benchmark_s_rows_become_figures(monkeypatch, place):
    row = {
        "suite": "step",
        "name": "refiner",
        "speedup": {"eager": 4.0, "strong": 1.25},
        "timings": {"fused": {"median": 0.001}},
        "memory": {"fused": 1, "eager": 2, "compile": None, "strong": 2},
    }
    wrong = {"suite": "step", "name": "other", "failed": ["output: error 1"]}
    left = {"suite": "step", "name": "last", "not_run": "the budget was spent"}
    monkeypatch.setattr(parts, "_rows", lambda *a: [row, left])
    outcome = parts.benchmark("step", "bf16")(place)
    assert (outcome.status, outcome.line) == (OK, "1 of 2 cases measured")
    assert outcome.figures == [["refiner", "bf16", "1000", "4.00", "-", "1.25", "50%"]]
    monkeypatch.setattr(parts, "_rows", lambda *a: [row, wrong])
    outcome = parts.benchmark("step", "bf16")(place)
    assert outcome.status == FAILED and "other: output: error 1" in outcome.line and len(outcome.figures) == 1


def test_the_benchmark_is_told_its_budget(monkeypatch, place):
    """The command line is one that python -m benchmarks takes."""
    commands = []

    def run(self, *words, env=None):
        commands.append(cli.parse(Arguments, words[3:], prog="benchmarks", description=""))
        Path(words[words.index("--json") + 1]).write_text('{"rows": []}')
        return ""

    monkeypatch.setattr(Place, "run", run)
    for part in gpu.PARTS:
        if part.name.startswith(("steps", "operators", "roofline")):
            assert part.run(place).status == FAILED  # no rows
    assert {a.suite for a in commands} == {"ops", "step", "predict"} and {a.device for a in commands} == {"cuda"}
    assert all(0 < a.budget < 20 for a in commands if a.suite != "predict") and sum(a.autotune for a in commands) == 1


def test_a_missing_sanitizer(monkeypatch, place):
    monkeypatch.setattr(parts, "sanitizer", lambda: None)
    assert parts.sanitized("memcheck")(place).status == NOT_RUN


def test_the_sanitizer_is_found(monkeypatch, tmp_path, place):
    tool = tmp_path / "compute-sanitizer" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho $PYTORCH_NO_CUDA_MEMORY_CACHING $2\necho ========= ERROR SUMMARY: 0 errors\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert parts.sanitizer() == str(tool)
    outcome = parts.sanitized("racecheck")(place)
    assert (outcome.status, outcome.line) == (OK, "ERROR SUMMARY: 0 errors")
    assert "1 racecheck" in (place.out / "gpu.log").read_text()


@pytest.mark.parametrize("spec", _spec.specs().values(), ids=_spec.specs())
def test_small_samples_for_the_sanitizer(spec):
    samples = sanitize.smallest(spec)
    assert 0 < len(samples) <= sanitize.SAMPLES and all(spec.flops(s) < 1e9 for s in samples)


@pytest.fixture
def few_avatars_and_no_dali(monkeypatch):
    monkeypatch.setattr(train, "_has_dali", lambda: False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # importing it fails
    read = train.read_avatars
    monkeypatch.setattr(train, "read_avatars", lambda folder, size: read(folder, size, count=12))


def test_training_without_dali(few_avatars_and_no_dali, monkeypatch, tmp_path):
    """The whole run on the CPU, on a few avatars decoded by Pillow."""
    monkeypatch.setattr(train, "TRIED", 4)
    small = ["--resolution", "16", "--model", "A", "--filters", "8", "--hidden", "8", "--batch-size", "4"]
    trained = train.train(tmp_path, 0.01, ["--device", "cpu", *small], tell=lambda _: None)
    assert "Pillow" in trained["loader"] and trained["steps"] >= 4 and trained["images_per_s"] > 0
    assert trained["million_steps_minutes"] == pytest.approx(1e6 * 4 / trained["images_per_s"] / 60)
    assert Path(trained["samples"]).is_file() and trained["last"]["step"] == trained["steps"]


def test_pictures_decoded_by_pillow_are_the_avatars(few_avatars_and_no_dali, tmp_path):
    config = dataclasses.replace(RefinerConfig(), resolution=16, batch_size=2, device="cpu")
    loader = train.open_images(config, tmp_path)
    expected, _ = avatars.render(0, 0, "photo", 16)
    shown = loader.fixed(12).images[0].permute(1, 2, 0).add(1).mul(127.5)
    assert (shown - torch.from_numpy(expected)).abs().mean() < 8  # JPEG
    assert loader.next().images.shape == (2, 3, 16, 16) and "Pillow" in loader.describe()
