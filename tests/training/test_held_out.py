"""--hold-out, --eval-every, --best-by and --patience: what is measured, what is kept, and what the commands take."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import engine
from engine import checkpoint, evaluate, export, train
from engine.data import open_dataset
from engine.data.selection import held_out
from engine.errors import InputError
from engine.inference.trained import load_trained
from engine.systems.registry import build
from engine.training.held_out import Best
from engine.training.metrics import HELD_OUT
from tests.support.data_images import picture, write_manifest_set, write_pictures
from tests.support.packages import needs
from tests.support.tiny_run import command, make_run
from tests.support.training_fakes import tiny_config

pytest.importorskip("nvidia.dali")
needs_extras = needs("torchmetrics", "cv2")
TINY = ("--eager", "--filters", "2", "--hidden", "4", "--resolution", "16", "--batch-size", "4", "--threads", "1")
TINY += ("--device", "cpu", "--sample-every", "0", "--lr-schedule", "constant", "--hold-out", "4", "--eval-every", "2")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "photos", 32)


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@needs_extras
def test_the_best_step_is_kept_and_taken(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    flags = ("--best-by", "l1", "--steps", "9", "--checkpoint-every", "3", "--keep", "1", "--lr", "0.05")
    assert command(train.main, *TINY, "--data", photos, "--out", run, *flags) == 0
    measured = {row["step"]: row[HELD_OUT + "l1"] for row in rows(run) if HELD_OUT + "l1" in row}
    assert list(measured) == [2, 4, 6, 8, 9]
    best = min(measured, key=measured.get)
    said = capsys.readouterr().out
    assert "8 images" in said and "24 images" in said  # measured on, trained on
    assert f"best    step {best}, l1 {measured[best]:.4g} on held-out images: checkpoints/best" in said
    link = run / "checkpoints" / "best"
    assert os.readlink(link) == f"step_{best:08d}"
    kept = sorted(os.listdir(run / "checkpoints"))
    assert kept == sorted({"best", f"step_{best:08d}", "step_00000009"})
    assert load_trained(run).step == load_trained(link).step == best
    assert load_trained(run / "checkpoints" / "step_00000009").step == 9
    assert checkpoint.load(run).step == 9  # a resume goes on from the last step
    assert command(export.main, run, tmp_path / "exported") == 0
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(engine.load(tmp_path / "exported")(images), engine.load(link)(images))
    page = (run / "report.html").read_text()
    for name in ("SSIM", "L1", "sharpness", "sliced Wasserstein distance", "faces found"):
        assert f"Held-out images: {name}" in page


@needs_extras
def test_what_is_recorded_is_what_evaluate_measures(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert command(train.main, *TINY, "--data", photos, "--out", run, "--steps", "2") == 0
    assert command(evaluate.main, run, "--held-out", "--eager", "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["images"] == 8 and found["held_out"] is True
    last = rows(run)[-1]
    for name in ("l1", "psnr", "ssim", "swd", "sharpness", "detection_rate"):
        value = found["refined"][name]
        value = value["mean"] if isinstance(value, dict) else value
        assert last[HELD_OUT + name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


@needs_extras
def test_copies_are_looked_for_among_the_images_that_were_trained_on(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert command(train.main, *TINY, "--system", "began", "--data", photos, "--out", run, "--steps", "2") == 0
    assert command(evaluate.main, run, "--held-out", "--eager", "-n", "4", "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (found["real_images"], found["training_images"]) == (8, 24)
    assert found["real"]["nearest"]["least"] > 0  # none of them is among the others


@needs_extras
@pytest.mark.parametrize("system", ["began", "simgan", "reenact"])
def test_every_kind_of_system_is_measured(system: str, tmp_path: Path) -> None:
    pictures, points = [picture(i, 40, 40) for i in range(32)], np.random.default_rng(0).uniform(8, 32, (32, 68, 2))
    data = write_manifest_set(tmp_path / "set", pictures, points.astype(np.float32))
    manifest = (data / "manifest.csv").read_text().split()
    named = [f"{row},{number // 4},{number % 4}" for number, row in enumerate(manifest[1:])]
    (data / "manifest.csv").write_text("\n".join([manifest[0] + ",identity,frame", *named]) + "\n")
    config = tiny_config(system=system)
    words = ["--eager", "--system", system, "--data", str(data), "--resolution", "16", "--filters", "2"]
    words += ["--synthetic", str(data)] if hasattr(config, "synthetic") else []
    words += ["--vgg-width", "2"] if hasattr(config, "vgg_width") else []
    words += ["--batch-size", "2", "--threads", "1", "--steps", "2", "--hold-out", "4", "--eval-every", "1"]
    assert command(train.main, *words, "--out", tmp_path / "run") == 0
    expected = {"swd", "sharpness", "detection_rate"} | ({"ssim", "l1", "psnr"} if system != "began" else set())
    for row in rows(tmp_path / "run"):
        assert expected == {name.removeprefix(HELD_OUT) for name in row if name.startswith(HELD_OUT)}
    assert (tmp_path / "run" / "checkpoints" / "best").is_symlink()


@needs_extras
def test_patience_ends_the_run_and_a_resume_stays_ended(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    words = ("--data", photos, "--out", run, "--steps", "200", "--patience", "2", "--lr", "3")
    assert command(train.main, *TINY, *words) == 0
    said, last = capsys.readouterr().out, rows(run)[-1]["step"]
    assert last < 100 and "stopped after 2 measurements that were no better" in said
    assert command(train.main, "--resume", "--out", run) == 0
    assert rows(run)[-1]["step"] == last and "stopped after 2" in capsys.readouterr().out
    # with more patience it goes on
    assert command(train.main, "--resume", "--out", run, "--patience", "3") == 0
    assert rows(run)[-1]["step"] == last + 2


@needs_extras
def test_a_resumed_run_measures_as_one_that_was_not_interrupted(photos: Path, tmp_path: Path) -> None:
    words = ("--data", photos, "--checkpoint-every", "1")
    assert command(train.main, *TINY, *words, "--steps", "6", "--out", tmp_path / "whole") == 0
    assert command(train.main, *TINY, *words, "--steps", "3", "--out", tmp_path / "cut") == 0
    assert command(train.main, "--resume", "--steps", "6", "--out", tmp_path / "cut") == 0
    whole, cut = (
        {row["step"]: {name: row[name] for name in row if name.startswith(HELD_OUT)} for row in rows(tmp_path / name)}
        for name in ("whole", "cut")
    )
    assert all(cut[step] == whole[step] for step in (2, 4, 6))
    assert not any(
        name.startswith(HELD_OUT) for name in rows(tmp_path / "whole")[0] if rows(tmp_path / "whole")[0]["step"] == 1
    )
    for name in ("weights", "step"):
        a, b = (getattr(checkpoint.load(tmp_path / run), name) for run in ("whole", "cut"))
        assert a == b if name == "step" else all(torch.equal(a[key], b[key]) for key in a)


def test_a_damaged_best_checkpoint_is_said_and_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(make_run(tmp_path / "run", step=3), step=7)
    checkpoint.mark_best(run / "checkpoints" / "step_00000003")
    assert load_trained(run).step == 3
    (run / "checkpoints" / "step_00000003" / "weights.safetensors").write_bytes(b"")
    assert load_trained(run).step == 7
    said = capsys.readouterr().err
    assert "checkpoints/best: weights.safetensors is truncated" in said and said.count("\n") == 1
    checkpoint.mark_best(run / "checkpoints" / "step_00000007")
    assert os.readlink(run / "checkpoints" / "best") == "step_00000007"
    assert sorted(os.listdir(run / "checkpoints")) == ["best", "step_00000003", "step_00000007"]


def test_best_goes_by_its_measure() -> None:
    lower, higher = Best("swd"), Best("ssim")
    taken = [
        (lower.take({HELD_OUT + "swd": v}, s), higher.take({HELD_OUT + "ssim": v}, s)) for s, v in enumerate((2, 1, 3))
    ]
    assert taken == [(True, True), (True, False), (False, True)]
    assert (lower.step, lower.later, higher.step, higher.later) == (1, 1, 2, 0)
    assert not lower.take({HELD_OUT + "swd": float("nan")}, 9) and lower.later == 2
    other = Best("l1")
    other.load_state_dict(lower.state_dict())
    assert other.value is None  # another measure decides now


def test_images_of_noise_have_no_originals() -> None:
    system = build(tiny_config("--best-by", "ssim", system="began"), "cpu")
    with pytest.raises(InputError, match="--best-by ssim compares with originals, and began makes images of noise"):
        Best.of(system)
    assert Best.of(build(tiny_config(system="began"), "cpu")).by == "swd"
    assert Best.of(build(tiny_config(system="reenact"), "cpu")).by == "ssim"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval-every", "5"], "--eval-every needs images that are not trained on: add --hold-out 20"),
        (["--patience", "5"], "--patience counts measurements: add --eval-every"),
        (["--hold-out", "1"], "--hold-out 1 leaves nothing to train on"),
        (["--eval-split", "test", "--eval-every", "5"], "--split train --eval-split test"),
        (["--hold-out", "-1"], "--hold-out must not be negative"),
    ],
)
def test_options_that_cannot_work(flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_config(*flags)


@pytest.mark.parametrize("system", ["simgan", "cyclegan"])
def test_a_split_holds_out_photos_only(system: str) -> None:
    """The synthetic images have no splits: without --hold-out those that are measured would be trained on."""
    flags = ("--data", "photos", "--split", "train", "--eval-split", "test", "--eval-every", "5")
    with pytest.raises(InputError, match=r"--eval-split is of --data; .*: add --hold-out 20"):
        tiny_config(*flags, system=system)
    held = tiny_config(*flags, "--hold-out", "4", system=system)
    assert held.images(held=True) == {"split": "test"} and held.hold_out == 4


def test_too_few_images_to_hold_out(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one = write_pictures(tmp_path / "one", 1)
    assert command(train.main, *TINY, "--data", one, "--out", tmp_path / "run") == 2
    assert "leaves none to train on" in capsys.readouterr().err


def test_evaluate_needs_to_know_the_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(tmp_path / "run")
    for words, says in (
        ((), "--data PATH, or --held-out"),
        (("--held-out",), "was trained without --hold-out"),
        (("--held-out", "--split", "test"), "give one"),
    ):
        assert command(evaluate.main, run, *words) == 2
        assert says in capsys.readouterr().err


def test_people_clips_and_pairs_stay_together(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(0, 16, (24, 68, 2)).astype(np.float32)
    folder = write_manifest_set(tmp_path / "set", [picture(index) for index in range(24)], points)
    manifest = (folder / "manifest.csv").read_text().split()
    named = [f"{row},{number // 6},{number % 6 // 3},{number % 3}" for number, row in enumerate(manifest[1:])]
    (folder / "manifest.csv").write_text("\n".join([manifest[0] + ",person,video,frame", *named]) + "\n")
    images = open_dataset(folder, channels=3, resolution=16)
    people = images.identities if images.identities is not None else images.clips
    assert len(set(people.tolist())) == 4
    held, rest = (held_out(images, 3, held=held) for held in (True, False))
    assert len(held) + len(rest) == 24 and not {*held.paths} & {*rest.paths}
    by_name = dict(zip(images.paths, people.tolist(), strict=True))
    assert {by_name[name] for name in held.paths} == {0, 3}
    assert {by_name[name] for name in rest.paths} == {1, 2}
    assert held_out(images, 0, held=False) is images


def test_single_images_are_held_out_one_by_one(photos: Path) -> None:
    images = open_dataset(photos, channels=3, resolution=16)
    assert held_out(images, 5, held=True).paths == images.paths[::5]
    opened = open_dataset(photos, channels=3, resolution=16, hold_out=5)
    assert opened.paths == [name for number, name in enumerate(images.paths) if number % 5]
