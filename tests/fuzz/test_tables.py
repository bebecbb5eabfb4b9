"""Tables in random dialects tell what the plain table tells; damaged ones give a listing or one line.

The generator knows which picture has which landmarks, split, clip and partner, so no dialect can exchange them unseen.
"""

import csv
import io
import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.data.layouts.listing import Listing
from engine.data.layouts.pts import parse_points
from engine.data.layouts.tables import COLUMNS, as_text
from engine.data.layouts.which_layout import list_images
from engine.errors import InputError
from tests.fuzz.budget import examples
from tests.support.memory_source import MemorySource, npy

ROOT = "/home/me/my set"
NAMES = ("1.png", "2.png", "10.png", "Photo A.JPG", "caf\u00e9.png", "cafe.png", "a/1.png", "a b/c.jpg", "x;y.png",
         "z,z.png", "it's.png", "p\u017e%20.png", "\u5199\u771f.webp", "_.png", "007.png")  # fmt: skip
LINE_ENDS = ("\n", "\r\n", "\r")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")
NO_VALUE = ("", "NaN", "nan", "None", "NA", "<NA>", "null")
CLUTTER = (b",", b";", b"\t", b'"', b"\n", b"\r", b"\0", b"'", b"sep=|\n", b"\xff\xfe", b"\xef\xbb\xbf", b"file", b"-1",
           b"nan", b"9" * 400, b"[[[[", b"\xc3", b"../", b"C:\\", b"%2e%2e/", b"\x1b[2J", b" ", b"{", b"}", b":",
           b"0.0", "\u2028".encode(), b"my set/", b"images/", b"#")  # fmt: skip


def written_name(name: str, rng: random.Random) -> str:
    """The name of a picture in images/, as another program may write it."""
    spell = rng.choice(
        [str, str, str, lambda n: "./" + n, lambda n: "images/" + n, lambda n: n.replace("/", "\\"), nfd, str.upper,
         lambda n: f"{ROOT}/images/{n}", lambda n: f"C:\\data\\my set\\images\\{n}"]
    )  # fmt: skip
    return spell(name)


def nfd(name: str) -> str:
    return name.replace("\u00e9", "e\u0301").replace("\u017e", "z\u030c")


def written_number(number: int | None, rng: random.Random) -> str:
    if number is None:
        return rng.choice(NO_VALUE)
    return rng.choice([str, str, lambda n: f"{n}.0", lambda n: f" {n}", lambda n: f"{n}e0", lambda n: f"{n:03d}"])(
        number
    )


def title(column: str, rng: random.Random) -> str:
    """A name of the column in any spelling."""
    word = rng.choice(COLUMNS[column].split())
    if rng.random() < 0.3:
        word = f"{word[:2]}{rng.choice(['_', ' ', '-'])}{word[2:]}"
    return rng.choice([str, str.upper, str.title])(word)


def write_table(rows: list[list[str]], rng: random.Random) -> bytes:
    """The rows in a dialect."""
    separator, end = rng.choice([",", ";", "\t", "|"]), rng.choice(LINE_ENDS)
    out = io.StringIO()
    writer = csv.writer(
        out, delimiter=separator, lineterminator=end, quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    )
    trailing = [""] * rng.choice([0, 0, 2])
    for number, row in enumerate(rows):
        pad = " " * rng.choice([0, 0, 1]) * (number > 0)
        writer.writerow([*(pad + field + pad for field in row), *trailing])
        if rng.random() < 0.1:
            out.write(end)
    text = out.getvalue()
    if rng.random() < 0.2:
        text = f"sep={separator}{end}{text}"
    return text.encode(rng.choice(ENCODINGS))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them cut out, repeated, exchanged, or with clutter put in."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(data))
        to = min(len(data), at + rng.choice([1, 1, 3, 30]))
        what = rng.randrange(6)
        if what == 0:
            del data[at:to]
        elif what == 1:
            data[at:at] = data[at:to] * rng.choice([1, 2, 50])
        elif what == 2:
            data[at:to] = rng.randbytes(to - at)
        elif what == 3:
            del data[at:]
        elif what == 4:
            data = data.replace(rng.choice(CLUTTER), rng.choice(CLUTTER), rng.choice([1, -1]))
        else:
            data[at:at] = rng.choice(CLUTTER)
    return bytes(data)


def listing_or_line(files: dict[str, bytes], table: str) -> Listing | None:
    """What is listed, or None for an InputError, which must be one line that names the table or a file of the set."""
    try:
        return list_images(MemorySource(files, ROOT))
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        assert str(error).startswith(ROOT) and any(name in str(error) for name in (table, *files))
        return None


seeds = st.integers(0, 2**32 - 1)


@examples(short=60, full=1500)
@given(seeds)
def test_manifests(seed: int) -> None:
    rng = random.Random(seed)
    names = rng.sample(NAMES, rng.randint(1, 6))
    files = {f"images/{name}": b"" for name in names}
    points = np.arange(8 * 68 * 2, dtype=np.float32).reshape(8, 68, 2)
    files["landmarks_68.npy"] = npy(points.astype(rng.choice(["<f4", ">f8", "<f2", "<i4"])))
    marks = {name: rng.choice([None, *range(8)]) for name in names}
    frames = {name: number if rng.random() < 0.8 else None for number, name in enumerate(names, start=5)}
    splits = {name: rng.choice(["train", "val", ""]) for name in names}
    columns = ["file", "landmarks_row", "frame", "video", "split"]
    rows = [[title(column, rng) for column in columns]]
    for name in names:
        row = [name, written_number(marks[name], rng), written_number(frames[name], rng), "v 1", splits[name]]
        rows.append([written_name(row[0], rng), *row[1:]])
    order = rng.sample(range(len(columns)), len(columns))
    table = write_table([[row[i] for i in order] for row in rows], rng)
    listing = list_images(MemorySource(files | {"manifest.csv": table}, ROOT))
    assert listing.names == sorted(f"images/{name}" for name in names) and listing.missing == []
    assert listing.splits == {f"images/{name}": split for name, split in splits.items() if split}
    assert {name: number for name, (_, number) in listing.frames.items()} == {
        f"images/{name}": number for name, number in frames.items() if number is not None
    }
    assert listing.landmarks.keys() == {f"images/{name}" for name, row in marks.items() if row is not None}
    for name, found in listing.landmarks.items():
        np.testing.assert_array_equal(
            found, points[marks[name.removeprefix("images/")]].astype(np.float16), strict=False
        )
    found = listing_or_line(files | {"manifest.csv": damaged(table, rng)}, "manifest.csv")
    if found is not None:
        assert set(found.names) <= files.keys()
        assert all((points == marks).all((1, 2)).any() for marks in found.landmarks.values())


@examples(short=40, full=1000)
@given(seeds)
def test_pairs(seed: int) -> None:
    rng = random.Random(seed)
    names = rng.sample(NAMES, rng.randint(2, 6))
    files = {f"images/{name}": b"" for name in names}
    pairs = [tuple(rng.choices(names, k=2)) for _ in range(rng.randint(1, 6))]
    rows = [[title("source", rng), title("target", rng)]]
    rows += [[written_name(first, rng), written_name(second, rng)] for first, second in pairs]
    files["keypoints_18.npy"] = npy(np.ones((len(pairs), 2, 18, 2)))
    table = write_table(rows, rng)
    listing = list_images(MemorySource(files | {"pairs.csv": table}, ROOT))
    assert listing.pairs == [(f"images/{first}", f"images/{second}") for first, second in pairs]
    assert listing.missing == [] and len(listing.landmarks) == len({name for pair in pairs for name in pair})
    found = listing_or_line(files | {"pairs.csv": damaged(table, rng)}, "pairs.csv")
    assert found is None or {name for pair in found.pairs for name in pair} <= files.keys()


@examples(short=40, full=750)
@given(seeds)
def test_key_points_of_deepfashion(seed: int) -> None:
    rng = random.Random(seed)
    names = rng.sample([name for name in NAMES if "/" not in name], rng.randint(1, 5))
    files = {f"train/{name}": b"" for name in names}
    points = {name: [[rng.choice([-1, rng.randint(0, 99)]) for _ in range(18)] for _ in "yx"] for name in names}
    rows = [[title("file", rng), "keypoints_y", "Keypoints X"]]
    rows += [[written_name(name, rng).replace("images", "train"), *map(str, points[name])] for name in names]
    table, start = write_table(rows, rng), rng.choice(["fasion-resize-", "fashion-"])
    pairs, annotation = f"{start}pairs-train.csv", f"{start}annotation-train.csv"
    files[pairs] = write_table([["from", "to"], [names[0], names[-1]]], rng)
    listing = list_images(MemorySource(files | {annotation: table}, ROOT))
    for name in names:
        y, x = np.array(points[name], np.float32)
        missing = (x == -1) | (y == -1)
        wanted = np.where(missing[:, None], np.nan, np.stack([x, y], axis=1))
        if missing.all():
            assert f"train/{name}" in listing.unmarked
        else:
            np.testing.assert_array_equal(listing.landmarks[f"train/{name}"], wanted)
    listing_or_line(files | {annotation: damaged(table, rng)}, annotation)
    listing_or_line(files | {annotation: table, pairs: damaged(files[pairs], rng)}, pairs)


@examples(short=40, full=1000)
@given(seeds)
def test_celeba(seed: int) -> None:
    rng = random.Random(seed)
    suffix, folder = (
        rng.choice([".jpg", ".png", ".JPG"]),
        rng.choice(["img_align_celeba/", "CelebA/Img/img_align_celeba/"]),
    )
    numbers = [f"{i:06d}" for i in range(1, rng.randint(2, 6))]
    files = {f"{folder}{number}{suffix}": b"" for number in numbers}
    tables = {
        "list_eval_partition": (["partition"], {number: [rng.randrange(3)] for number in numbers}),
        "identity_CelebA": (["identity"], {number: [rng.randrange(9)] for number in numbers}),
        "list_attr_celeba": (["Bald", "No_Beard"], {n: [rng.choice([-1, 1]), rng.choice([-1, 1])] for n in numbers}),
        "list_landmarks_align_celeba": (list("abcdefghij"), {n: rng.choices(range(178), k=10) for n in numbers}),
    }
    for table, (titles, values) in tables.items():
        rows = [
            [f"{n}.jpg", *(written_number(value, rng) for value in values[n])]
            for n in rng.sample(numbers, len(numbers))
        ]
        if rng.random() < 0.5:
            files[f"{table}.csv"] = write_table([[rng.choice(["image_id", "File"]), *titles], *rows], rng)
        else:
            header = [] if len(titles) == 1 else [[str(len(rows))], titles]
            lines = "".join(f"{rng.choice(['  ', ' ']).join(row)}{rng.choice(LINE_ENDS)}" for row in [*header, *rows])
            files[f"{table}.txt"] = lines.encode(rng.choice(ENCODINGS))
    listing = list_images(MemorySource(files, ROOT))
    for number in numbers:
        name, values = f"{folder}{number}{suffix}", {table: values[number] for table, (_, values) in tables.items()}
        assert listing.splits[name] == ("train", "val", "test")[values["list_eval_partition"][0]]
        assert listing.identities[name] == values["identity_CelebA"][0]
        assert listing.attributes[name].tolist() == [value > 0 for value in values["list_attr_celeba"]]
        assert listing.landmarks[name].ravel().tolist() == values["list_landmarks_align_celeba"]
    broken = rng.choice([name for name in files if not name.startswith(folder)])
    listing_or_line(files | {broken: damaged(files[broken], rng)}, broken)


@examples(short=60, full=750)
@given(seeds)
def test_pts_files(seed: int) -> None:
    rng = random.Random(seed)
    points = np.round(np.random.default_rng(seed).uniform(-50, 2000, (68, 2)), rng.choice([0, 1, 3]))
    between = rng.choice(
        [" ", "\t", "   ", ";", "; "] if (comma := rng.random() < 0.3) else [" ", ", ", ",", ";", "\t"]
    )
    lines = [f"{x:g}{between}{y:g}" if abs(x) < 1e5 else "" for x, y in points]
    lines = [line.replace(".", ",") for line in lines] if comma else lines
    head = [*rng.choice([[], ["version: 1"], ["Version : 1.0"]]), rng.choice(["n_points: 68", "N_POINTS:68"]), "{"]
    lines = [
        line for plain in [*head, *lines, "}"] for line in [plain, *rng.choices(["", "# remark"], k=rng.random() < 0.1)]
    ]
    end = rng.choice(LINE_ENDS)
    data = (end.join(lines) + rng.choice(["", end])).encode(rng.choice(ENCODINGS))
    written = np.array([[float(f"{value:g}") for value in point] for point in points])
    np.testing.assert_allclose(parse_points(as_text(data, "x.pts"), "x.pts"), written - 1)
    try:
        assert parse_points(as_text(damaged(data, rng), "x.pts"), "x.pts").shape == (68, 2)
    except InputError as error:
        assert str(error).startswith("x.pts") and "\n" not in str(error) and len(str(error)) < 1000
