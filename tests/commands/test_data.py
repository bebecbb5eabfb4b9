"""`kiln data`, the verdicts that the cache keeps, and the embedded avatars."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from engine import cli
from engine.data import open_dataset, open_loader
from engine.data.__main__ import main
from engine.data.decoding.dali import Prober
from engine.data.layouts.sources import FolderSource
from engine.data.reading import read_set
from engine.errors import InputError
from tests.support.data_images import BAD, encoded, picture, write_bad, write_manifest_set, write_pictures

pytest.importorskip("nvidia.dali")


def test_verdicts_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path / "set", 4)
    (folder / "bad.jpg").write_bytes(b"text")
    first = read_set(folder)
    read: list[str] = []
    decoded: list[int] = []
    real_read, real_probe = FolderSource.read, Prober.probe
    monkeypatch.setattr(FolderSource, "read", lambda self, name: (read.append(name), real_read(self, name))[1])
    monkeypatch.setattr(Prober, "probe", lambda self, data: (decoded.append(len(data)), real_probe(self, data))[1])

    again = read_set(folder)
    assert (again.digest, again.quarantined) == (first.digest, first.quarantined)
    assert read == [] and decoded == []

    os.utime(folder / "001.png")
    assert read_set(folder).digest == first.digest
    assert read == ["001.png"] and decoded == []  # its content is as before: read, not decoded

    stamp = (folder / "002.png").stat()
    same_size = bytearray((folder / "002.png").read_bytes())
    same_size[-20:-12] = b"\0" * 8
    (folder / "002.png").write_bytes(same_size)
    os.utime(folder / "002.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # size and time as before
    changed = read_set(folder)
    assert dict(changed.quarantined).keys() == {"bad.jpg", "002.png"} and changed.digest != first.digest

    read.clear()
    assert len(read_set(folder, fresh=True)) == 3 and len(read) == 5


@pytest.mark.parametrize("content", ["", "{", '{"version": 1}', '{"version": 0, "columns": [], "rows": []}', "[]"])
def test_a_damaged_cache_is_ignored(tmp_path: Path, empty_cache: Path, content: str) -> None:
    folder = write_pictures(tmp_path / "set", 2)
    digest = read_set(folder).digest
    (cache,) = (empty_cache / "validated").glob("*.json")
    cache.write_text(content)
    assert read_set(folder).digest == digest


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KILN_CACHE", str(tmp_path / "file"))
    assert len(read_set(write_pictures(tmp_path / "set", 2))) == 2
    assert "validation results not kept" in capsys.readouterr().err


def test_command(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = write_manifest_set(
        tmp_path / "set", [picture(i, 48 + 8 * (i == 3)) for i in range(4)], np.linspace(0, 50, 544).reshape(4, 68, 2)
    )
    assert cli.status_of("data", main, ["validate", str(folder)]) == 0
    out, err = capfd.readouterr()
    assert err == "" and "4 usable images" in out and "68 for all images; some lie outside the image in 1" in out
    assert "PNG 4" in out and "2 different, most often 48x40" in out

    folder = write_pictures(tmp_path / "photos", 3)
    shutil.copy(folder / "001.png", folder / "copy.png")
    (folder / "moving.gif").write_bytes(
        encoded(picture(1), "GIF", save_all=True, append_images=[picture(9), picture(10)])
    )
    write_bad(folder)
    report, listing = tmp_path / "out" / "report.json", tmp_path / "out" / "bad.csv"
    arguments = ["validate", str(folder), "--json", str(report), "--quarantine", str(listing)]
    assert cli.status_of("data", main, arguments) == 0
    out, err = capfd.readouterr()
    assert err == f"kiln data: warning: {len(BAD)} of {len(BAD) + 5} files are quarantined\n"
    assert "001.png = copy.png" in out and "first of 3 frames 1" in out and "dot.png: too small (1x1" in out
    found = json.loads(report.read_text())
    assert (found["count"], len(found["quarantined"])) == (5, len(BAD))
    assert found["digest"] == read_set(folder).digest
    assert listing.read_text().count("\n") == len(BAD) + 1

    write_bad(tmp_path / "bad")
    for wrong, message in (
        (["validate", str(tmp_path / "bad")], "no usable image in"),
        (["validate", str(tmp_path / "none")], "there is no folder or zip at"),
        (["validate"], "missing PATH"),
        (["check", "x"], "unknown action 'check'"),
        ([], "no action given"),
        (["avatars", str(tmp_path / "a"), "-n", "0"], "n must be at least 1"),
        (["avatars", str(tmp_path / "a"), "-n", "many"], "expected a whole number"),
    ):
        assert cli.status_of("data", main, wrong) == 2
        err = capfd.readouterr().err
        assert err.startswith("kiln data: error: ") and message in err and err.count("\n") == 1, err


def test_importing_loads_no_dali_and_no_torch() -> None:
    code = "import sys, engine.data; sys.exit(any(m.split('.')[0] in ('torch', 'PIL', 'nvidia') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_validating_loads_no_torch() -> None:
    code = "import sys, engine.data.reading, engine.data.inventory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_dali(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(InputError, match=r"pip install kiln-engine\[dali-cu13\]"):
        open_dataset(write_pictures(tmp_path / "set", 2), channels=3, resolution=16)


def fake_renderer(calls: list[Path], fail: bool = False) -> types.SimpleNamespace:
    def write(out: Path, count: int, size: int, seed: int, frames: int = 1, progress: bool = True) -> None:
        calls.append(out)
        write_manifest_set(out / "photo", [picture(i, size, size) for i in range(4)], np.zeros((4, 68, 2)))
        time.sleep(0.2)
        if fail:
            raise OSError(28, "No space left on device")

    return types.SimpleNamespace(VERSION=1, write=write)


def test_avatars_are_rendered_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    monkeypatch.setattr("engine.data.opening.avatars", fake_renderer(calls, fail=True))
    with pytest.raises(InputError, match=r"avatars cannot be written to .*No space left.*KILN_CACHE"):
        open_dataset(None, channels=3, resolution=16)
    assert not list(empty_cache.rglob("*.png")), "nothing half written may stay"

    monkeypatch.setattr("engine.data.opening.avatars", fake_renderer(calls))
    calls.clear()
    found: list = []
    openers = [
        threading.Thread(target=lambda: found.append(open_dataset(None, channels=3, resolution=16, progress=False)))
        for _ in range(3)
    ]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    assert len(calls) == 1 and [len(images) for images in found] == [4, 4, 4]
    assert found[0].name == "avatars" and found[0].landmarks is not None
    assert open_dataset(None, channels=3, resolution=256).sizes[0, 0] == 256
    assert len(calls) == 2


def test_names_that_are_not_text(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = write_pictures(tmp_path / "set", 2)
    for name in (b"\xff\xfe.png", b"new\nline.png"):
        shutil.copy(folder / "000.png", os.path.join(os.fsencode(folder), name))
    Path(os.fsdecode(os.path.join(os.fsencode(folder), b"bad\xff.png"))).write_text("text")
    assert cli.status_of("data", main, ["validate", str(folder), "--json", str(tmp_path / "report.json")]) == 0
    out, err = capfd.readouterr()
    assert "4 usable images" in out and r"bad\udcff.png: not an image" in out and err.count("\n") == 1
    assert json.loads((tmp_path / "report.json").read_text())["count"] == 4
    images = open_dataset(folder, channels=3, resolution=16)
    assert (
        open_loader(images, batch_size=4, resolution=16, channels=3, device="cpu", seed=0).next().images.shape[0] == 4
    )
