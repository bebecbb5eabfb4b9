"""Small image files for the data tests."""

import csv
import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

# what Git LFS leaves in the place of a file that it has not fetched
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12345\n" % 7


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """A smooth colour image that differs for each seed and has no symmetry."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    fx, fy = rng.uniform(0.02, 0.15, (2, 3))
    phase, slope = rng.uniform(0, 6, 3), rng.uniform(-1, 1, 3)
    values = 128 + 70 * np.sin(x[..., None] * fx + y[..., None] * fy + phase) + slope * x[..., None]
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """The image as a file of Pillow's format `kind`."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def write_pictures(folder: Path, count: int, **size: int) -> Path:
    """Write `count` lossless pictures 000.png, 001.png ... and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        picture(seed, **size).save(folder / f"{seed:03d}.png")
    return folder


def write_manifest_set(folder: Path, images: list[Image.Image], landmarks: np.ndarray) -> Path:
    """The manifest layout; landmark rows stand in reverse order, so that the column must be used."""
    (folder / "images").mkdir(parents=True)
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "landmarks_row"])
        for index, image in enumerate(images):
            image.save(folder / "images" / f"{index:03d}.png")
            writer.writerow([f"{index:03d}.png", len(images) - 1 - index])
    np.save(folder / "landmarks_68.npy", landmarks[::-1].astype(np.float32))
    return folder


def zip_of(folder: Path, target: Path, prefix: str = "") -> Path:
    """The folder as a zip whose names begin with `prefix`."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*"):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return target


def bomb() -> bytes:
    """A PNG of a few bytes whose header claims 20000 x 20000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def truncated(kind: str) -> bytes:
    """The first half of an image file of Pillow's format `kind`."""
    data = encoded(picture(1, 200, 160), kind)
    return data[: len(data) // 2]


def garbled_tiff() -> bytes:
    """A TIFF file whose compressed pixels are no LZW codes, of which libtiff complains on standard error."""
    data = bytearray(encoded(picture(1), "TIFF", compression="tiff_lzw"))
    data[8:200] = b"\xff" * 192
    return bytes(data)


BAD = {  # name: (file, part of the reason for its quarantine)
    "truncated.jpg": (lambda: truncated("JPEG"), "truncated or damaged"),
    "truncated.png": (lambda: truncated("PNG"), "truncated or damaged"),
    "truncated.gif": (lambda: truncated("GIF"), "truncated or damaged"),
    "truncated.tif": (lambda: truncated("TIFF"), "damaged"),
    "garbled.tif": (lambda: garbled_tiff(), "truncated or damaged"),
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
    """Write every file of BAD into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, _) in BAD.items():
        (folder / name).write_bytes(make())
