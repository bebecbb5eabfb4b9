"""Folders, zips and the manifest layout."""

import csv
import errno
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from engine import cli
from engine.data import open_dataset, open_loader, validation
from engine.data.__main__ import main
from engine.data.layouts.sources import FolderSource, open_source
from engine.data.reading import read_set
from engine.errors import InputError
from tests.support.data_images import LFS_POINTER, encoded, picture, write_manifest_set, write_pictures, zip_of

pytest.importorskip("nvidia.dali")


def test_zip_is_the_folder(tmp_path: Path, empty_cache: Path) -> None:
    folder = write_pictures(tmp_path / "set", 4)
    write_pictures(folder / "a folder" / "ünter 面", 3, width=64)
    (folder / "broken.jpg").write_bytes(b"text")
    (folder / ".hidden.png").write_bytes(b"text")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._000.png").write_bytes(b"text")
    before = sorted(tmp_path.rglob("*"))
    inside, packed = read_set(folder), read_set(zip_of(folder, tmp_path / "set.zip"))
    assert len(inside) == 7 and inside.paths == packed.paths and inside.digest == packed.digest
    assert inside.quarantined == packed.quarantined and len(packed.quarantined) == 1
    new = {path for path in sorted(tmp_path.rglob("*")) if path not in before}
    assert {path.relative_to(tmp_path).parts[0] for path in new} == {"set.zip", empty_cache.name}, (
        "nothing may be unpacked"
    )
    a, b = (
        open_loader(images, batch_size=7, resolution=32, channels=3, device="cpu", seed=0, loader=kind)
        for images, kind in ((inside, "resident"), (packed, "dali"))
    )
    assert (a.next().images == b.next().images).all()
    b.close()


@pytest.mark.parametrize("prefix", ["", "my photos/"])
def test_zip_with_a_manifest(tmp_path: Path, prefix: str) -> None:
    points = np.random.default_rng(0).uniform(0, 40, (4, 68, 2))
    folder = write_manifest_set(tmp_path / "set", [picture(i) for i in range(4)], points)
    packed = read_set(zip_of(folder, tmp_path / "set.zip", prefix))
    np.testing.assert_array_equal(packed.landmarks, points.astype(np.float32))
    assert packed.paths[0] == f"{prefix}images/000.png"


def test_bad_zips(tmp_path: Path) -> None:
    whole = zip_of(write_pictures(tmp_path / "set", 3), tmp_path / "set.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut.zip is not a readable zip"):
        read_set(tmp_path / "cut.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(InputError, match=r"text.zip is not a readable zip"):
        read_set(tmp_path / "text.zip")
    locked = bytearray(whole)
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = whole.find(mark)
        while at >= 0:
            locked[at + flags] |= 1
            at = whole.find(mark, at + 4)
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(InputError, match=r"locked.zip is encrypted"):
        read_set(tmp_path / "locked.zip")
    spoilt = bytearray(whole)
    spoilt[60:90] = b"\xff" * 30  # inside the first member
    (tmp_path / "spoilt.zip").write_bytes(spoilt)
    images = read_set(tmp_path / "spoilt.zip")
    assert len(images) == 2 and "damaged zip member" in images.quarantined[0][1]


def test_symbolic_link_loops_end(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", 2)
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "sub" / "self").symlink_to(folder / "sub", target_is_directory=True)
    elsewhere = write_pictures(tmp_path / "elsewhere", 1, width=64)
    (folder / "linked").symlink_to(elsewhere, target_is_directory=True)
    assert read_set(folder).paths == ["000.png", "001.png", "linked/000.png"]


@pytest.mark.parametrize("link", ["a link", "z link", "deep/link"])
def test_a_folder_with_links_to_it_has_its_own_name(tmp_path: Path, link: str) -> None:
    folder = tmp_path / "set"
    write_pictures(folder / "m" / "real", 1)
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(folder / "m", target_is_directory=True)
    assert FolderSource(folder).files() == ["m/real/000.png"]


def test_what_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path / "set", 1)
    write_pictures(folder / "closed", 1)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    (folder / "round").symlink_to(folder / "round")
    scandir = os.scandir

    def refuse(path: Path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert read_set(folder).quarantined == [
        ("closed", "a folder that cannot be listed (Permission denied): check its rights"),
        ("gone", "cannot be read: No such file or directory"),
        ("round", "cannot be read: Too many levels of symbolic links"),
    ]
    with pytest.raises(InputError, match=r"closed cannot be listed \(Permission denied\)"):
        read_set(folder / "closed")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "a named pipe, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
        (lambda path: path.symlink_to("/dev/stdin"), "not a file|more than|cannot be read"),
        (lambda path: path.symlink_to("/proc/self/maps"), "it holds more than the 0 bytes"),
        (lambda path: path.write_bytes(LFS_POINTER), "a Git LFS pointer"),
    ],
)
@pytest.mark.parametrize("name", ["images/x.png", "manifest.csv", "landmarks_68.npy"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path, name: str, make, reason: str) -> None:
    folder = write_manifest_set(tmp_path / "set", [picture(i) for i in range(2)], np.zeros((2, 68, 2)))
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    if name.endswith(".png"):
        with open(folder / "manifest.csv", "a") as file:
            file.write("x.png,\n")
        ((left_out, why),) = read_set(folder).quarantined
        assert left_out == name and re.search(reason, why)
    else:
        with pytest.raises(InputError, match=rf"{name} .*({reason})"):
            read_set(folder)


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda p: p.write_bytes(LFS_POINTER)]
)
@pytest.mark.parametrize("name", ["set.zip", "set"])
def test_what_is_no_zip_is_not_waited_for(tmp_path: Path, name: str, make) -> None:
    make(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name}: a (named pipe, not a file|device, not a file|Git LFS pointer)"):
        open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "limit"), [("manifest.csv", "134 MB"), ("landmarks_68.npy", "4.3 GB"), ("images/000.png", "1.1 GB")]
)
def test_a_file_beyond_its_limit_is_not_read(tmp_path: Path, name: str, limit: str) -> None:
    folder = write_manifest_set(tmp_path / "set", [picture(i) for i in range(2)], np.zeros((2, 68, 2)))
    os.truncate(folder / name, 10**10)  # zeros that take no room on the disk
    message = rf"too large \(10.0 GB; Kiln reads up to {limit} of such a file\)"
    if name.endswith(".png"):
        ((_, why),) = read_set(folder).quarantined
        assert re.search(message, why) or "too large (10.0 GB for 48x40 pixels)" in why
    else:
        with pytest.raises(InputError, match=message):
            read_set(folder)


def test_names_that_are_no_text(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = write_pictures(tmp_path / "set", 1)
    for number, name in enumerate((b"\xff.png", b"line\nend.png", b"\x1b[31m.png", b"bad\xfe\n.png")):
        content = b"x" if name.startswith(b"bad") else encoded(picture(number + 1), "PNG")
        (folder / os.fsdecode(name)).write_bytes(content)
    for _ in range(2):  # decoded, then from the cache
        words = ["validate", str(folder), "--json", str(tmp_path / "a.json"), "--quarantine", str(tmp_path / "a.csv")]
        assert cli.status_of("data", main, words) == 0
        out, err = capfd.readouterr()
        assert r"    bad\udcfe\n.png: not an image" in out.splitlines()[-3] and not {"\x1b", "\udcff"} & {*out, *err}
    facts = json.loads((tmp_path / "a.json").read_text())
    assert facts["count"] == 4 and facts["quarantined"][0]["file"] == os.fsdecode(b"bad\xfe\n.png")
    ((_, row),) = [list(csv.reader((tmp_path / "a.csv").open(newline="")))]
    assert row[0] == "bad\\udcfe\n.png"


def test_a_few_large_files_are_read_ahead_not_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_HELD_BYTES", 1000)
    source = FolderSource(tmp_path)
    for number, size in enumerate((400, 200, 5000, 10, 10, 499)):
        (tmp_path / f"{number}.png").write_bytes(bytes(size))
    chunks = [[int(name[0]) for name in chunk] for _, chunk in validation._chunks(source, source.files())]
    assert chunks == [[0], [1], [2], [3, 4], [5]]
    assert len(validation.validate(source, source.files())) == 6


def test_a_picture_followed_by_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_ANY_PICTURE_BYTES", 1 << 16)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", encoded(picture(1), "PNG") + bytes(5 << 20))
        archive.writestr("b.png", encoded(picture(2), "PNG") + bytes(1 << 10))
        archive.writestr("c.png", encoded(picture(3, 700, 700), "PNG", compress_level=0))
    images = read_set(tmp_path / "set.zip")
    assert images.paths == ["b.png", "c.png"]
    assert images.quarantined == [("a.png", "too large (5 MB for 48x40 pixels)")]


def test_zips_inside_are_said_and_not_opened(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = write_pictures(tmp_path / "set", 1)
    zip_of(folder, tmp_path / "inner.zip").rename(folder / "inner.zip")
    assert cli.status_of("data", main, ["validate", str(folder)]) == 0
    assert "zips inside are not opened: inner.zip" in capfd.readouterr().out
    (folder / "000.png").unlink()
    with pytest.raises(InputError, match=r"no image file in .*but the zip inner.zip: give that one"):
        read_set(folder)


def test_manifest(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(0, 40, (4, 68, 2))
    folder = write_manifest_set(tmp_path / "set", [picture(i) for i in range(4)], points)
    (folder / "images" / "unlisted.png").write_bytes(encoded(picture(9), "PNG"))
    with open(folder / "manifest.csv", "a") as file:
        file.write("absent.png,0\n../../secret.png,0\n001.png,0\n")
    images = read_set(folder)
    assert images.paths == [f"images/{i:03d}.png" for i in range(4)]
    np.testing.assert_array_equal(images.landmarks, points.astype(np.float32))
    digest = images.digest
    np.save(folder / "landmarks_68.npy", points)  # the rows in another order
    assert read_set(folder).digest != digest
    reasons = dict(images.quarantined)
    assert "not there" in reasons["images/absent.png"] and "not there" in reasons["images/../../secret.png"]
    assert "named twice" in reasons["images/001.png"]


def test_images_without_landmarks(tmp_path: Path) -> None:
    points = np.zeros((4, 68, 2))
    points[1, 5, 0] = np.nan
    folder = write_manifest_set(tmp_path / "set", [picture(i) for i in range(4)], points)
    text = (folder / "manifest.csv").read_text().replace("000.png,3", "000.png,")
    (folder / "manifest.csv").write_text(text)
    everything = open_dataset(folder, channels=3, resolution=16)
    assert len(everything) == 4 and everything.landmarks is None
    marked = open_dataset(folder, channels=3, resolution=16, points=68)
    assert len(marked) == 2 and marked.landmarks.shape == (2, 68, 2)
    not_finite = "its landmarks are not all finite numbers"
    assert marked.quarantined == [("images/000.png", "no landmarks"), ("images/001.png", not_finite)]
    assert marked.digest != everything.digest
    shutil.rmtree(folder / "images")
    with pytest.raises(InputError, match=r"no image file|no usable image"):
        open_dataset(folder, channels=3, resolution=16)
    with pytest.raises(InputError, match=r"has no landmarks .*; try .*deeper/set"):
        write_manifest_set(tmp_path / "deeper" / "set", [picture(0), picture(1)], points[2:])
        write_pictures(tmp_path / "deeper", 1)
        open_dataset(tmp_path / "deeper", channels=3, resolution=16, points=68)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "landmarks_68.npy").write_bytes(b"text"), "landmarks_68.npy is not a readable"),
        (lambda f: np.save(f / "landmarks_68.npy", np.zeros((4, 5, 2))), r"expected floats of shape \(N, 68, 2\)"),
        (lambda f: np.save(f / "landmarks_68.npy", np.zeros((3, 68, 2))), "line 2: landmarks_row is '3'"),
        (lambda f: (f / "manifest.csv").write_bytes(b"file,landmarks_row\n\xff\xfe,1\n"), "cannot be read"),
    ],
)
def test_a_damaged_manifest_set(tmp_path: Path, spoil, message: str) -> None:
    folder = write_manifest_set(tmp_path / "set", [picture(i) for i in range(4)], np.zeros((4, 68, 2)))
    spoil(folder)
    with pytest.raises(InputError, match=message):
        read_set(folder)
