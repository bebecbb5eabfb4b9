"""A checkpoint is written whole, and one that is not whole is refused."""

import errno
import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from engine import checkpoint
from engine.checkpoint import latest, load, problem, save
from engine.errors import InputError
from engine.host import atomic_files, reading
from engine.host.input_files import UnreadableFile
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


def unreadable(monkeypatch: pytest.MonkeyPatch, number: int, *parts: str) -> None:
    """Reading a file whose path has all these parts fails, as on a bad sector."""
    read = checkpoint.read_input

    def failing(path: Path, limit: int) -> bytes:
        if all(part in str(path) for part in parts):
            raise UnreadableFile(f"cannot be read: {os.strerror(number)}")
        return read(path, limit)

    monkeypatch.setattr(checkpoint, "read_input", failing)
    monkeypatch.setattr(reading, "read_input", failing)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "config.json", "manifest.json"])
def test_an_unreadable_newest_checkpoint_is_passed_over(tmp_path: Path, monkeypatch, capsys, name, number) -> None:
    good, bad = put(tmp_path, 1), put(tmp_path, 2)
    unreadable(monkeypatch, number, bad.name, name)
    assert latest(tmp_path) == good and load(tmp_path).step == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all(str(bad) in line and name in line and os.strerror(number) in line for line in told)
    with pytest.raises(InputError, match=f"cannot be used: {name}.*{os.strerror(number)}"):
        load(bad)
    monkeypatch.undo()
    assert load(tmp_path).step == 2  # what could not be read may be readable the next time


def test_a_file_that_fails_after_it_was_hashed_is_passed_over(tmp_path: Path, monkeypatch) -> None:
    put(tmp_path, 1)
    bad = put(tmp_path, 2)
    assert latest(tmp_path) == bad
    unreadable(monkeypatch, errno.EIO, bad.name, "state.pt")
    assert load(tmp_path).step == 1


def signed(path: Path, name: str, data: bytes) -> None:
    """Replace a file of a checkpoint, and enter it in the manifest as its own."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))


def saved_by_torch(value: object, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def compressed() -> bytes:
    """What torch.save writes, as a zip whose members grow when they are read."""
    buffer = io.BytesIO()
    stored = zipfile.ZipFile(io.BytesIO(saved_by_torch({"a": torch.zeros(100_000)})))
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in stored.namelist():
            archive.writestr(member, stored.read(member))
    return buffer.getvalue()


RAN: list[str] = []


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return RAN.append, ("ran",)


TENSOR = torch.ones(3)
MALFORMED = [
    ("state.pt", pickle.dumps(print), "is not the state"),
    ("state.pt", pickle.dumps(Code()), "is not the state"),
    ("state.pt", saved_by_torch(Code()), "is not the state"),
    ("state.pt", saved_by_torch([1]), "is not the state"),
    ("state.pt", saved_by_torch({"a": 1}, _use_new_zipfile_serialization=False), "is not the state"),
    ("state.pt", compressed(), "compressed"),
    ("state.pt", b"", "is not the state"),
    ("weights.safetensors", b"", "no whole safetensors file"),
    ("weights.safetensors", (1 << 60).to_bytes(8, "little") + b"{}", "no whole safetensors file"),
    ("weights.safetensors", safetensors.torch.save({"a.w": TENSOR / 0}), "a.w are not finite"),
    ("weights.safetensors", safetensors.torch.save({"a.w": TENSOR * float("nan")}), "a.w are not finite"),
    ("weights.safetensors", safetensors.torch.save({"a.w": TENSOR.half()}), "a.w are float16"),
    ("config.json", b"[" * 100_000, "nested too deeply"),
    ("config.json", b"[]", "not the configuration"),
    ("config.json", b'{"system": {"value": ["refiner"]}}', "unknown system"),
    ("config.json", b'{"system": {"value": "refiner"}, "filters": {"value": [4]}}', "filters is"),
]


@pytest.mark.parametrize(("name", "data", "says"), MALFORMED)
def test_a_malformed_file_with_a_right_digest(tmp_path: Path, capsys, name: str, data: bytes, says: str) -> None:
    """Not an accident but a stranger's: no code of it runs, and an earlier checkpoint is taken."""
    put(tmp_path, 1)
    path = put(tmp_path, 2)
    signed(path, name, data)
    with pytest.raises(InputError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000
    assert load(tmp_path).step == 1 and capsys.readouterr().err.count("\n") == 1 and RAN == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": None}, "step"),
        ({"step": "4"}, "step"),
        ({"step": True}, "step"),
        ({"step": -1}, "step"),
        ({"step": 1 << 60}, "step"),
        ({"system": ["refiner"]}, "system"),
        ({"format": [1]}, "format is"),
        ({"files": [1]}, "manifest"),
        ({"files": {}}, "does not list"),
        ({"files": {"weights.safetensors": 7, "state.pt": 7, "config.json": 7}}, "damaged"),
        ({"files": {"../../secret": {"bytes": 1, "sha256": "x"}}}, "secret"),
    ],
)
def test_a_malformed_manifest(tmp_path: Path, change: dict, says: str) -> None:
    put(tmp_path, 1)
    path = put(tmp_path, 2)
    manifest = json.loads((path / "manifest.json").read_text()) | change
    (path / "manifest.json").write_text(
        json.dumps({name: value for name, value in manifest.items() if value is not None})
    )
    with pytest.raises(InputError, match=says):
        load(path)
    assert load(tmp_path).step == 1


def test_other_names_beside_the_checkpoints(tmp_path: Path) -> None:
    path = put(tmp_path, 3)
    for name in (".writing-step_00000009", "notes"):
        (path.parent / name).mkdir()
    assert latest(tmp_path) == path
    for name in ("step_\u00b2", "step_x", "step_" + "9" * 200):  # no numbers of steps; "\u00b2" is a digit to Python
        (path.parent / name).mkdir()
    assert latest(tmp_path) == path
    os.mkfifo(path.parent / "step_00000010")
    assert latest(tmp_path) == path


def test_an_old_checkpoint_that_cannot_be_removed_is_told(tmp_path: Path, monkeypatch, capsys) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(atomic_files, "remove_folder", refuse)
    put(tmp_path, 1, keep=1)
    assert put(tmp_path, 2, keep=1).exists()
    assert "step_00000001 could not be removed (Permission denied)" in capsys.readouterr().err
