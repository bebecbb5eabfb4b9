"""A checkpoint is written whole, and one that is not whole is refused."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from engine import checkpoint
from engine.checkpoint import latest, load, problem, save
from engine.errors import InputError
from engine.host import atomic_files
from tests.support.training_fakes import tiny_config

CONFIG = tiny_config()


def put(run: Path, step: int, keep: int = 3) -> Path:
    weights = {"generator.weight": torch.full((3, 4), float(step)), "ema.weight": torch.randn(2)}
    return save(run, step, weights, {"k": torch.tensor(0.1 * step), "random": (1, (2, 3), None)}, CONFIG, keep=keep)


def test_round_trip(tmp_path: Path) -> None:
    weights = {"a.w": torch.randn(3, 4).t(), "a.b": torch.randn(5)}
    state = {"moments": {0: {"step": torch.tensor(3.0)}}, "words": ["x", 1, 2.5, None, True]}
    path = save(tmp_path, 12, weights, state, CONFIG, {"steps": "command line"})
    assert path == tmp_path / "checkpoints" / "step_00000012"
    for found in (load(path), load(tmp_path)):
        assert (found.path, found.step) == (path, 12)
        assert all(torch.equal(found.weights[name], tensor) for name, tensor in weights.items())
        assert torch.equal(found.state["moments"][0]["step"], torch.tensor(3.0))
        assert found.state["words"] == state["words"]
        assert found.config.to_json() == CONFIG.to_json()
    saved = json.loads((path / "config.json").read_text())
    assert saved["steps"]["origin"] == "command line"
    assert sorted(os.listdir(path)) == ["config.json", "manifest.json", "state.pt", "weights.safetensors"]


def test_oldest_go_after_the_new_one_is_there(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 10):
        put(tmp_path, step, keep=2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_00000004", "step_00000010"]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip, empty, remove])
@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "config.json", "manifest.json"])
def test_damage_is_noticed_and_passed_over(tmp_path: Path, name: str, damage, capsys) -> None:
    good, bad = put(tmp_path, 1), put(tmp_path, 2)
    damage(bad / name)
    if name == "manifest.json" and damage is flip:
        (bad / name).write_text((bad / name).read_text().replace('"bytes": ', '"bytes": 1'))
    assert problem(good) is None and problem(bad)
    assert latest(tmp_path) == good
    told = capsys.readouterr().err
    assert str(bad) in told and told.count("\n") == 1
    with pytest.raises(InputError, match="cannot be used") as caught:
        load(bad)
    assert str(bad) in str(caught.value)
    assert load(tmp_path).step == 1


def test_a_damaged_checkpoint_is_written_again(tmp_path: Path) -> None:
    truncate(put(tmp_path, 2) / "state.pt")
    assert problem(put(tmp_path, 2)) is None


def test_a_damaged_later_checkpoint_costs_no_good_one(tmp_path: Path) -> None:
    put(tmp_path, 1)
    flip(put(tmp_path, 9) / "state.pt")
    put(tmp_path, 2, keep=2)
    assert latest(tmp_path).name == "step_00000002"
    assert (tmp_path / "checkpoints" / "step_00000001").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("fails_at", ["weights.safetensors", "state.pt", "config.json", "manifest.json"])
def test_a_failed_write_leaves_the_earlier_and_nothing_half(tmp_path, monkeypatch, fails_at, number) -> None:
    good = put(tmp_path, 1)
    write = checkpoint._write

    def failing(path: Path, data: bytes) -> None:
        if path.name == fails_at:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(number, os.strerror(number), str(path))
        write(path, data)

    monkeypatch.setattr(checkpoint, "_write", failing)
    with pytest.raises(OSError) as caught:
        put(tmp_path, 2)
    assert caught.value.errno == number
    assert os.listdir(tmp_path / "checkpoints") == [good.name]
    assert latest(tmp_path) == good


def test_a_crash_before_the_rename_is_not_believed_and_cleaned_up(tmp_path: Path, monkeypatch) -> None:
    good = put(tmp_path, 1)

    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(atomic_files.os, "rename", crash)
        patched.setattr(atomic_files.shutil, "rmtree", lambda *_, **__: None)  # the process is gone: nothing tidies up
        with pytest.raises(Crash):
            put(tmp_path, 2)
    assert len(os.listdir(tmp_path / "checkpoints")) == 2
    assert latest(tmp_path) == good
    put(tmp_path, 3)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_00000001", "step_00000003"]


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no checkpoint"):
        load(tmp_path)
    (tmp_path / "file.txt").write_text("hello")
    with pytest.raises(InputError, match="folder"):
        load(tmp_path / "file.txt")
    assert latest(tmp_path / "nowhere") is None


def test_another_system(tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"system": "simgan"}))
    with pytest.raises(InputError, match=r"'simgan' in manifest\.json, 'refiner' in config\.json"):
        load(path)


def test_another_format(tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(InputError, match="format is 99"):
        load(path)
