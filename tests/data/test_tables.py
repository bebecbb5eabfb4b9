"""Tables in the dialects that people save: the listing is that of the plain table, or one line says what is wrong."""

import io
import re
from pathlib import Path

import numpy as np
import pytest

from engine.data.layouts.listing import Listing
from engine.data.layouts.tables import COLUMNS, whole_number
from engine.data.layouts.which_layout import list_images
from engine.errors import InputError
from tests.support.memory_source import MemorySource, npy
from tests.support.places import ROOT

POINTS = np.arange(4 * 68 * 2, dtype=np.float32).reshape(4, 68, 2)
PICTURES = {f"images/{i:03d}.png": b"" for i in range(3)}
ROWS = [
    ["file", "landmarks_row", "video", "frame", "split"],
    ["000.png", "3", "v1", "10", "train"],
    ["001.png", "0", "v1", "9", "val"],
    ["002.png", "", "", "", ""],
]


def table(separator: str = ",", end: str = "\n", rows: list[list[str]] | None = None) -> str:
    return "".join(separator.join(row) + end for row in rows or ROWS)


def list_set(manifest: str | bytes, files: dict[str, bytes] | None = None, name: str = "manifest.csv") -> Listing:
    """What is listed of three pictures and a manifest."""
    data = manifest.encode() if isinstance(manifest, str) else manifest
    return list_images(MemorySource(PICTURES | {"landmarks_68.npy": npy(POINTS), name: data} | (files or {})))


def told(listing: Listing) -> tuple:
    """All that a manifest tells, in a form that can be compared."""
    marks = {name: int(points[0, 0]) // (68 * 2) for name, points in listing.landmarks.items()}
    return listing.names, marks, listing.frames, listing.splits, listing.missing, listing.points


PLAIN = (
    list(PICTURES),
    {"images/000.png": 3, "images/001.png": 0},
    {"images/000.png": ("train\0\0v1", 10), "images/001.png": ("val\0\0v1", 9)},
    {"images/000.png": "train", "images/001.png": "val"},
    [],
    68,
)


def renamed(*titles: str) -> str:
    return table(rows=[list(titles), *ROWS[1:]])


DIALECTS = {
    "plain": table(),
    "semicolons": table(";"),
    "tabs": table("\t"),
    "bars": table("|"),
    "blanks": table("  ", rows=[*ROWS[:3], ["002.png"]]),
    "sep=": "sep=;\n" + table(";"),
    "sep= of Excel": '"sep=,"\r\n' + table(end="\r\n"),
    "CRLF": table(end="\r\n"),
    "CR": table(end="\r"),
    "empty lines": "\n\n" + table(end="\n\n"),
    "separators at the end": table(",", ",,\n"),
    "empty rows before": ",,,,\n" + table(),
    "empty rows": table() + ",,,,\n  \n",
    "blanks around": table(" , "),
    "quoted": table(rows=[[f'"{field}"' for field in row] for row in ROWS]),
    "quoted, with blanks": table(" ; ", rows=[[f'"{field}"' for field in row] for row in ROWS]),
    "whole lines quoted": "".join(f'"{",".join(row)}"\n' for row in ROWS),
    "a mark": "\ufeff" + table(),
    "UTF-16": table("\t").encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + table("\t").encode("utf-16-be"),
    "capitals": renamed("FILE", "Landmarks_Row", "VIDEO", "Frame", "Split"),
    "words": renamed("File Name", "Landmark row", "Clip ID", "frame number", "Subset"),
    "other words": renamed("image_path", "row", "clip", "frame_id", "set"),
    "and others": renamed("img", "landmarksRow", "video-name", "FrameIndex", "partition"),
    "the index of pandas": "".join(f"{i or ''},{line}\n" for i, line in enumerate(table().splitlines())),
    "floats": table().replace(",3,", ",3.0,").replace(",10,", ",10.0,").replace(",9,", ",9.00,"),
    "decimal commas": table(";").replace(";3;", ";3,0;").replace(";10;", ";10,0;"),
    "powers of ten": table().replace(",10,", ",1e1,").replace(",0,", ",0e0,"),
    "NaN": table().replace("002.png,,,,", "002.png,NaN,nan,<NA>,None"),
    "N/A": table().replace("002.png,,,,", "002.png,N/A,NULL,#N/A,null"),
    "splits in words": table().replace("train", "Training").replace("val", " Validation "),
    "paths": table().replace("00", "images/00"),
    "backslashes": table().replace("00", ".\\\\images\\\\00"),
    "absolute paths": table().replace("00", "/home/me/my set/images/00"),
    "escaped paths": table().replace("00", "file:///home/me/my%20set/images/00"),
    "other capitals": table().replace("png", "PNG"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_of_the_manifest(dialect: str) -> None:
    assert told(list_set(DIALECTS[dialect])) == PLAIN


@pytest.mark.parametrize("name", ["Manifest.CSV", "manifest.tsv", "manifest.csv.txt"])
def test_names_of_the_manifest(name: str) -> None:
    assert told(list_set(table("\t"), name=name)) == PLAIN
    inside = MemorySource({f"TOP/{n}": d for n, d in (PICTURES | {name: table().encode()}).items()})
    with pytest.raises(InputError, match=f"TOP/{name} has the column landmarks_row, but landmarks_68.npy or"):
        list_images(inside)


def test_names_of_files_in_pandas_and_spreadsheets() -> None:
    assert told(list_set(table().replace(".png", "")))[1] == PLAIN[1]
    one = table(rows=[["file"], ["000.png"], ["002.png"]])
    assert list_set(one).names == ["images/000.png", "images/002.png"]
    assert list_set("file name\n000.png\n").names == ["images/000.png"]


def test_video_numbers_as_floats() -> None:
    rows = table(rows=[ROWS[0], ["000.png", "", "7.0", "1.0", ""], ["001.png", "", "7", "2", ""]])
    assert set(list_set(rows).frames.values()) == {("\0\0" + "7", 1), ("\0\0" + "7", 2)}
    of_people = "file,person,frame\n000.png,ann,1\n001.png,ann,2\n"
    assert set(list_set(of_people).frames.values()) == {("\0\0ann", 1), ("\0\0ann", 2)}


MESSAGES = {
    "wrong columns": (
        "a,b\n1,2\n",
        "manifest.csv has the columns a, b; expected file (or file_source and file_target)",
    ),
    "no header": ("000.png,0\n001.png,1\n", "manifest.csv has the columns 000.png, 0; expected file"),
    "another separator": ("file/landmarks_row\n", "manifest.csv has the columns file/landmarks_row; expected file"),
    "nothing": ("", "manifest.csv has no line of column names; expected file"),
    "blanks only": (" \n,,\n", "manifest.csv has no line of column names"),
    "no rows": ("file,landmarks_row\n", "manifest.csv names no file"),
    "no file": ("file,split\n,train\n", "manifest.csv line 2: file is empty, but the row has other fields"),
    "too many fields": (
        "file,split\n000.png,train,0\n",
        "manifest.csv line 2 has 3 fields, the header 2: file, split",
    ),
    "one column twice": ("file,File\n000.png,001.png\n", "manifest.csv has two columns file; its columns: file, File"),
    "an open quote": ('file,split\n"000.png,train\n001.png,val\n', "line 3 is not CSV (unexpected end of data)"),
    "a line in quotes": ('file,split\n"000.png\n",train\n\n"001\n.png",val\n', "line 6: a field in quotes goes over"),
    "a header in quotes": ('"a\nb",c\n', "manifest.csv has the columns a b, c; expected file"),
    "Latin-1": ("file\ncafé.png\n".encode("latin-1"), "manifest.csv cannot be read ("),
    "UTF-16 without a mark": (
        "file\n000.png\n".encode("utf-16-le"),
        "manifest.csv cannot be read (it holds zero bytes)",
    ),
    "half a number": ("file,frame,video\n000.png,1.5,v\n", "line 2: frame is '1.5'; expected a whole number"),
    "thousands": ("file;frame;video\n000.png;1,000;v\n", "line 2: frame is '1,000'; expected a whole number"),
    "a long number": (f"file,frame,video\n000.png,{'9' * 5000},v\n", f"line 2: frame is '{'9' * 40}'; expected"),
    "a huge number": ("file,frame,video\n000.png,1e9999,v\n", "line 2: frame is '1e9999'; expected a whole number"),
    "a long row": (
        f"file,row\n000.png,{'1' * 5000}\n",
        f"landmarks_row is '{'1' * 40}', but landmarks_68.npy has rows 0",
    ),
    "no such row": ("file,row\n000.png,4.0\n", "line 2: landmarks_row is '4.0', but landmarks_68.npy has rows 0 to 3"),
    "one frame twice": (
        "file,video,frame\n000.png,v,1\n001.png,v,2\n002.png,v,1.0\n",
        "line 4: images/002.png and images/000.png are both frame 1 of v",
    ),
    "several files": ("file\nX.png\n", "line 2: 'X.png' can be images/x.PNG or images/x.png: write the one you mean"),
}


@pytest.mark.parametrize("fault", MESSAGES)
def test_manifests_that_are_not_understood(fault: str) -> None:
    manifest, message = MESSAGES[fault]
    with pytest.raises(InputError) as raised:
        list_set(manifest, {"images/x.png": b"", "images/x.PNG": b""})
    assert str(raised.value).startswith("/home/me/my set: manifest.csv") and "\n" not in str(raised.value)
    assert message in str(raised.value)


def npz(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, array)
    return out.getvalue()


def newer(array: np.ndarray, version: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version)
    return out.getvalue()


def with_version(data: bytes, version: int) -> bytes:
    return data[:6] + bytes([version]) + data[7:]


ARRAYS = {
    "float64": npy(POINTS.astype(np.float64)),
    "float16": npy((POINTS / 2).astype(np.float16)),
    "int32": npy(POINTS.astype(np.int32)),
    "big end first": npy(POINTS.astype(">f8")),
    "Fortran order": npy(np.asfortranarray(POINTS)),
    "x and y first": npy(POINTS.transpose(0, 2, 1)),
    "format 2": newer(POINTS, (2, 0)),
    "format 3": newer(POINTS, (3, 0)),
    "longer": npy(np.concatenate([POINTS, POINTS])),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_landmarks(kind: str) -> None:
    listing = list_set(table(), {"landmarks_68.npy": ARRAYS[kind]})
    wanted = POINTS.astype(np.float16) if kind == "float16" else POINTS
    found = listing.landmarks["images/000.png"] * (2 if kind == "float16" else 1)
    assert found.dtype == np.float32 and set(listing.landmarks) == {"images/000.png", "images/001.png"}
    np.testing.assert_array_equal(found, wanted[3])


BAD_ARRAYS = {
    "flat": (
        npy(POINTS.reshape(4, 136)),
        "landmarks_68.npy holds float32 (4, 136); expected floats of shape (N, 68, 2)",
    ),
    "three coordinates": (npy(np.zeros((4, 68, 3))), "holds float32 (4, 68, 3); expected floats of shape (N, 68, 2)"),
    "a number": (npy(np.float32(3)), "expected floats of shape (N, 68, 2)"),
    "objects": (
        npy(np.array([{}, 1], object)),
        "landmarks_68.npy is not a readable .npy array (it holds pickled objects",
    ),
    "texts": (npy(np.full((4, 68, 2), "1")), "landmarks_68.npy holds <U1 (4, 68, 2); expected floats"),
    "complex": (npy(POINTS.astype(np.complex64)), "holds complex64 (4, 68, 2); expected floats"),
    "truth": (npy(POINTS > 3), "holds bool (4, 68, 2); expected floats"),
    "npz": (npz(POINTS), "landmarks_68.npy is a .npz archive; expected one array, as numpy.save writes it"),
    "pickle": (b"\x80\x04K\x01.", "landmarks_68.npy is not a readable .npy array (it holds pickled objects"),
    "cut": (npy(POINTS)[:-9], "landmarks_68.npy is not a readable .npy array"),
    "a later format": (with_version(npy(POINTS), 4), "landmarks_68.npy is not a readable .npy array (we only support"),
    "no rows": (npy(POINTS[:0]), "landmarks_row is '3', but landmarks_68.npy has no rows"),
    "empty": (b"", "landmarks_68.npy is not a readable .npy array"),
    "deep header": (
        npy(POINTS).replace(b"'descr': '<f4'", b"((((((((((((((("),
        "landmarks_68.npy is not a readable .npy array",
    ),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_arrays_that_are_refused(kind: str) -> None:
    data, message = BAD_ARRAYS[kind]
    with pytest.raises(InputError) as raised:
        list_set(table(), {"landmarks_68.npy": data})
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_landmarks_that_are_no_numbers() -> None:
    points = POINTS.astype(np.float64)
    points[3, 5, 0], points[0, 0] = np.nan, 1e300
    listing = list_set(table(), {"landmarks_68.npy": npy(points)})
    assert listing.landmarks == {}
    assert listing.unmarked == dict.fromkeys(PLAIN[1], "its landmarks are not all finite numbers")


def test_rows_without_an_array() -> None:
    for extra, there in (({}, "not beside it"), ({"landmarks_68.npz": b""}, "(there is landmarks_68.npz)")):
        with pytest.raises(InputError, match=r"manifest.csv has the column row, but landmarks_68.npy or") as raised:
            list_images(MemorySource(PICTURES | {"manifest.csv": b"file,row\n000.png,0\n"} | extra))
        assert there in str(raised.value)
    upper = MemorySource(PICTURES | {"manifest.csv": b"file,row\n000.png,0\n", "Landmarks_68.NPY": npy(POINTS)})
    assert list_images(upper).points == 68


def test_the_names_of_columns_are_documented() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for what, names in COLUMNS.items():
        assert re.search(rf"^\| .*`{what}` \| {', '.join(names.split())} \|$", page, re.MULTILINE), what


def test_what_is_not_used_is_told() -> None:
    other = {"metadata.csv": b"id,caption\n1,a face\n", "notes/a.xlsx": b"", "landmarks_68.npy": npy(POINTS)}
    listing = list_images(MemorySource(PICTURES | other))
    assert listing.layout == "images" and len(listing.names) == 3
    assert [name for name, _ in listing.unused] == ["landmarks_68.npy", "metadata.csv", "notes/a.xlsx"]
    assert "manifest.csv" in dict(listing.unused)["landmarks_68.npy"]
    assert list_set(table()).unused == []
    assert [name for name, _ in list_set("file\n000.png\n").unused] == ["landmarks_68.npy"]


def test_it_is_told_by_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("nvidia.dali")
    from engine.data import open_dataset
    from engine.data.__main__ import main
    from tests.support.data_images import write_pictures

    folder = write_pictures(tmp_path / "set", 2)
    (folder / "metadata.csv").write_text("id,caption\n")
    assert len(open_dataset(folder, channels=3, resolution=16)) == 2
    line = "not used: metadata.csv: no layout has a table of this name here\n"
    assert capsys.readouterr().err == f"kiln: set: {line}"
    assert main(["validate", str(folder)]) == 0
    assert "not used     metadata.csv: no layout has" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3), ("+3", 3), ("-3", -3), (" 3 ", 3), ("3.", 3), ("3.0", 3), ("3,0", 3), ("3e2", 300), ("30e-1", 3),
        ("-0.0", 0), ("0e9999", 0), ("0" * 5000 + "7", 7), ("9" * 18, 10**18 - 1),
        ("", None), ("x", None), ("3.5", None), ("3,5", None), ("1,000", None), ("1_0", None), ("nan", None),
        ("inf", None), ("\u0663", None), ("0x3", None), ("9" * 19, None), ("1e9999", None), ("1e-9999", None),
        ("3 4", None), ("--3", None),
    ],
)  # fmt: skip
def test_whole_numbers(text: str, number: int | None) -> None:
    assert whole_number(text) == number
