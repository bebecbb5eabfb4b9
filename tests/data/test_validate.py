"""Every kind of file people have: used, converted or quarantined with a reason."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from engine.data import open_dataset, open_loader
from engine.data.reading import read_set
from engine.errors import InputError
from tests.support.data_images import BAD, encoded, picture, write_bad, write_pictures

pytest.importorskip("nvidia.dali")


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
    "grey16.tif": (lambda: encoded(Image.fromarray(grey(1).astype(np.uint16) * 201 + 99), "TIFF"), "TIFF file"),
    "float.tif": (lambda: encoded(Image.fromarray(grey(1) / np.float32(255)), "TIFF"), "TIFF file"),
    "colour.tif": (lambda: encoded(picture(1), "TIFF"), "TIFF file"),
    "colour.bmp": (lambda: encoded(picture(1), "BMP"), "BMP file"),
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


@pytest.mark.parametrize("damage", [lambda row: row | {"width": "x"}, lambda row: row | {"name": 3}, lambda row: {},
                                    lambda row: row | {"size": 10**30}, lambda row: row | {"problem": None},
                                    lambda row: row | {"height": 2.5}])  # fmt: skip
def test_cached_verdicts_of_other_types_are_made_again(tmp_path, empty_cache, damage):
    write_pictures(tmp_path / "set", 2)
    expected = list(read_set(tmp_path / "set", progress=False).digest)
    (file,) = (empty_cache / "validated").glob("*.json")
    stored = json.loads(file.read_text())
    whole = [dict(zip(stored["columns"], row, strict=True)) for row in stored["rows"]]
    stored["rows"] = [list(damage(row).values()) for row in whole]
    file.write_text(json.dumps(stored))
    assert list(read_set(tmp_path / "set", progress=False).digest) == expected
    assert json.loads(file.read_text())["rows"] == [list(row.values()) for row in whole]


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{", '{"version": 1}', "7", "\x00"])
def test_a_cache_that_holds_anything_is_made_again(tmp_path, empty_cache, content):
    write_pictures(tmp_path / "set", 2)
    expected = list(read_set(tmp_path / "set", progress=False).digest)
    (file,) = (empty_cache / "validated").glob("*.json")
    file.write_text(content)
    assert list(read_set(tmp_path / "set", progress=False).digest) == expected
