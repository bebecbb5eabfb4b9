"""Zips and folders as nobody would make them: each is listed or refused in one line, and nothing outside is touched."""

import os
import resource
import shutil
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.layouts.sources import open_source
from engine.data.reading import read_set
from engine.errors import InputError
from engine.host.input_files import UnreadableFile
from engine.host.terminal import printable
from tests.fuzz.budget import examples
from tests.support.data_images import LFS_POINTER, encoded, picture
from tests.support.raw_zip import Member, raw_zip, unicode_path

pytest.importorskip("nvidia.dali")
MEMORY = 1 << 30  # more than this no example may take

RING = np.stack([np.cos(np.arange(68)), np.sin(np.arange(68))], axis=1) * 8 + [24, 20]
POINTS = "version: 1\nn_points: 68\n{\n" + "".join(f"{x:.2f} {y:.2f}\n" for x, y in RING) + "}\n"
PNG = encoded(picture(1), "PNG")
CONTENTS = [
    b"", b"text", PNG, PNG[:90], PNG + bytes(1 << 20), POINTS.encode(), POINTS[:99].encode(), LFS_POINTER,
    bytes(1 << 20), b"file,landmarks_row\n../../a.png,0\n/etc/passwd,1\na.png,7\n",
]  # fmt: skip
WORDS = [
    "..", ".", "", "a", "b.png", "a.png", "000001.jpg", "1.png", "000001.pts", "annot", "frames", "images", "vid.avi",
    "manifest.csv", "landmarks_68.npy", "set.zip", "C:", "__MACOSX", ".hidden", "Thumbs.db", "ä.png", "面", "A.PNG",
    "\x1b[31m", "\n", "\u202e", "nul\0.png", "x" * 300, "9" * 60 + ".png", "con.", " ", "%s%n", "-rf", "~",
]  # fmt: skip
ENCODINGS = ["utf-8", "cp437", "shift-jis", "utf-16"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `mine/a.png`, which no example may change, and with the cache."""
    folder = tmp_path_factory.mktemp("archives")
    (folder / "mine").mkdir()
    (folder / "mine" / "a.png").write_text("the user's own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KILN_CACHE", str(folder / "cache"))
        yield folder


def peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def use(path: Path, place: Path) -> None:
    """List, read and validate what lies at `path`, as training would; only what users are told may be raised."""
    before = peak()
    try:
        source = open_source(path)
        for name in source.files():
            assert not name.startswith("/") and ".." not in name.split("/") and "\0" not in name
            try:
                source.read(name)
            except UnreadableFile as error:
                assert str(error)
        for name, why in source.passed_over:
            assert why and printable(f"{name}: {why}").isprintable()
        images = read_set(path, progress=False)
        assert all(why for _, why in images.quarantined)
    except InputError as error:
        assert str(error)
    assert peak() - before < MEMORY
    assert {"mine", path.name} <= {*os.listdir(place)} <= {"mine", path.name, "cache"}
    assert os.listdir(place / "mine") == ["a.png"] and (place / "mine" / "a.png").read_text() == "the user's own"
    shutil.rmtree(place / "cache", ignore_errors=True)


names = st.tuples(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=5), st.sampled_from(["/", "\\"]), st.sampled_from(ENCODINGS)
).map(lambda parts: parts[1].join(parts[0]).encode(parts[2], "replace"))


@st.composite
def members(draw: st.DrawFn, place: Path) -> Member:
    """A member whose fields are mostly right, each sometimes a lie."""

    def seldom(lies: st.SearchStrategy, truth=None):
        return draw(lies) if draw(st.integers(0, 9)) == 0 else truth

    name = draw(names)
    if where := seldom(st.sampled_from([f"{place}/mine/", "../mine/", "a/../../mine/", "\\..\\mine\\"])):
        name = where.encode() + name
    content = draw(st.sampled_from(CONTENTS))
    method = seldom(st.sampled_from([0, 9, 12, 14, 93, 99]), 8)
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = packer.compress(content) + packer.flush() if method == 8 else content
    return Member(
        name,
        packed,
        method=method,
        flags=seldom(st.sampled_from([1, 8, 0x40, 0x800, 0x2000, 0xFFFF]), 0),
        mode=seldom(st.sampled_from([stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR, 0xFFFF]), 0),
        extra=seldom(names.map(lambda other: unicode_path(name, other)), b""),
        size=seldom(st.sampled_from([0, 1, 1 << 31, (1 << 32) - 1]), len(content)),
        crc=seldom(st.integers(0, (1 << 32) - 1), zlib.crc32(content)),
        disk=seldom(st.sampled_from([1, 0xFFFF]), 0) if draw(st.integers(0, 9)) == 0 else 0,
    )


@examples(short=25, full=4000)
@given(data=st.data())
def test_zips(place: Path, data: st.DataObject) -> None:
    content = bytearray(raw_zip(data.draw(st.lists(members(place), max_size=12))))
    for _ in range(data.draw(st.sampled_from([0, 0, 0, 1, 1, 3, 20]))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 0x2F, 0x5C, 0x7F, 0x80, 0xFF, content[at] ^ 0x10]))
    if data.draw(st.integers(0, 9)) == 0:
        del content[data.draw(st.integers(0, len(content))) :]
    path = place / "set.zip"
    path.write_bytes(content)
    try:
        use(path, place)
    finally:
        path.unlink()


KINDS = ["file", "file", "file", "folder", "folder", "link", "pipe"]
TARGETS = ["..", ".", "a", "/dev/zero", "/dev/stdin", "/proc/self/maps", "nowhere", "../mine", "../../..//dev/null"]


@examples(short=12, full=1000)
@given(data=st.data())
def test_folders(place: Path, data: st.DataObject) -> None:
    root = place / "set"
    root.mkdir()
    folders = [root]
    try:
        for _ in range(data.draw(st.integers(0, 14))):
            name = data.draw(names).replace(b"/", b"").replace(b"\0", b"")[:255]
            path = data.draw(st.sampled_from(folders)) / os.fsdecode(name or b"a")
            if os.path.lexists(path):
                continue
            kind = data.draw(st.sampled_from(KINDS))
            if kind == "file":
                path.write_bytes(data.draw(st.sampled_from(CONTENTS)))
            elif kind == "folder":
                path.mkdir()
                folders.append(path)
            elif kind == "link":
                path.symlink_to(data.draw(st.sampled_from(TARGETS)))
            else:
                os.mkfifo(path)
        use(root, place)
    finally:
        shutil.rmtree(root)
