"""Small image files for the data tests."""

import csv
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


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
    """count lossless pictures 000.png, 001.png ..."""
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


def bomb() -> bytes:
    """A PNG of a few bytes whose header claims 20000 x 20000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
