"""ablate: rows are the runs that train would make, are measured on the same images, and are not trained twice."""

import csv
import importlib
import json
import os
import shutil
import signal

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from engine import ablate, checkpoint, evaluate, train
from engine.ablation import running as ablation
from engine.ablation import table as ablation_table
from engine.config import saved_fields
from engine.data import avatars
from engine.data.opening import AVATAR_SEED
from engine.evaluation.measures import panels
from engine.systems import registry
from engine.systems.registry import config_class
from engine.training.loop import Trainer
from tests.support.checkpoint_reads import count_reads
from tests.support.data_images import write_manifest_set, write_pictures
from tests.support.evaluation_fakes import SYSTEMS as FAKES
from tests.support.packages import needs
from tests.support.tiny_run import command
from tests.support.training_fakes import tiny_config

needs_measures = needs("torchmetrics", "cv2")
needs_all = needs("torchmetrics", "cv2", "nvidia.dali")

TINY = ("--eager", "--steps", 2, "--batch-size", 2, "--filters", 2, "--hidden", 4, "--threads", 1, "--sample-every", 0)


@pytest.fixture(scope="module", autouse=True)
def no_reports():
    """No run writes a report: its charts would take most of the time, and test_report.py tests them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.training.report.write", lambda run_dir: None)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablate")
    write_pictures(folder / "data", 5, width=64, height=64)
    write_pictures(folder / "eval", 3, width=70, height=64)
    return folder


def words(folder, out, *more):
    base = ("--system", "refiner", "--data", folder / "data", "--eval-data", folder / "eval", "--out", folder / out)
    return (*base, *TINY, *more)


@pytest.fixture(scope="module")
def done(folder):
    assert command(ablate.main, *words(folder, "done")) == 0
    return folder


def table_of(folder, out):
    return json.loads((folder / out / "table.json").read_text())


def weights(run):
    return safetensors.torch.load_file(checkpoint.latest(run) / "weights.safetensors")


@needs_all
def test_every_row_is_the_run_that_train_makes(done):
    for label in "abc":
        alone = done / f"alone-{label}"
        status = command(
            train.main, "--system", "refiner", "--data", done / "data", "--model", label.upper(), "--out", alone, *TINY
        )
        assert status == 0
        found, expected = weights(done / "done" / label), weights(alone)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    configs = [checkpoint.load(done / "done" / label).config for label in "abc"]
    assert [config.inject for config in configs] == [(8,), (8, 16), (8, 16, 32)]


@needs_all
def test_the_table_has_what_evaluate_measures(done):
    found = table_of(done, "done")
    assert list(found["measures"]) == list(found["rows"]) == ["A", "B", "C"]
    assert (found["system"], found["steps"], found["seed"], found["images"]) == ("refiner", 2, 0, 3)
    out = done / "evaluated"
    assert command(evaluate.main, done / "done" / "b", "--data", done / "eval", "--out", out, "--eager") == 0
    alone = json.loads((out / "metrics.json").read_text())
    for name in ("refined", "input", "original"):
        assert found["measures"]["B"][name] == alone[name]
    assert all(found["units"][key] for key in found["measures"]["A"]["refined"])
    rows = list(csv.DictReader((done / "done" / "table.csv").open()))
    assert [row["row"] for row in rows] == ["A", "B", "C"]
    for row in rows:
        assert float(row["l1"]) == found["measures"][row["row"]]["refined"]["l1"]["mean"]
        assert float(row["faces detected (%)"]) == 0
    markdown = (done / "done" / "table.md").read_text()
    assert markdown.count("\n|") == 4 and "| A | " in markdown and "FID: skipped" in markdown
    with Image.open(done / "done" / "figure.png") as image:
        image.load()
        assert image.width > 800 and image.height > 800


@needs_all
def test_rows_that_are_done_are_not_trained_again(done, monkeypatch, capsys):
    def refuse(*args):
        raise AssertionError("trained again")

    before = table_of(done, "done")
    monkeypatch.setattr(ablation, "train", refuse)
    moved = done / "moved"  # in this place no checkpoint has been hashed yet
    shutil.copytree(done / "done", moved)
    counts = count_reads(monkeypatch)
    assert command(ablate.main, *words(done, "moved")) == 0
    assert counts == {"hashed": 3 * len(checkpoint.FILES), "weights": 3, "state": 3}
    assert capsys.readouterr().out.count("done before") == 3
    assert command(ablate.main, *words(done, "done")) == 0
    assert table_of(done, "done") == before
    assert capsys.readouterr().out.count("done before") == 3


@needs_all
def test_interrupted_it_goes_on_to_the_same_result(done, monkeypatch):
    """After Ctrl-C in the second row the same command, given again, ends with the table of an unbroken run."""
    real, steps = Trainer._one_step, []

    def one_step(trainer):
        real(trainer)
        steps.append(trainer.run_dir.name)
        if steps == ["a", "a", "b"]:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_one_step", one_step)
    assert command(ablate.main, *words(done, "halted")) == 130
    assert not (done / "halted" / "table.json").exists() and not (done / "halted" / "c").exists()
    assert command(ablate.main, *words(done, "halted")) == 0
    assert steps == ["a", "a", "b", "b", "c", "c"]
    assert table_of(done, "halted")["measures"] == table_of(done, "done")["measures"]


@needs_all
def test_more_steps_go_on_and_fewer_are_refused(done, capsys):
    assert command(ablate.main, *words(done, "more", "--rows", "B")) == 0
    assert command(ablate.main, *words(done, "more", "--rows", "B", "--steps", 3)) == 0
    assert table_of(done, "more")["steps"] == 3 and list(table_of(done, "more")["rows"]) == ["B"]
    assert checkpoint.load(done / "more" / "b").step == 3
    capsys.readouterr()
    assert command(ablate.main, *words(done, "more", "--rows", "B")) == 2
    assert "has done 3 steps" in capsys.readouterr().err


@needs_all
def test_a_row_whose_process_was_killed_at_once_starts(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on host since 2026-01-01 00:00:00\n")
    (tmp_path / ".writing-config").touch()
    assert ablation.steps_done(ablation.Row("row", tiny_config(out=tmp_path), {})) == 0


def test_bad_input(done, capsys, tmp_path):
    (tmp_path / "other" / "a").mkdir(parents=True)
    (tmp_path / "other" / "a" / "file").write_text("x")
    short = ("--system", "refiner", "--out", tmp_path / "out", *TINY)
    for given, message in [
        (("--system", "nothing", "--out", tmp_path), "unknown system 'nothing'"),
        (("--out", tmp_path / "out"), "missing --system"),
        (words(done, "done", "--lr", 0.5), "was begun with --lr 0.001, not 0.5"),
        (words(done, "new", "--model", "A"), "--model is what the ablation of refiner varies"),
        (words(done, "new", "--rows", "A,D"), "no row 'D'; the rows are: A, B, C"),
        (words(done, "new", "--resume"), "--resume is not for ablate"),
        (words(done, "new", "--resolution", 16), "row 'B'"),
        (words(done, "new", "--gama", 1), "did you mean --gamma"),
        (words(done, "new", "--limit", -1), "--limit"),
        (words(done, "new", "--seeds", 0), "--seeds must be at least 1, got 0"),
        (words(done, "new", "--inception-weights", tmp_path / "none.pth"), "No such file"),
        (words(done, "new")[:4] + words(done, "new")[6:], "--eval-data PATH"),
        ((*short, "--eval-data", tmp_path / "none"), "there is no folder or zip"),
        ((*short[:2], "--out", tmp_path / "other", *TINY, "--eval-data", done / "eval"), "not the folder of a run"),
    ]:
        assert command(ablate.main, *given) == 2, given
        printed = capsys.readouterr().err
        assert message in printed and printed.count("error:") == 1, printed
    assert not (done / "new").exists() and not (tmp_path / "out").exists()
    assert (done / "done" / "table.json").exists()  # the refused command has removed nothing


@needs_measures
def test_a_system_without_an_ablation_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(registry.SYSTEMS, "fake_noise", FAKES["fake_noise"])
    monkeypatch.delattr("tests.support.evaluation_fakes.ABLATION")
    assert command(ablate.main, "--system", "fake_noise", "--out", tmp_path / "out", "--eager") == 2
    assert "fake_noise has no ablation; these have one: refiner" in capsys.readouterr().err


@pytest.mark.parametrize("name, rows", [("refiner", 3), ("ggb", 6), ("reenact", 4)])
def test_the_rows_of_the_papers_differ_in_their_fields_alone(name, rows, tmp_path):
    module = importlib.import_module(registry.system_class(name).__module__)
    arguments = ablation.AblateOptions(system=name, out=tmp_path)
    planned = ablation.plan(arguments, ["--eager", "--preset", "paper", "--resolution", "64"])
    assert [row.label for row in planned] == list(module.ABLATION) and len(planned) == rows
    assert len({row.config.out for row in planned}) == rows
    varied = {field for fields in module.ABLATION.values() for field in fields}
    for row in planned:
        for field, value in module.ABLATION[row.label].items():
            assert getattr(row.config, field) == value
        for field in saved_fields(type(row.config)):
            if field not in varied | {"out", "inject"}:
                assert getattr(row.config, field) == getattr(planned[0].config, field), field


@needs_all
def test_generators_are_compared_on_the_same_noise(done, monkeypatch):
    monkeypatch.setitem(registry.SYSTEMS, "fake_noise", FAKES["fake_noise"])
    given = ("--system", "fake_noise", "--data", done / "data", "--eval-data", done / "eval", "--out", done / "noise")
    assert command(ablate.main, *given, "--eager", "--threads", 1, "-n", 4, "--lr", 0.1) == 0
    found = table_of(done, "noise")
    assert list(found["rows"]) == ["plain", "half"] and found["rows"]["half"]["fields"] == {"scale": 0.5}
    measures = [found["measures"][label]["generated"] for label in found["rows"]]
    assert all(one["nearest"]["mean"] > 0 and one["swd"]["mean"] > 0 for one in measures)
    assert measures[0]["nearest"] != measures[1]["nearest"]
    assert found["training"] == str(done / "data") and found["images"] == 4


@needs_all
def test_the_test_split_is_measured_on_where_the_training_split_is_trained_on(tmp_path, capsys, monkeypatch):
    """Clips of a manifest with splits: two test clips of three frames make six samples."""
    monkeypatch.setitem(registry.SYSTEMS, "fake_drive", FAKES["fake_drive"])
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)) for _ in range(12)]
    data = write_manifest_set(tmp_path / "set", pictures, rng.uniform(2, 20, (12, 68, 2)))
    rows = list(csv.DictReader((data / "manifest.csv").open()))
    with (data / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "video", "frame", "split"])
        writer.writeheader()
        for i, row in enumerate(rows):
            writer.writerow({**row, "video": i // 3, "frame": i % 3, "split": "train" if i < 6 else "test"})
    given = ("--system", "fake_drive", "--data", data, "--out", tmp_path / "out", "--eager", "--threads", 1)
    assert command(ablate.main, *given) == 2
    assert "--split train" in capsys.readouterr().err
    assert command(ablate.main, *given, "--split", "train") == 0
    found = table_of(tmp_path, "out")
    assert found["images"] == 6 and set(found["measures"]["plain"]) == {"result", "source", "target"}
    assert checkpoint.load(tmp_path / "out" / "plain").config.split == "train"


@needs_measures
def test_without_data_other_avatars_are_measured_on(tmp_path, monkeypatch):
    """The test images are avatars of other people, several frames of each where a system needs pairs; rendered once."""
    monkeypatch.setattr(ablation, "HELD_OUT", 4)
    monkeypatch.setattr(ablation, "FRAMES", 2)
    for name, needed in [("refiner", 4), ("reenact", 2), ("simgan", 4)]:
        arguments = ablation.AblateOptions(system=name, out=tmp_path / name)
        config = config_class(name)(resolution=16)
        place, split = ablation.held_out(config, arguments)
        assert split == "" and place.name == ("game" if name == "simgan" else "photo")
        images = sorted((place / "images").iterdir())
        assert len(images) == 4 and len({path.name[:7] for path in images}) == needed
        before = images[0].stat().st_mtime_ns
        assert ablation.held_out(config, arguments) == (place, split)
        assert images[0].stat().st_mtime_ns == before
    shown = np.asarray(Image.open(images[0]).convert("RGB")).astype(int)
    distances = [np.abs(shown - avatars.render(0, 0, "game", 128, seed)[0]).mean() for seed in (AVATAR_SEED, 1)]
    assert distances[1] < 5 < distances[0]


def test_the_table_in_its_forms():
    results = {
        "full": [{"l1": {"mean": 0.125, "std": 1.0}, "detection_rate": 0.5, "fid": "skipped: X"}],
        "without": [{"l1": {"mean": 0.25, "std": 1.0}}],
    }
    table = ablation_table.columns(results)
    assert table == {"l1": {"full": [0.125], "without": [0.25]}, "faces detected (%)": {"full": [50.0]}}
    labels = list(results)
    assert (
        ablation_table.comma_separated(table, labels) == "row,l1,faces detected (%)\nfull,0.125,50.0\nwithout,0.25,\n"
    )
    text = ablation_table.text(table, labels, ["fid: skipped: X"]).splitlines()
    assert [line.split() for line in text[1:]] == [
        ["full", "0.125", "50"],
        ["without", "0.25"],
        ["fid:", "skipped:", "X"],
    ]
    assert len({len(line) for line in text[:3]}) == 1  # columns are aligned at the right
    assert "| without | 0.25 |  |" in ablation_table.markdown(table, labels, [])


def test_the_table_of_several_seeds_has_means_and_spreads():
    """Of 1, 2, 3 the mean is 2 and the sample standard deviation 1."""
    results = {
        "full": [{"l1": {"mean": value}, "detection_rate": 0.5} for value in (1.0, 2.0, 3.0)],
        "without": [{"l1": {"mean": 4.0}}, {"l1": {"mean": 4.0}}, {"l1": {"mean": 4.0}}],
    }
    table = ablation_table.columns(results)
    assert "| full | 2 ± 1 | 50 ± 0 |" in ablation_table.markdown(table, list(results), [])
    csv_lines = ablation_table.comma_separated(table, list(results)).splitlines()
    assert csv_lines == ["row,l1,l1 spread,faces detected (%),faces detected (%) spread", "full,2.0,1.0,50.0,0.0",
                         "without,4.0,0.0,,"]  # fmt: skip
    bars = {panel["title"]: panel["bars"] for panel in panels(results, ablation_table.over_seeds)}
    assert bars == {"L1 (lower is better)": {"full": (2.0, 1.0), "without": (4.0, 0.0)},
                    "faces detected, %": {"full": (50.0, 0.0)}}  # fmt: skip


def test_the_bars_of_one_seed_have_the_deviation_between_images():
    results = {"full": [{"l1": {"mean": 0.125, "std": 1.0}}], "without": [{"l1": {"mean": 0.25, "std": 2.0}}]}
    (panel,) = panels(results, ablation_table.over_seeds)
    assert panel["bars"] == {"full": (0.125, 1.0), "without": (0.25, 2.0)}


@needs_all
def test_seeds_train_every_row_anew_and_one_seed_is_the_first_of_them(done, capsys):
    """Rows of an ablation of one seed, trained before, are the first of two."""
    assert command(ablate.main, *words(done, "seeds", "--rows", "A")) == 0
    capsys.readouterr()
    assert command(ablate.main, *words(done, "seeds", "--rows", "A,C", "--seeds", 2)) == 0
    assert capsys.readouterr().out.count("done before") == 1
    found = table_of(done, "seeds")
    assert list(found["rows"]) == ["A", "C"] and list(found["seeds"]) == ["0", "1"]
    assert [checkpoint.load(done / "seeds" / name).config.seed for name in ("a", "c", "a-seed-1", "c-seed-1")] == [
        0, 0, 1, 1]  # fmt: skip
    values = [found["seeds"][seed]["A"]["refined"]["l1"]["mean"] for seed in "01"]
    assert values[0] == found["measures"]["A"]["refined"]["l1"]["mean"] != values[1]
    (row, _) = csv.DictReader((done / "seeds" / "table.csv").open())
    assert float(row["l1"]) == pytest.approx(sum(values) / 2)
    assert float(row["l1 spread"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert "± the standard deviation between them" in (done / "seeds" / "table.md").read_text()
