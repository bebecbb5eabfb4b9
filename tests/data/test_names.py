"""The order of frames, and the file that a table means by a name."""

import random

import pytest

from engine.data.layouts.names import FileFinder, frame_numbers, frame_order, natural_order
from engine.errors import InputError
from tests.support.memory_source import MemorySource


@pytest.mark.parametrize(
    "ordered",
    [
        "1.pts 2.pts 10.pts 100.pts",
        "img1.jpg img2.jpg img10.png",
        "img.jpg img1.jpg img2.jpg",
        "s1_f9.pts s1_f10.pts s2_f1.pts s10_f1.pts",
        "v2/1.pts v2/9.pts v10/1.pts v10/02.pts",
        "a/b.pts a-b/1.pts",
        "0.5.pts 0.10.pts 1.0.pts",
        "Frame1.pts frame2.pts Frame3.pts",
        "000009.jpg 10.jpg 0000000000000000000000011.jpg",
        f"2.pts {'9' * 5000}.pts 1{'0' * 5000}.pts",
    ],
)
def test_natural_order(ordered: str) -> None:
    names = ordered.split()
    shuffled = random.Random(0).sample(names, len(names))
    assert sorted(shuffled, key=natural_order) == names
    assert frame_order(shuffled, "set") == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("1.pts 001.pts", "001.pts and 1.pts have one frame number"),
        ("a/1.jpg a/1.png", "a/1.jpg and a/1.png have one frame number"),
        ("img2.jpg IMG02.jpg", "have one frame number"),
        ("1.pts -1.pts", "-1.pts has a negative number"),
    ],
)
def test_frames_that_have_no_order(names: str, message: str) -> None:
    for order in (names.split(), names.split()[::-1]):
        with pytest.raises(InputError, match=f"^set: .*{message}") as raised:
            frame_order(order, "set")
        assert all(name in str(raised.value) for name in names.split() if "negative" not in message)


def test_frame_numbers() -> None:
    names = {7: "v/annot/000007.pts", 10: "v/annot/img10.pts", 3: "v/annot/v2_frame_3.pts", 0: "0.pts"}
    assert frame_numbers(names.values(), "set") == names
    for name in ("first.pts", "-1.pts", f"{'9' * 5000}.pts"):
        with pytest.raises(InputError, match=r"^set: .* is not named after its frame's number, such as 000001"):
            frame_numbers([name], "set")
    with pytest.raises(InputError, match=r"^set: 1.jpg and 01.png have one frame number"):
        frame_numbers(["1.jpg", "2.jpg", "01.png"], "set")


FILES = [
    "images/Photo 1.JPG",
    "images/caf\u00e9.png",
    "images/a/b.png",
    "images/100%.png",
    "images/007.png",
    "beside.png",
    "images/big.png",
    "images/BIG.png",
]


def finder() -> FileFinder:
    return FileFinder(MemorySource(dict.fromkeys(FILES, b"")), FILES, ("images/", ""))


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("Photo 1.JPG", "images/Photo 1.JPG"),
        ("photo 1.jpg", "images/Photo 1.JPG"),
        ("Photo%201.JPG", "images/Photo 1.JPG"),
        ("./images/Photo 1.JPG", "images/Photo 1.JPG"),
        ("images\\a\\b.png", "images/a/b.png"),
        ("a//b.png", "images/a/b.png"),
        ("a/../a/b.png", "images/a/b.png"),
        ("my set/images/a/b.png", "images/a/b.png"),
        ("../my set/a/b.png", "images/a/b.png"),
        ("/home/me/my set/images/a/b.png", "images/a/b.png"),
        ("C:\\Users\\me\\My Set\\images\\a\\b.png", "images/a/b.png"),
        ("file:///home/me/my%20set/images/a/b.png", "images/a/b.png"),
        ("cafe\u0301.png", "images/caf\u00e9.png"),
        ("CAFE\u0301.PNG", "images/caf\u00e9.png"),
        ("100%.png", "images/100%.png"),
        ("007", "images/007.png"),
        ("beside.png", "beside.png"),
        ("big.png", "images/big.png"),
        ("BIG.png", "images/BIG.png"),
        ("./BIG.png", "images/BIG.png"),
        # of another set, or of no file
        ("b.png", None),
        ("other/a/b.png", None),
        ("/home/you/another set/images/b.png", None),
        ("../../etc/passwd", None),
        ("007.jpg", None),
        ("", None),
        ("..", None),
        ("my set", None),
    ],
)
def test_the_file_that_is_meant(text: str, file: str | None) -> None:
    assert finder()(text, "manifest.csv line 2") == file


def test_a_name_that_several_files_have() -> None:
    message = r"^manifest.csv line 2: 'Big.png' can be images/BIG.png or images/big.png: write the one you mean$"
    with pytest.raises(InputError, match=message):
        finder()("Big.png", "manifest.csv line 2")


def test_another_suffix_only_where_it_is_allowed() -> None:
    files = ["000001.png", "000002.png", "000002.jpg"]
    find = FileFinder(MemorySource({}), files, ("",), any_suffix=True)
    assert find("000001.jpg", "") == "000001.png" and find("000002.jpg", "") == "000002.jpg"
    assert FileFinder(MemorySource({}), files, ("",))("000001.jpg", "") is None
    with pytest.raises(InputError, match=r"'000002.bmp' can be 000002.jpg or 000002.png"):
        find("000002.bmp", "")
