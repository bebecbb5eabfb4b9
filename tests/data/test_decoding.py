"""Which files are decoded together, within which memory, and by which versions of DALI."""

import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data import open_dataset, open_loader, resident, streaming
from engine.data.decoding import plain_images
from engine.data.decoding.dali import require_dali, runs_that_fit, too_old
from engine.data.decoding.decoding_memory import DecodingMemory
from engine.data.decoding.plain_images import BadImage, inspect, plain_bytes
from engine.data.decoding.stored_squares import central_square, corners_in_file
from engine.data.reading import read_set
from engine.errors import InputError
from engine.inference import pictures
from engine.verification import machine
from tests.support.data_images import encoded, picture, write_pictures
from tests.support.packages import needs
from tests.support.picture_files import chunk

LARGE = 30_000_000


@pytest.mark.parametrize(
    ("pixels", "files", "runs"),
    [
        ([], 4, []),
        ([1] * 4, 4, [range(0, 4)]),
        ([1] * 9, 4, [range(0, 4), range(4, 8), range(8, 9)]),
        ([LARGE, LARGE, 1, 1, LARGE], 4, [range(0, 1), range(1, 4), range(4, 5)]),
        ([3 * LARGE, 1, 3 * LARGE], 4, [range(0, 1), range(1, 2), range(2, 3)]),
    ],
)
def test_runs_hold_few_files_and_few_pixels(pixels: list[int], files: int, runs: list[range]) -> None:
    assert list(runs_that_fit(pixels, files)) == runs


@pytest.mark.parametrize(
    ("version", "refused"), [("1.53.0", True), ("2.1.1", True), ("2.2.0", False), ("10.0", False), ("", False)]
)
def test_versions_that_show_turned_files_unturned(version: str, refused: bool) -> None:
    assert ("for 2.2 or newer" in too_old(version)) == refused


@needs("nvidia.dali")
def test_an_old_dali_is_refused_before_any_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvidia.dali.__version__", "2.1.1")
    with pytest.raises(InputError, match=r"NVIDIA DALI 2\.1\.1 shows some turned JPEG files unturned"):
        require_dali()
    monkeypatch.setattr(machine.environment, "version_of", lambda name: "2.1.1")
    (finding,) = machine.check_loading()
    assert finding.state == machine.BROKEN and "2.1.1" in finding.found and "--upgrade" in finding.fix


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(7, 4), (4, 7), (5, 5), (9, 4)])
def test_a_displayed_square_is_found_among_the_stored_pixels(orientation: int, size: tuple[int, int]) -> None:
    numbers = Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[1], size[0]))
    shown = numbers.transpose(plain_images._UPRIGHT[orientation]) if orientation > 1 else numbers
    sizes = np.array([shown.size])
    corners, sides = central_square(sizes)
    ((x, y),) = corners_in_file(corners, sides, sizes, np.array([orientation]))
    stored = np.asarray(numbers)[y : y + sides[0], x : x + sides[0]]
    left, top = corners[0]
    assert set(stored.flat) == set(np.asarray(shown)[top : top + sides[0], left : left + sides[0]].flat)


def flat(mode: str, kind: str, **options) -> bytes:
    """A file of 100 x 100 pixels of one colour."""
    return encoded(Image.new(mode, (100, 100), 0), kind, **options)


@pytest.mark.parametrize(
    ("data", "each"),  # bytes that decoding takes for a pixel
    [
        (flat("RGB", "JPEG"), 4),
        (flat("RGB", "JPEG", progressive=True), 10),
        (flat("RGBA", "PNG"), 8),
        (flat("I;16", "PNG"), 6),
        (flat("CMYK", "TIFF"), 8),
        (flat("F", "TIFF"), 8),
        (flat("P", "GIF"), 5),
        (flat("RGB", "WEBP"), 16),
        (flat("RGB", "JPEG2000"), 24),
    ],
)
def test_pictures_that_take_much_memory_are_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, each: int
) -> None:
    monkeypatch.setattr(plain_images, "LIMIT", 10_000 * each)
    inspect(data)
    monkeypatch.setattr(plain_images, "LIMIT", 10_000 * each - 1)
    with pytest.raises(BadImage, match=r"^too large to decode \(0 Mpx, mode .*, takes 0.0 GB; limit 0.0 GB\)$"):
        inspect(data)
    with pytest.raises(BadImage, match="too large to decode"):
        pictures.read(data)
    (tmp_path / "a.png").write_bytes(data)
    ((_, reason),) = read_set(tmp_path).quarantined
    assert reason.startswith("too large to decode")


def test_pictures_share_the_memory_that_decoding_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads, and memory for two pictures at a time."""
    held: list[int] = []
    most = 0

    class Watched(DecodingMemory):
        @contextmanager
        def reserved(self, needed: int):
            nonlocal most
            with super().reserved(needed):
                held.append(needed)
                most = max(most, sum(held))
                yield
                held.remove(needed)

    each = 8 * 100 * 100
    monkeypatch.setattr(plain_images, "MEMORY", Watched(2 * each))
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda data: (inspect(data), plain_bytes(data)), [flat("RGBA", "PNG")] * 40))) == 40
    assert each <= most <= 2 * each


def bomb(kind: bytes) -> bytes:
    """A chunk of PNG that unpacks to eight million bytes."""
    content = zlib.compress(bytes(8_000_000), 9)
    if kind == b"iTXt":
        return chunk(kind, b"words\0\1\0\0\0" + content)
    return chunk(kind, b"words\0\0" + content)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("late", [False, True])
def test_words_that_unpack_to_much_are_a_verdict(tmp_path: Path, kind: bytes, late: bool) -> None:
    data = encoded(picture(1), "PNG")
    place = len(data) - 12 if late else 33
    (tmp_path / "a.png").write_bytes(data[:place] + bomb(kind) + data[place:])
    images = read_set(tmp_path)
    try:
        pictures.read((tmp_path / "a.png").read_bytes())
    except BadImage as error:
        assert images.quarantined == [("a.png", str(error))] and "too large" in str(error).lower()
    else:
        assert len(images) == 1 and kind == b"iCCP" and late  # which nothing reads


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_of_many_frames_one_is_decoded(monkeypatch: pytest.MonkeyPatch, kind: str, options: dict) -> None:
    frames = [Image.new("RGB", (16, 16), (number, 0, 0)) for number in range(60)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert inspect(data).frame == "first of 60 frames"
    monkeypatch.setattr(plain_images, "_COUNTED_BYTES", 100)
    assert inspect(data).frame == f"first of {'several' if kind in ('GIF', 'TIFF') else 60} frames"
    assert np.asarray(pictures.read(data)[0]).max() == 0


@needs("nvidia.dali")
@pytest.mark.parametrize("kind", ["resident", "dali"])
def test_large_pictures_are_decoded_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    images = open_dataset(write_pictures(tmp_path / "set", 7), channels=3, resolution=16)
    batches = []
    for limit in (1_000_000, 2 * 48 * 40, 48 * 40 - 1):  # all together, two at a time, each alone
        monkeypatch.setattr(streaming, "_AT_ONCE", limit)
        monkeypatch.setattr(resident, "PIXELS_AT_ONCE", limit)
        loader = open_loader(images, batch_size=5, resolution=16, channels=3, device="cpu", seed=0, loader=kind)
        batches.append([loader.next().images for _ in range(3)])
        loader.close()
    for other in batches[1:]:
        assert all((a == b).all() for a, b in zip(batches[0], other, strict=True))


DAMAGED_WEBP = bytes.fromhex(
    "5249464626000000574542505650384c190000002f17c003000f30011330"
    "01f31f78100824ed6f3e4144040001000000100000000201030002000000"
)


@needs("nvidia.dali")
@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("long.png", lambda: encoded(Image.new("1", (8, plain_images.MAX_SIDE + 1)), "PNG"), "at most 1048576 pixels"),
        ("forgiven.webp", lambda: DAMAGED_WEBP, "truncated or damaged"),
        ("cut.bmp", lambda: encoded(picture(1), "BMP")[:-1], "truncated or damaged"),
        ("named.png", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n", "not an image"),
    ],
)
def test_training_takes_no_file_that_refine_refuses(tmp_path: Path, name: str, make, reason: str) -> None:
    (tmp_path / name).write_bytes(make())
    ((_, said),) = read_set(tmp_path).quarantined
    with pytest.raises(BadImage) as raised:
        pictures.read(make())
    assert reason in said and str(raised.value) == said
