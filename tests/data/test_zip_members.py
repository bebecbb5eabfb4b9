"""What a zip lists: names as every writer stores them, members that are no files, and what cannot be unpacked."""

import bz2
import stat
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from engine.data.layouts.sources import ZipSource, open_source
from engine.errors import InputError
from engine.host.input_files import UnreadableFile
from tests.support.raw_zip import Member, deflated, raw_zip, unicode_path

LINK, PIPE, FOLDER, FILE = (kind | 0o644 for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR, stat.S_IFREG))


def source_of(folder: Path, *members: Member) -> ZipSource:
    path = folder / "set.zip"
    path.write_bytes(raw_zip(members))
    source = open_source(path)
    assert isinstance(source, ZipSource)
    return source


@pytest.mark.parametrize(
    ("stored", "listed"),
    [
        (b"a.png", "a.png"),
        (b"set\\images\\a.png", "set/images/a.png"),
        (b"set/images\\a.png", "set/images/a.png"),
        (b"./set//images/./a.png", "set/images/a.png"),
        (".\\ä\\面.png".encode(), "ä/面.png"),
        ("ä.png".encode("cp437"), "ä.png"),
        ("日.png".encode("shift-jis"), b"\x93\xfa.png".decode("cp437")),  # its code page cannot be known
        (b"a/B.PNG", "a/B.PNG"),
        (b"line\nend.png", "line\nend.png"),
        (b"c:a.png", "c:a.png"),
        (b"1:/a.png", "1:/a.png"),
        (b"a/a...png", "a/a...png"),
    ],
)
def test_names(tmp_path: Path, stored: bytes, listed: str) -> None:
    source = source_of(tmp_path, Member(stored, b"content"))
    assert source.files() == [listed] and source.passed_over == []
    assert source.read(listed) == b"content" and source.stamp(listed).size == 7


def test_a_name_in_utf8_beside_one_of_a_code_page(tmp_path: Path) -> None:
    name, other = "ä.png".encode("cp1252"), "ö.png".encode("cp1252")
    belongs = unicode_path(name, "ä.png".encode())
    source = source_of(tmp_path, Member(name, b"1", extra=belongs), Member(other, b"2", extra=belongs))
    assert source.files() == ["ä.png", other.decode("cp437")]
    assert source.read("ä.png") == b"1"


@pytest.mark.parametrize("flags", [0, 0x800])
@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (b"/etc/a.png", "absolute name"),
        (b"\\\\server\\share\\a.png", "absolute name"),
        (b"C:\\a.png", "a drive in its name"),
        (b"../a.png", r".. in its name"),
        (b"b\\..\\..\\a.png", r".. in its name"),
        (b"a.png\0.txt", "zero byte"),
        (b"//", "absolute name"),
        (b"", "has no name"),
    ],
)
def test_names_that_lead_out(tmp_path: Path, stored: bytes, flags: int, reason: str) -> None:
    source = source_of(tmp_path, Member(stored, b"x", flags=flags), Member(b"b/a.png", b"y", flags=flags))
    assert source.files() == ["b/a.png"] and source.read("b/a.png") == b"y"
    ((name, why),) = source.passed_over
    assert reason in why and name.replace("\\", "/") == stored.decode().replace("\\", "/")


def test_members_that_are_no_files(tmp_path: Path) -> None:
    source = source_of(
        tmp_path,
        Member(b"to.png", b"/etc/passwd", mode=LINK),
        Member(b"pipe.png", mode=PIPE),
        Member(b"full/", b"content", mode=FOLDER),
        Member(b"empty/"),
        Member(b"empty too", mode=FOLDER),
        Member(b"back\\"),
        Member(b"__MACOSX/._a.png", b"x"),
        Member(b"x/Thumbs.db", b"x"),
        Member(b".hidden.png", b"x"),
        Member(b"a.png", b"x", mode=FILE),
    )
    assert source.files() == ["a.png"]
    assert [(name, why.split(",")[0]) for name, why in source.passed_over] == [
        ("to.png", "a symbolic link"),
        ("pipe.png", "neither a file nor a folder"),
        ("full/", "a folder that has content of its own"),
    ]


def test_the_last_of_doubled_names_counts_as_when_unpacked(tmp_path: Path) -> None:
    members = [Member(b"a.png", b"1"), Member(b"A.png", b"2"), Member(b"./a.png", b"3"), Member(b"d/a.png", b"4")]
    source = source_of(tmp_path, *members)
    assert source.files() == ["A.png", "a.png", "d/a.png"]
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        archive.extractall(tmp_path / "out")
    for name in source.files():
        assert source.read(name) == (tmp_path / "out" / name).read_bytes()
    assert source.passed_over == [("a.png", "named twice in the zip; the last one counts, as when it is unpacked")]


@pytest.mark.parametrize(
    ("method", "name"),
    [(9, "Deflate64"), (93, "Zstandard"), (95, "XZ"), (98, "PPMd"), (6, "Implode"), (77, "method 77")],
)
def test_a_method_that_python_lacks_is_named(tmp_path: Path, method: int, name: str) -> None:
    source = source_of(tmp_path, Member(b"a.png", b"x" * 30, method=method))
    if zipfile.__dict__.get("ZIP_ZSTANDARD") == method:
        pytest.skip("this Python has it")
    with pytest.raises(UnreadableFile, match=rf"compressed with {name}, .*: unpack it, or zip it with Deflate"):
        source.read("a.png")


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (Member(b"a.png", b"x", flags=1), "is encrypted: unpack it to a folder with its password"),
        (Member(b"a.png", b"x", flags=0x40), "is encrypted"),
        (
            Member(b"a.png", b"x", disk=2),
            r"one of several parts of a zip: join them \(zip -s 0 set.zip --out whole.zip\)",
        ),
    ],
)
def test_zips_that_need_another_tool(tmp_path: Path, member: Member, message: str) -> None:
    with pytest.raises(InputError, match=message):
        source_of(tmp_path, member)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (deflated(b"a.png", b"x" * 99, size=200), "99 of 200 bytes"),
        (deflated(b"a.png", b"x" * 99, size=50), "damaged zip member"),
        (deflated(b"a.png", b"x" * 99, crc=1), "damaged zip member"),
        (Member(b"a.png", b"\xff" * 50, method=8, size=100), "damaged zip member"),
        (Member(b"a.png", b"\xff" * 50, method=14, size=100), "damaged zip member"),
        (Member(b"a.png", b"x", size=(1 << 32) - 2), r"too large \(4.3 GB; Kiln reads up to 1.1 GB"),
    ],
)
def test_damaged_members(tmp_path: Path, member: Member, message: str) -> None:
    source = source_of(tmp_path, member, Member(b"b.png", b"good"))
    with pytest.raises(UnreadableFile, match=message):
        source.read("a.png")
    assert source.read("b.png") == b"good"


def test_a_member_that_unpacks_to_far_more_than_it_says_is_not_held(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = b"".join(packer.compress(bytes(1 << 20)) for _ in range(40)) + packer.flush()
    more = bz2.compress(bytes(40 << 20))
    source = source_of(tmp_path, Member(b"a.png", zeros, method=8, size=9), Member(b"b.png", more, method=12, size=9))
    tracemalloc.start()
    for name in source.files():
        with pytest.raises(UnreadableFile, match="damaged zip member"):
            source.read(name)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_method_of_python(tmp_path: Path, method: int) -> None:
    contents = {"a.png": np.random.default_rng(0).bytes(300_000), "b.png": bytes(2 << 20), "c.png": b"", "d.png": b"x"}
    with zipfile.ZipFile(tmp_path / "set.zip", "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    source = ZipSource(tmp_path / "set.zip")
    assert {name: source.read(name) for name in source.files()} == contents
    assert source.read_start("a.png", 1000) == contents["a.png"][:1000]


def test_a_list_of_members_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.data.layouts.zip_members.MAX_LIST_BYTES", 1000)
    assert len(source_of(tmp_path, *(Member(b"%02d.png" % i) for i in range(19))).files()) == 19
    with pytest.raises(InputError, match="its list of members has"):
        source_of(tmp_path, *(Member(b"%02d.png" % i) for i in range(30)))


def test_zip64_and_a_zip_behind_other_bytes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "64.zip", "w") as archive, archive.open("a.png", "w", force_zip64=True) as file:
        file.write(b"content")
    assert ZipSource(tmp_path / "64.zip").read("a.png") == b"content"
    (tmp_path / "self.exe").write_bytes(b"program" + (tmp_path / "64.zip").read_bytes())
    source = open_source(tmp_path / "self.exe")
    assert isinstance(source, ZipSource) and source.read("a.png") == b"content"
