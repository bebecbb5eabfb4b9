"""Models that come with Kiln: found by name, listed, their cards printed; what is missing or altered is said."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import engine
from engine import export, models, refine
from engine.errors import InputError
from engine.inference import exported, exporting
from engine.systems.registry import SYSTEMS, config_class
from tests.support.tiny_run import command, make_run

CARD = """---
library_name: kiln-engine
---

# tiny-b

Makes photos of renders. Trained on nothing.

## Licence
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped models with one in it, tiny-b."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    make_run(tmp_path / "run")
    assert command(export.main, tmp_path / "run", folder / "tiny-b", "--dtype", "fp16", "--all-networks") == 0
    (folder / "tiny-b" / "README.md").write_text(CARD)
    monkeypatch.setattr(exported, "SHIPPED", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_name_stands_for_the_model(folder: Path, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(engine.load("tiny-b")(images), engine.load(folder / "tiny-b")(images))
    # a run of that name in the current folder comes first
    make_run(tmp_path / "tiny-b", filters=3)
    assert engine.load("tiny-b").generator.first.weight.shape[0] == 3


def test_refine_takes_a_name(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (90, 120, 60)).save(tmp_path / "a.png")
    assert command(refine.main, "tiny-b", tmp_path / "a.png", tmp_path / "out.png") == 0
    assert Image.open(tmp_path / "out.png").size == (32, 32)


def test_models_are_listed_with_what_they_do(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(models.main) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.split()[:3] == ["tiny-b", "refiner", "32x32"] and first.endswith("Makes photos of renders")
    assert "kiln refine NAME INPUT OUTPUT" in last
    assert command(models.main, "tiny-b") == 0
    assert capsys.readouterr().out == CARD


@pytest.mark.parametrize("main, words", [(refine.main, ("a.png", "b.png")), (models.main, ())])
def test_an_unknown_name_lists_those_there_are(folder: Path, capsys: pytest.CaptureFixture, main, words) -> None:
    Image.new("RGB", (40, 40)).save("a.png")
    assert command(main, "tiny-c", *words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "tiny-c" in said and "the shipped models are tiny-b" in said


def test_without_any_models(folder: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.rmtree(folder / "tiny-b")
    assert command(models.main) == 0
    assert "no trained model comes with this version" in capsys.readouterr().out
    with pytest.raises(InputError, match="no shipped model has this name; this version ships no models"):
        engine.load("tiny-b")


def test_a_path_that_is_missing_is_no_name(folder: Path) -> None:
    with pytest.raises(InputError, match="runs/tiny-b does not exist; give a run folder"):
        engine.load("runs/tiny-b")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "model.safetensors was altered"),
        (lambda f: (f / "config.json").write_text("{}"), "is no exported model"),
    ],
)
def test_a_damaged_model_is_said_in_a_line(folder: Path, capsys: pytest.CaptureFixture, damage, says: str) -> None:
    damage(folder / "tiny-b")
    Image.new("RGB", (40, 40)).save("a.png")
    assert command(refine.main, "tiny-b", "a.png", "b.png") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said and "install Kiln again" in said
    assert not Path("b.png").exists()


def test_an_altered_card_does_not_matter_and_a_missing_one_is_said(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "tiny-b" / "README.md").unlink()
    assert engine.load("tiny-b") is not None
    assert command(models.main, "tiny-b") == 2
    assert "the model card of tiny-b cannot be read" in capsys.readouterr().err


def test_a_copy_elsewhere_is_an_export_like_others(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "tiny-b", tmp_path / "copy")
    saved = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert saved["config"]["filters"] == 4 and "other_networks_sha256" in saved
    (tmp_path / "copy" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no checkpoint"):
        engine.load(tmp_path / "copy")


def test_what_a_model_was_started_from_is_told_by_name_alone(folder: Path, tmp_path: Path) -> None:
    """Where runs lay on the machine that trained is nobody's business."""
    for name, init, told in (("own", str(tmp_path / "run"), None), ("named", "tiny-b", "tiny-b")):
        make_run(tmp_path / name, init=init)
        assert command(export.main, tmp_path / name, tmp_path / "out" / name) == 0
        saved = (tmp_path / "out" / name / "config.json").read_text()
        assert json.loads(saved)["config"].get("init") == told and str(tmp_path) not in saved


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_field_that_is_a_path_is_published(system: str) -> None:
    fields = {field.name for field in dataclasses.fields(config_class(system)) if "Path" in str(field.type)}
    assert fields and fields <= set(exporting._LEFT_OUT)
