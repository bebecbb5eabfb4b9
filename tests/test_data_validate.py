"""Every kind of file people have: used, converted or quarantined with a reason; and what the cache remembers."""

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data_images import bomb, encoded, picture, write_manifest_set, write_pictures
from PIL import Image, ImageOps

from engine import cli
from engine.data import dataset, open_dataset, open_loader
from engine.data.__main__ import main
from engine.data.dataset import read_set
from engine.errors import InputError

needs_dali = pytest.mark.skipif(importlib.util.find_spec("nvidia.dali") is None, reason="DALI is not installed")
pytestmark = needs_dali


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILN_CACHE", str(tmp_path / "cache"))


def rotated(orientation: int, kind: str = "JPEG", **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(1), kind, exif=exif.tobytes(), **options)


def transparent(mode: str) -> Image.Image:
    image = picture(2).convert(mode)
    alpha = np.zeros((40, 48), np.uint8)
    alpha[8:32] = 255
    alpha[20:24] = 128
    image.putalpha(Image.fromarray(alpha))
    return image


def grey(seed: int) -> np.ndarray:
    return np.asarray(picture(seed).convert("L"))


def palette_with_hole() -> bytes:
    image = picture(3).quantize(64)
    return encoded(image, "PNG", transparency=image.getpixel((24, 20)))


FRAMES = {"save_all": True, "append_images": [picture(9), picture(10)]}
READABLE = {  # name: (file, part of what `validate` says about its conversion; "" for none)
    "plain.jpg": (lambda: encoded(picture(1), "JPEG"), ""),
    "progressive.jpg": (lambda: encoded(picture(1), "JPEG", progressive=True), ""),
    "grey.jpg": (lambda: encoded(picture(1).convert("L"), "JPEG"), ""),
    "cmyk.jpg": (lambda: encoded(picture(1).convert("CMYK"), "JPEG"), "mode CMYK"),
    **{f"exif{turn}.jpg": (lambda turn=turn: rotated(turn, quality=95), "") for turn in range(1, 9)},
    **{f"exif{turn}.png": (lambda turn=turn: rotated(turn, "PNG"), "") for turn in (3, 6)},
    "colour.png": (lambda: encoded(picture(1), "PNG"), ""),
    "palette.png": (lambda: encoded(picture(3).quantize(64), "PNG"), ""),
    "palette_hole.png": (palette_with_hole, "transparent"),
    "bilevel.png": (lambda: encoded(picture(1).convert("1"), "PNG"), ""),
    "opaque_rgba.png": (lambda: encoded(picture(1).convert("RGBA"), "PNG"), ""),
    "rgba.png": (lambda: encoded(transparent("RGB"), "PNG"), "transparent"),
    "la.png": (lambda: encoded(transparent("L"), "PNG"), "transparent"),
    "grey16.png": (lambda: encoded(Image.fromarray(grey(1).astype(np.uint16) * 201 + 99), "PNG"), "mode I;16"),
    "grey16.tif": (lambda: encoded(Image.fromarray(grey(1).astype(np.uint16) * 201 + 99), "TIFF"), "mode I;16"),
    "float.tif": (lambda: encoded(Image.fromarray(grey(1) / np.float32(255)), "TIFF"), "mode F"),
    "colour.tif": (lambda: encoded(picture(1), "TIFF"), ""),
    "colour.bmp": (lambda: encoded(picture(1), "BMP"), ""),
    "colour.ppm": (lambda: encoded(picture(1), "PPM"), ""),
    "colour.jp2": (lambda: encoded(picture(1), "JPEG2000"), "JPEG2000 file"),
    "colour.webp": (lambda: encoded(picture(1), "WEBP", lossless=True), ""),
    "moving.webp": (lambda: encoded(picture(1), "WEBP", lossless=True, **FRAMES), "first of 3 frames"),
    "still.gif": (lambda: encoded(picture(1), "GIF"), "GIF file"),
    "moving.gif": (lambda: encoded(picture(1), "GIF", **FRAMES), "first of 3 frames"),
    "moving.png": (lambda: encoded(picture(1), "PNG", **FRAMES), "first of 3 frames"),
    "jpeg_named.png": (lambda: encoded(picture(1), "JPEG"), ""),
    "UPPER CASE ünïcode 面.JPG": (lambda: encoded(picture(1), "JPEG"), ""),
}


def expected_pixels(data: bytes) -> np.ndarray:
    """What a viewer shows, on mid-grey: Pillow alone, colour."""
    image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        return np.repeat((np.asarray(image) * 255).round().astype(np.uint8)[..., None], 3, axis=2)
    rgba = np.asarray(ImageOps.exif_transpose(image).convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    return (rgba[..., :3] * alpha + 128 * (1 - alpha)).round().astype(np.uint8)


def test_files_people_have(tmp_path: Path) -> None:
    """What reaches training is what a viewer shows: the middle 40 x 40 pixels, reduced to 16 x 16 by Pillow."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name, (make, _) in READABLE.items():
        (folder / name).write_bytes(make())
    images = open_dataset(folder, channels=3, resolution=16)
    assert images.quarantined == []
    assert images.paths == sorted(READABLE)
    for kind in ("resident", "dali"):
        loader = open_loader(images, batch_size=4, resolution=16, channels=3, device="cpu", seed=0, loader=kind)
        batch = loader.fixed(len(images))
        loader.close()
        for index, record in enumerate(images.records):
            said = READABLE[record.name][1]
            assert said in record.convert and bool(said) == bool(record.convert), record
            pixels = expected_pixels((folder / record.name).read_bytes())
            assert (record.height, record.width) == pixels.shape[:2]
            top, left = (pixels.shape[0] - 40) // 2, (pixels.shape[1] - 40) // 2
            square = Image.fromarray(pixels).crop((left, top, left + 40, top + 40))
            reduced = np.asarray(square.resize((16, 16), Image.Resampling.BILINEAR)) / 127.5 - 1
            error = np.abs(batch.images[index].permute(1, 2, 0).numpy() - reduced)[2:-2, 2:-2] * 127.5
            assert error.max() <= 3, (record.name, error.max())


def truncated(kind: str) -> bytes:
    data = encoded(picture(1, 200, 160), kind)
    return data[: len(data) // 2]


BAD = {
    "truncated.jpg": (lambda: truncated("JPEG"), "truncated or damaged"),
    "truncated.png": (lambda: truncated("PNG"), "truncated or damaged"),
    "truncated.gif": (lambda: truncated("GIF"), "truncated or damaged"),
    "truncated.tif": (lambda: truncated("TIFF"), "damaged"),
    "truncated.webp": (lambda: truncated("WEBP"), "truncated or damaged"),
    "header_only.jpg": (lambda: encoded(picture(1), "JPEG")[:200], "truncated or damaged"),
    "half_a_header.png": (lambda: encoded(picture(1), "PNG")[:20], ""),
    "garbled.png": (lambda: encoded(picture(1), "PNG")[:60] + b"\0" * 3000, "truncated or damaged"),
    "empty.png": (lambda: b"", "empty file (0 bytes)"),
    "text.jpg": (lambda: b"this is no picture\n" * 30, "not an image"),
    "html.png": (lambda: b"<!DOCTYPE html><html></html>", "not an image"),
    "dot.png": (lambda: encoded(picture(1, 1, 1), "PNG"), "too small (1x1"),
    "line.png": (lambda: encoded(picture(1, 300, 2), "PNG"), "too small (300x2"),
    "bomb.png": (bomb, "too large (400 Mpx; limit 179 Mpx)"),
}


def write_bad(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, _) in BAD.items():
        (folder / name).write_bytes(make())


def test_bad_files_are_set_aside(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = write_pictures(tmp_path / "set", 5)
    write_bad(folder)
    before = sorted(folder.rglob("*"))
    images = open_dataset(folder, channels=3, resolution=16)
    assert images.paths == [f"{i:03d}.png" for i in range(5)]
    reasons = dict(images.quarantined)
    assert set(reasons) == set(BAD)
    for name, (_, expected) in BAD.items():
        assert expected in reasons[name] and "\n" not in reasons[name], (name, reasons[name])
    assert sorted(folder.rglob("*")) == before, "the user's folder must not be written to"
    err = capfd.readouterr().err
    assert err.count("\n") == 1, err
    assert f"{len(BAD)} files left out, 5 used" in err
    listed = Path(err.split("listed in ")[1].strip()).read_text()
    assert listed.startswith("file,reason\n") and listed.count("\n") == len(BAD) + 1
    assert f"{len(BAD)} quarantined" in images.summary()
    loader = open_loader(images, batch_size=5, resolution=16, channels=3, device="cpu", seed=0)
    assert sorted(loader.next().indices.tolist()) == [0, 1, 2, 3, 4]


def test_unreadable_file(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", 2)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert dict(read_set(folder).quarantined) == {"gone.png": "cannot be read: No such file or directory"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "there is no folder or zip at"),
        (lambda p: p.mkdir(), r"no image file in .*it is empty"),
        (lambda p: (p.mkdir(), (p / "notes.txt").write_text("x")), r"no image file in .*1 other files"),
        (lambda p: p.write_bytes(encoded(picture(0), "PNG")), "is a file: give the folder"),
        (write_bad, r"no usable image in .*: all 14 files are bad, the first: bomb.png: too large"),
    ],
)
def test_nothing_to_train_on(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "set")
    with pytest.raises(InputError, match=message) as raised:
        open_dataset(tmp_path / "set", channels=3, resolution=64)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("resolution", [0, 8, 24, 48, 100, 512])
def test_resolution(tmp_path: Path, resolution: int) -> None:
    with pytest.raises(InputError, match=f"resolution {resolution} is not a power-of-two multiple of 8"):
        open_dataset(tmp_path, channels=3, resolution=resolution)


def zip_of(folder: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*"):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return target


def test_zip_is_the_folder(tmp_path: Path) -> None:
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
    assert {path.relative_to(tmp_path).parts[0] for path in new} == {"set.zip", "cache"}, "nothing may be unpacked"
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
    marked = open_dataset(folder, channels=3, resolution=16, require_landmarks=True)
    assert len(marked) == 2 and marked.landmarks.shape == (2, 68, 2)
    assert marked.quarantined == [("images/000.png", "no landmarks"), ("images/001.png", "no landmarks")]
    assert marked.digest != everything.digest
    shutil.rmtree(folder / "images")
    with pytest.raises(InputError, match=r"no image file|no usable image"):
        open_dataset(folder, channels=3, resolution=16)
    with pytest.raises(InputError, match=r"has no landmarks .*; try .*deeper/set"):
        write_manifest_set(tmp_path / "deeper" / "set", [picture(0), picture(1)], points[2:])
        write_pictures(tmp_path / "deeper", 1)
        open_dataset(tmp_path / "deeper", channels=3, resolution=16, require_landmarks=True)


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


def test_verdicts_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path / "set", 4)
    (folder / "bad.jpg").write_bytes(b"text")
    first = read_set(folder)
    read: list[str] = []
    decoded: list[int] = []
    real_read, real_probe = dataset.open_source(folder).__class__.read, "engine.data.validate.Prober.probe"
    probe = importlib.import_module("engine.data.dali").Prober.probe
    monkeypatch.setattr(
        "engine.data.sources.FolderSource.read", lambda self, name: (read.append(name), real_read(self, name))[1]
    )
    monkeypatch.setattr(real_probe, lambda self, data: (decoded.append(len(data)), probe(self, data))[1])

    again = read_set(folder)
    assert (again.digest, again.quarantined) == (first.digest, first.quarantined)
    assert read == [] and decoded == []

    os.utime(folder / "001.png")
    assert read_set(folder).digest == first.digest
    assert read == ["001.png"] and decoded == []  # same content: read, not decoded

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
def test_a_damaged_cache_is_ignored(tmp_path: Path, content: str) -> None:
    folder = write_pictures(tmp_path / "set", 2)
    digest = read_set(folder).digest
    (cache,) = (tmp_path / "cache" / "validated").glob("*.json")
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
    (folder / "moving.gif").write_bytes(READABLE["moving.gif"][0]())
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


def test_without_dali(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(InputError, match=r"pip install kiln-engine\[dali-cu13\]"):
        open_dataset(write_pictures(tmp_path / "set", 2), channels=3, resolution=16)


def fake_renderer(calls: list[Path], fail: bool = False) -> types.ModuleType:
    def write(out: Path, count: int, size: int, seed: int, frames: int = 1, progress: bool = True) -> None:
        calls.append(out)
        write_manifest_set(out / "photo", [picture(i, size, size) for i in range(4)], np.zeros((4, 68, 2)))
        time.sleep(0.2)
        if fail:
            raise OSError(28, "No space left on device")

    module = types.ModuleType("engine.data.avatars")
    module.write = write
    return module


def test_avatars_are_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    monkeypatch.setitem(sys.modules, "engine.data.avatars", fake_renderer(calls, fail=True))
    with pytest.raises(InputError, match=r"avatars cannot be written to .*No space left.*KILN_CACHE"):
        open_dataset(None, channels=3, resolution=16)
    assert not list((tmp_path / "cache").rglob("*.png")), "nothing half written may stay"

    monkeypatch.setitem(sys.modules, "engine.data.avatars", fake_renderer(calls))
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


def test_a_codec_that_complains_does_so_once(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Bytes that libjpeg skips with a warning: usable, said by `validate`, and silent at every epoch."""
    folder = write_pictures(tmp_path / "set", 3)
    data = bytearray(encoded(picture(4, 96, 96), "JPEG", restart_marker_blocks=4))
    at = data.index(b"\xff\xd1")
    data[at:at] = b"\x55\x55\x55"
    (folder / "doubtful.jpg").write_bytes(data)
    images = open_dataset(folder, channels=3, resolution=32)
    assert "extraneous bytes" in images.records[3].convert
    loader = open_loader(images, batch_size=4, resolution=32, channels=3, device="cpu", seed=0, loader="dali")
    loader.next()
    loader.close()
    assert capfd.readouterr().err == ""


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
