"""Mutated pictures of every format: each gets a verdict, and what is accepted is decoded as people see it."""

import resource
import shutil
import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data import open_loader
from engine.data.decoding.plain_images import BadImage
from engine.data.reading import read_set
from engine.inference import pictures
from tests.fuzz.budget import examples
from tests.support.picture_files import depths, product

pytest.importorskip("nvidia.dali")

TOGETHER = 20  # pictures of an example: one image set
MOST_MEMORY = 2_500_000_000  # bytes that the process may grow by: a picture may take 1 GB, DALI's copies of it the rest
EXTREMES = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
PLACE = st.one_of(st.floats(0, 1), st.integers(0, 64))  # a share of the file, or a place in its header


@cache
def files() -> list[tuple[str, bytes]]:
    """(name, content) of the files that are mutated."""
    return [*depths(), *product(every=7)]


def at(place: float, data: bytes) -> int:
    return min(len(data), place if isinstance(place, int) else int(place * len(data)))


def flip(data: bytes, place: float, bit: int) -> bytes:
    index = min(at(place, data), len(data) - 1)
    return data[:index] + bytes([data[index] ^ 1 << bit]) + data[index + 1 :] if data else data


def cut(data: bytes, place: float) -> bytes:
    return data[: at(place, data)]


def double(data: bytes, first: float, second: float) -> bytes:
    start, end = sorted((at(first, data), at(second, data)))
    return data[:end] + data[start:end] + data[end:]


def splice(data: bytes, place: float, other: int, first: float, second: float) -> bytes:
    donor = files()[other % len(files())][1]
    start, end = sorted((at(first, donor), at(second, donor)))
    return data[: at(place, data)] + donor[start:end] + data[at(place, data) :]


def overwrite(data: bytes, place: float, value: int, width: str) -> bytes:
    content = struct.pack(width, value & (1 << 8 * struct.calcsize(width)) - 1)
    return data[: at(place, data)] + content + data[at(place, data) + len(content) :]


MUTATIONS = st.one_of(
    st.tuples(st.just(flip), PLACE, st.integers(0, 7)),
    st.tuples(st.just(cut), PLACE),
    st.tuples(st.just(double), PLACE, PLACE),
    st.tuples(st.just(splice), PLACE, st.integers(0, 1000), PLACE, PLACE),
    st.tuples(st.just(overwrite), PLACE, st.sampled_from(EXTREMES), st.sampled_from([">B", "<H", ">H", "<I", ">I"])),
)


def right_sums(data: bytes) -> bytes:
    """A PNG with the check sums that its chunks need, so that their content is looked at; other files as they are."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, place = bytearray(data), 8
    while place + 12 <= len(out):
        end = place + 8 + int.from_bytes(out[place : place + 4], "big")
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[place + 4 : end])) if end + 4 <= len(out) else out[end:]
        place = end + 4
    return bytes(out)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """(name, bytes) of a file, mutated once to four times."""
    name, data = draw(st.sampled_from(files()))
    for mutation, *arguments in draw(st.lists(MUTATIONS, min_size=1, max_size=3)):
        data = mutation(data, *arguments)
    return name, right_sums(data) if draw(st.booleans()) else data


@pytest.fixture(scope="module")
def little_memory():
    """Fails where the tests of this file have made the process grow by more than a few large pictures."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_MEMORY


@examples(short=3, full=500)
@given(st.lists(mutated(), min_size=TOGETHER, max_size=TOGETHER))
def test_every_picture_has_a_verdict(little_memory: None, written: list[tuple[str, bytes]]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        for number, (name, data) in enumerate(written):
            (folder / f"{number:02d}-{name}").write_bytes(data)
        images = read_set(folder, progress=False, fresh=True)
        assert len(images) + len(images.quarantined) == len(written)
        assert all(reason and reason.isprintable() for _, reason in images.quarantined)
        readable = {}
        for path in sorted(folder.iterdir()):
            try:
                readable[path.name] = pictures.read(path.read_bytes())[0]
            except BadImage as reason:
                assert str(reason).isprintable()
        assert set(readable) == set(images.paths), "refine must take what training takes"
        if len(images):
            loader = open_loader(
                images, batch_size=1, resolution=16, channels=3, device="cpu", seed=0, loader="resident"
            )
            squares = pixels_of(loader.fixed(len(images)).images)
            for name, square in zip(images.paths, squares, strict=True):
                assert_same(name, square, readable[name])
    finally:
        shutil.rmtree(folder)


def pixels_of(batch) -> np.ndarray:
    """(N, 3, R, R) in [-1, 1] -> (N, R, R, 3) int, 0 to 255."""
    return ((batch + 1) * 127.5).round().permute(0, 2, 3, 1).numpy().astype(int)


def assert_same(name: str, square: np.ndarray, image) -> None:
    """Where nothing is resized, what a loader shows of a picture is what Pillow reads."""
    if min(image.size) == 16:
        left, top = ((side - 16) // 2 for side in image.size)
        part = np.asarray(image.convert("RGB").crop((left, top, left + 16, top + 16))).astype(int)
        assert np.abs(square - part).max() <= 1, name
