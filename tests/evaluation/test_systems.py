"""evaluate on systems that generate, drive and refine: what each is measured by, with stand-ins that are known."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from engine import checkpoint, evaluate
from engine.evaluation import fidelity, identity
from engine.evaluation.identity import SKIPPED
from engine.systems import registry
from engine.systems.kinds import GENERATE
from tests.support.data_images import picture, write_manifest_set, write_pictures
from tests.support.evaluation_fakes import (
    SYSTEMS,
    FakeDrive,
    FakeDriveConfig,
    FakeNoise,
    FakeNoiseConfig,
    FakeRefine,
    FakeRefineConfig,
    MeanColour,
    make_run,
)
from tests.support.packages import needs
from tests.support.tiny_run import command
from tests.support.training_fakes import tiny_config

pytestmark = needs("torchmetrics", "cv2", "nvidia.dali")

SHAPE = {"resolution": 16, "fused": False, "device": "cpu"}


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    for name, place in SYSTEMS.items():
        monkeypatch.setitem(registry.SYSTEMS, name, place)


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def pixels(seed: int) -> np.ndarray:
    """What a loader makes of picture(seed, 16, 16), in [-1, 1], (3, 16, 16)."""
    return np.asarray(picture(seed, 16, 16)).transpose(2, 0, 1) / 127.5 - 1


def clips(folder, count=6, splits=False):
    """Clips of two frames; of every third the split is test."""
    rng = np.random.default_rng(0)
    pictures = [picture(seed, 16, 16) for seed in range(2 * count)]
    data = write_manifest_set(folder, pictures, rng.uniform(2, 14, (2 * count, 68, 2)))
    rows = list(csv.DictReader((data / "manifest.csv").open()))
    with (data / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "video", "frame", *(["split"] if splits else [])])
        writer.writeheader()
        for i, row in enumerate(rows):
            split = {"split": "train" if i // 2 % 3 else "test"} if splits else {}
            writer.writerow({**row, "video": i // 2, "frame": i % 2, **split})
    return data


# generators


def test_a_generator_that_memorises_shows(tmp_path):
    """Its weights make the mirror image of training image 3 of any noise."""
    data = write_pictures(tmp_path / "data", 5, width=16, height=16)
    held_out = write_pictures(tmp_path / "held-out", 3, width=16, height=20)
    image = torch.from_numpy(pixels(3)).float().flip(2).clamp(-0.98, 0.98)
    run = make_run(tmp_path / "run", FakeNoise, FakeNoiseConfig(data=data, **SHAPE), layer_weight=torch.zeros(1),
                   layer_bias=image.atanh().flatten())  # fmt: skip
    assert command(evaluate.main, run, "--data", held_out, "-n", 4, "--out", tmp_path / "out") == 0
    found = metrics(tmp_path / "out")
    assert found["generated"]["nearest"]["mean"] < 0.02 < found["real"]["nearest"]["least"]
    assert (found["images"], found["real_images"], found["training_images"]) == (4, 3, 5)
    assert found["training"] == str(data)
    with Image.open(tmp_path / "out" / "neighbours.png") as grid:
        rows = np.asarray(grid).reshape(2, -1, grid.width, 3).astype(int)
        assert np.abs(rows[0, :, 128:] - rows[1, :, 128:]).mean() < 8  # copy and original, below each other


def test_photos_of_strangers_say_how_close_a_face_comes_by_chance(tmp_path, monkeypatch):
    """Real images are recognised too where they are others than those trained on."""
    monkeypatch.setattr(identity, "recogniser", MeanColour)
    trained_on = write_pictures(tmp_path / "trained", 4, width=16, height=16)
    others = write_pictures(tmp_path / "others", 5, width=16, height=16)
    run = make_run(tmp_path / "run", FakeNoise, FakeNoiseConfig(data=trained_on, **SHAPE))
    given = (run, "-n", 6, "--training", trained_on)
    assert command(evaluate.main, *given, "--data", others, "--out", tmp_path / "out") == 0
    found = metrics(tmp_path / "out")
    counted = ("images", "training_faces", "not_detected")
    assert [found["real"]["recognition"][key] for key in counted] == [5, 4, 0]
    least = found["real"]["recognition"]["least"]
    assert least == 0 and found["generated"]["recognition"]["copied"] == 0  # four of the strangers are trained on
    assert command(evaluate.main, *given, "--data", trained_on, "--out", tmp_path / "same") == 0
    same = metrics(tmp_path / "same")
    assert "recognition" not in same["real"] and "copied" not in same["generated"]["recognition"]


def test_what_a_generator_is_measured_by(tmp_path, capsys):
    data = write_pictures(tmp_path / "data", 5, width=16, height=16)
    run = make_run(tmp_path / "run", FakeNoise, FakeNoiseConfig(data=tmp_path / "gone", **SHAPE))
    given = (run, "--data", data, "-n", 7, "--batch-size", 3)
    assert command(evaluate.main, *given, "--out", tmp_path / "out") == 0
    assert "is gone: copies are looked for in --data" in capsys.readouterr().err
    found = metrics(tmp_path / "out")
    generated = found["generated"]
    assert generated["fid"] == generated["inception_score"] == fidelity.NO_WEIGHTS
    assert generated["recognition"] == SKIPPED or generated["recognition"]["images"] == 7
    assert set(generated["swd"]) == {"16", "mean"} and generated["detection_rate"] == 0
    # real images are compared with the other images of the same set, not with themselves
    distances = [
        min(np.sqrt(((pixels(i) - other) ** 2).mean()) for j in range(5) if j != i
            for other in (pixels(j), pixels(j)[:, :, ::-1]))
        for i in range(5)
    ]  # fmt: skip
    assert found["real"]["nearest"]["mean"] == pytest.approx(np.mean(distances), rel=1e-3)
    assert all(found["units"][key] for key in generated)
    # the noise is the seed's, whatever the batches
    assert command(evaluate.main, *given[:-1], 7, "--out", tmp_path / "same") == 0
    same = metrics(tmp_path / "same")["generated"]
    for name in ("swd", "nearest"):
        assert same[name] == pytest.approx(generated[name], rel=1e-4)
    assert command(evaluate.main, *given, "--seed", 1, "--out", tmp_path / "other") == 0
    assert metrics(tmp_path / "other")["generated"]["nearest"] != generated["nearest"]
    assert (tmp_path / "out" / "examples.png").exists() and (tmp_path / "out" / "bars.png").exists()


# driven systems


def test_what_copies_its_source_is_as_good_as_the_source(tmp_path, capsys):
    data = clips(tmp_path / "set")
    run = make_run(tmp_path / "run", FakeDrive, FakeDriveConfig(**SHAPE))
    assert command(evaluate.main, run, "--data", data, "--out", tmp_path / "out") == 0
    found = metrics(tmp_path / "out")
    assert found["images"] == 12  # each frame is the source of the other one of its clip
    errors = [np.abs(pixels(i) - pixels(i ^ 1)).mean() for i in range(12)]
    for name in ("result", "source"):
        assert found[name]["l1"]["mean"] == pytest.approx(np.mean(errors), rel=1e-6)
        squared = [((pixels(i) - pixels(i ^ 1)) ** 2).mean() for i in range(12)]
        assert found[name]["psnr"]["mean"] == pytest.approx(np.mean([10 * math.log10(4 / s) for s in squared]))
    assert found["result"]["ssim"] == found["source"]["ssim"] and "l1" not in found["target"]
    for key in ("identity", "landmark_error"):
        assert found["result"][key] == SKIPPED or "pairs" in found["result"][key] or "images" in found["result"][key]
    printed = capsys.readouterr().out
    assert "landmark error" in printed and "FID" in printed and "--inception-weights" in printed
    for name in ("examples", "heatmaps", "bars"):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            image.load()


def test_a_split_of_the_data(tmp_path, capsys):
    data = clips(tmp_path / "set", splits=True)
    run = make_run(tmp_path / "run", FakeDrive, FakeDriveConfig(**SHAPE))
    assert command(evaluate.main, run, "--data", data, "--split", "test", "--limit", 3) == 0
    found = metrics(tmp_path / "run" / "evaluation" / "set-test-step_00000005")
    assert found["images"] == 3 and found["split"] == "test"
    assert command(evaluate.main, run, "--data", data, "--split", "val") == 2
    assert "its splits: test, train" in capsys.readouterr().err


def test_landmarks_are_measured_by_the_package_where_it_is(tmp_path, monkeypatch):
    """A stand-in that finds the same points in every image: the errors of result, source and target are known."""
    from engine.evaluation import driven

    monkeypatch.setattr(driven, "landmark_error", lambda images, points, targets: {"percent": float(len(images))})
    data = clips(tmp_path / "set", count=2)
    run = make_run(tmp_path / "run", FakeDrive, FakeDriveConfig(**SHAPE))
    assert command(evaluate.main, run, "--data", data, "--out", tmp_path / "out") == 0
    assert metrics(tmp_path / "out")["target"]["landmark_error"] == {"percent": 4.0}


# systems that refine synthetic images


def test_what_stays_of_a_refined_image(tmp_path):
    data = write_pictures(tmp_path / "synthetic", 4, width=16, height=16)
    real = write_pictures(tmp_path / "real", 9, width=16, height=18)
    run = make_run(tmp_path / "run", FakeRefine, FakeRefineConfig(**SHAPE))
    assert command(evaluate.main, run, "--data", data, "--out", tmp_path / "alone") == 0
    alone = metrics(tmp_path / "alone")
    halves = [np.round((pixels(i) / 2 + 1) * 127.5) / 127.5 - 1 for i in range(4)]
    expected = np.mean([np.abs(pixels(i) - half).mean() for i, half in enumerate(halves)])
    assert alone["refined"]["l1"]["mean"] == pytest.approx(expected, rel=1e-2)
    assert "l1" not in alone["input"]  # the input is its own original
    for key in ("swd", "fid", "inception_score"):
        assert "--real" in alone["refined"][key]
    given = ("--data", data, "--real", real)
    assert command(evaluate.main, run, *given, "--out", tmp_path / "out") == 0
    found = metrics(tmp_path / "out")
    assert found["refined"]["swd"]["mean"] > 0 and found["input"]["swd"]["mean"] > 0
    assert found["real_images"] == 4 and "detection_rate" in found["real"]
    assert found["refined"]["fid"] == fidelity.NO_WEIGHTS


def test_all_kinds_take_the_inception_file(tmp_path, monkeypatch):
    called = []

    def measures(results, reals, file, device, batch_size):
        called.append((len(results), len(reals), file.name))
        return {"inception_score": {"mean": 1.5, "std": 0.5}, "fid": 7.0}

    weights = tmp_path / "weights.pth"
    weights.write_text("x")
    monkeypatch.setattr(fidelity, "check_weights", lambda path: None)
    data = clips(tmp_path / "set", count=2)
    for kind, config in [(FakeNoise, FakeNoiseConfig), (FakeDrive, FakeDriveConfig), (FakeRefine, FakeRefineConfig)]:
        module = {"generate": "generated", "drive": "driven", "refine": "refined"}[kind.kind.name]
        monkeypatch.setattr(f"engine.evaluation.{module}.inception_measures", measures)
        run = make_run(tmp_path / kind.name, kind, config(data=data, **SHAPE))
        more = ("--real", data) if kind is FakeRefine else ("-n", 5) if kind is FakeNoise else ()
        given = (run, "--data", data, "--inception-weights", weights, "--out", run / "out", *more)
        assert command(evaluate.main, *given) == 0
        found = metrics(run / "out")
        result = next(found[name] for name in ("generated", "result", "refined") if name in found)
        assert result["fid"] == 7.0 and result["inception_score"]["mean"] == 1.5
    assert called == [(5, 4, "weights.pth"), (4, 4, "weights.pth"), (4, 4, "weights.pth")]


def test_bad_input(tmp_path, capsys):
    data = write_pictures(tmp_path / "data", 3, width=16, height=16)
    drive = make_run(tmp_path / "drive", FakeDrive, FakeDriveConfig(**SHAPE))
    noise = make_run(tmp_path / "noise", FakeNoise, FakeNoiseConfig(**SHAPE))
    (tmp_path / "file.pth").write_text("another network")
    for words, message in [
        ((drive, "--data", data), "no landmarks"),
        ((noise, "--data", data, "--real", data), "--real is for systems that refine images, not for fake_noise"),
        ((noise, "--data", data, "-n", 0), "-n at least 1"),
        (
            (noise, "--data", data, "--inception-weights", tmp_path / "none.pth"),
            "none.pth: cannot be read: No such file",
        ),
        ((noise, "--data", data, "--inception-weights", tmp_path / "file.pth"), "not the known file"),
        ((noise, "--data", data, "--training", tmp_path / "none"), "there is no folder or zip"),
        ((noise, "--data", data, "--split", "test"), "has no splits"),
    ]:
        assert command(evaluate.main, *words) == 2, words
        printed = capsys.readouterr().err
        assert message in printed and printed.count("error:") == 1, printed


@pytest.mark.parametrize("name", list(registry.SYSTEMS))
def test_every_system_can_be_measured(name, tmp_path):
    """Untrained, on clips of faces with 68 landmarks."""
    data = clips(tmp_path / "set", count=2)
    points = ("--points", "68") if name == "ggb" else ()
    config = tiny_config("--data", str(data), *points, system=name)
    system = registry.build(config, "cpu")
    checkpoint.save(tmp_path / "run", 5, system.weights(), system.state_dict(), config)
    assert command(evaluate.main, tmp_path / "run", "--data", data, "-n", 3, "--out", tmp_path / "out", "--eager") == 0
    found = metrics(tmp_path / "out")
    result = {"refine": "refined", "generate": "generated", "drive": "result"}[system.kind.name]
    assert found["system"] == name and 0 <= found[result]["detection_rate"] <= 1
    assert "nearest" in found[result] if system.kind is GENERATE else 0 < found[result]["l1"]["mean"] <= 2
