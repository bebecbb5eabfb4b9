"""Pairs of images with 18 key points: DeepFashion's files, a pairs.csv, a manifest of pairs."""

import json
from pathlib import Path

import numpy as np
import pytest

from engine import cli
from engine.data import open_dataset, open_loader
from engine.data.__main__ import main
from engine.data.layouts.which_layout import list_images
from engine.data.reading import read_set
from engine.errors import InputError
from tests.support.data_images import picture, write_pictures, zip_of
from tests.support.memory_source import MemorySource

pytest.importorskip("nvidia.dali")


def keypoints(seed: int) -> np.ndarray:
    """(18, 2) whole numbers, some missing."""
    points = np.random.default_rng(seed).integers(0, 40, (18, 2))
    points[seed % 18] = -1
    return points


def annotation(names: dict[str, np.ndarray]) -> str:
    lines = [f"{name}: {json.dumps(p[:, 1].tolist())}: {json.dumps(p[:, 0].tolist())}" for name, p in names.items()]
    return "\n".join(["name:keypoints_y:keypoints_x", *lines]) + "\n"


def write_fashion(root: Path) -> Path:
    """Four images of training in three pairs, two of testing in one."""
    root.mkdir(parents=True)
    for split, names, pairs in (
        ("train", "abcd", [("a", "b"), ("b", "a"), ("c", "a")]),
        ("test", "ef", [("f", "e")]),
    ):
        (root / split).mkdir()
        for name in names:
            picture(ord(name), 48, 64).save(root / split / f"{name}.png")
        rows = "".join(f"{source}.png,{target}.png\n" for source, target in pairs)
        (root / f"fasion-resize-pairs-{split}.csv").write_text("from,to\n" + rows)
        marks = {f"{name}.png": keypoints(ord(name)) for name in names}
        (root / f"fasion-resize-annotation-{split}.csv").write_text(annotation(marks))
    return root


def named(images) -> list[str]:
    return [Path(images.paths[a]).stem + Path(images.paths[b]).stem for a, b in images.pairs]


def wanted(name: str) -> np.ndarray:
    points = keypoints(ord(name)).astype(np.float32)
    return np.where(points < 0, np.nan, points)


def test_deepfashion(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = write_fashion(tmp_path / "set")
    images = open_dataset(folder, channels=3, resolution=16, points=18)
    assert images.paths == [f"test/{n}.png" for n in "ef"] + [f"train/{n}.png" for n in "abcd"]
    assert images.splits == ["test"] * 2 + ["train"] * 4 and images.points == 18
    assert sorted(named(images)) == ["ab", "ba", "ca", "fe"]
    np.testing.assert_array_equal(images.landmarks, [wanted(name) for name in "efabcd"])
    training = open_dataset(folder, channels=3, resolution=16, points=18, members=2, split="train")
    assert named(training) == ["ab", "ba", "ca"] and training.paths == [f"train/{n}.png" for n in "abc"]
    assert "1 images are in no pair and left out, 3 used" in capfd.readouterr().err
    loader = open_loader(training, batch_size=3, resolution=16, channels=3, device="cpu", seed=0, members=2)
    batch = loader.next()
    found = {(int(a), int(b)) for a, b in zip(batch.indices, batch.more[0].indices, strict=True)}
    assert found == {(0, 1), (1, 0), (2, 0)}
    assert cli.status_of("data", main, ["validate", str(folder)]) == 0
    out = capfd.readouterr().out
    assert "layout       DeepFashion pairs" in out and "pairs        4; 1 images in none" in out
    assert "splits       test 2, train 4" in out and "18 for all images; 6 points missing" in out


@pytest.mark.parametrize("prefix", ["", "my pairs/"])
def test_zips(tmp_path: Path, prefix: str) -> None:
    for name, write in (("fashion", write_fashion), ("plain", write_plain)):
        folder = write(tmp_path / name)
        (folder / "keypoints_18.csv").write_text(annotation({f"{i:03d}.png": keypoints(i) for i in range(4)}))
        inside, packed = read_set(folder), read_set(zip_of(folder, tmp_path / f"{name}.zip", prefix))
        assert packed.paths == [prefix + path for path in inside.paths] and packed.splits == inside.splits
        np.testing.assert_array_equal(packed.pairs, inside.pairs)
        np.testing.assert_array_equal(packed.landmarks, inside.landmarks)


def test_pairs_that_lack_something(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = write_fashion(tmp_path / "set")
    (folder / "train" / "c.png").unlink()
    (folder / "test" / "e.png").write_bytes(b"text")
    marks = {f"{name}.png": keypoints(ord(name)) for name in "ab"} | {"d.png": np.full((18, 2), -1)}
    (folder / "fasion-resize-annotation-train.csv").write_text(annotation(marks))
    images = open_dataset(folder, channels=3, resolution=16, points=18, members=2)
    assert named(images) == ["ab", "ba"] and len(images) == 2
    assert dict(images.quarantined) == {
        "train/c.png": "named in fasion-resize-pairs-train.csv but not there",
        "test/e.png": "not an image (no known format recognised)",
        "train/d.png": "no key point is known",
    }
    assert "1 images are in no pair" in capfd.readouterr().err  # f, whose partner is no image
    with pytest.raises(InputError, match="its pairs file names no two images that can be used"):
        open_dataset(folder, channels=3, resolution=16, members=2, split="test")
    with pytest.raises(InputError, match="has pairs but no clips, this needs three frames of one video"):
        open_dataset(folder, channels=3, resolution=16, members=3)


def write_plain(root: Path, table: str = "source,target\n000.png,001.png\n002.png,000.png\n") -> Path:
    write_pictures(root, 4)
    (root / "pairs.csv").write_text(table)
    return root


def test_plain_pairs(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "set")
    images = read_set(folder)
    assert images.pairs.tolist() == [[0, 1], [2, 0]] and images.landmarks is None and images.listing.layout == "pairs"
    points = np.stack([keypoints(i) for i in (0, 1, 2, 0)]).reshape(2, 2, 18, 2)
    np.save(folder / "keypoints_18.npy", points)
    images = open_dataset(folder, channels=3, resolution=16, points=18, members=2)
    expected = np.where(points < 0, np.nan, points).astype(np.float32)
    np.testing.assert_array_equal(images.landmarks[images.pairs], expected)
    assert images.quarantined == [("003.png", "no landmarks")]
    (folder / "keypoints_18.csv").write_text(annotation({f"{i:03d}.png": keypoints(i + 5) for i in range(4)}))
    images = read_set(folder)
    assert images.points == 18 and len(images) == 4
    np.testing.assert_array_equal(np.nan_to_num(images.landmarks[3], nan=-1), keypoints(8))


def test_manifest_of_pairs(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_pictures(folder / "images", 3)
    rows = ["000.png,001.png,1,train", "001.png,002.png,0,train"]
    (folder / "manifest.csv").write_text("\n".join(["file_source,file_target,landmarks_row,split", *rows]))
    points = np.stack([keypoints(i) for i in (1, 2, 0, 1)]).reshape(2, 2, 18, 2)
    np.save(folder / "keypoints_18.npy", points.astype(np.int16))
    images = open_dataset(folder, channels=3, resolution=16, points=18, members=2, split="train")
    assert images.pairs.tolist() == [[0, 1], [1, 2]] and images.listing.layout == "manifest of pairs"
    np.testing.assert_array_equal(
        np.nan_to_num(images.landmarks, nan=-1), np.stack([keypoints(i) for i in range(3)]).astype(np.float32)
    )


PAIR_ROWS = [["source", "target"], ["000.png", "001.png"], ["002.png", "000.png"]]


def pair_table(separator: str = ",", end: str = "\n", header: str = "") -> str:
    return header + "".join(separator.join(row) + end for row in PAIR_ROWS[bool(header) :])


PAIR_DIALECTS = {
    "semicolons": pair_table(";"),
    "tabs": pair_table("\t"),
    "blanks": pair_table(" "),
    "sep=": "sep=;\r\n" + pair_table(";", "\r\n"),
    "UTF-16": pair_table("\t", "\r\n").encode("utf-16"),
    "capitals": pair_table(header="Source, TARGET\n"),
    "from": pair_table(header="From File,To File\n"),
    "of a manifest": pair_table(";", header="file_source;file_target\n"),
    "paths": pair_table().replace("00", "set\\00"),
    "quoted": pair_table('","').replace("\n", '"\n"').replace("source", '"source')[:-1],
}


@pytest.mark.parametrize("dialect", PAIR_DIALECTS)
def test_dialects_of_pairs(dialect: str) -> None:
    text = PAIR_DIALECTS[dialect]
    data = text if isinstance(text, bytes) else text.encode()
    files = {"000.png": b"", "001.png": b"", "002.png": b"", "pairs.csv": data}
    listing = list_images(MemorySource(files, "/home/me/set"))
    assert listing.pairs == [("000.png", "001.png"), ("002.png", "000.png")] and listing.missing == []
    assert listing.layout == "pairs" and listing.unused == []


def annotation_of(separator: str, quote: str = "", header: str = "name:keypoints_y:keypoints_x") -> str:
    columns = header.split(":")
    order = [["name", "keypoints_y", "keypoints_x"].index(column.strip().lower()) for column in columns]
    lines = [separator.join(columns)]
    for i in range(2):
        fields = [f"{i}.png", str([i] * 18), str([2 + i] * 18)]
        lines.append(separator.join(f"{quote}{fields[column]}{quote}" for column in order))
    return "\n".join(lines) + "\n"


ANNOTATIONS = {
    "plain": annotation_of(":"),
    "blanks": annotation_of(" : "),
    "capitals": annotation_of(":", header="Name:Keypoints_Y:KEYPOINTS_X"),
    "x first": annotation_of(":", header="name:keypoints_x:keypoints_y"),
    "commas": annotation_of(",", '"'),
    "semicolons": annotation_of(";"),
    "tabs": "\ufeff" + annotation_of("\t").replace("\n", "\r\n"),
    "paths": annotation_of(":").replace("0.png", "train/0.png"),
}


@pytest.mark.parametrize("dialect", ANNOTATIONS)
def test_dialects_of_deepfashion(dialect: str) -> None:
    pairs = b"To;From\r\n0.png;1.png\r\n"
    files = {"train/0.png": b"", "train/1.png": b"", "fasion-resize-pairs-train.csv": pairs}
    files["fasion-resize-annotation-train.csv"] = ANNOTATIONS[dialect].encode()
    listing = list_images(MemorySource(files, "/home/me/set"))
    assert listing.pairs == [("train/1.png", "train/0.png")] and listing.unused == []
    assert {name: points.tolist() for name, points in listing.landmarks.items()} == {
        f"train/{i}.png": [[2 + i, i]] * 18 for i in range(2)
    }


HUGE = "9" * 5000
BAD_LISTS = ("[", "3", "{}", '"x"', "[[1]]", '["x"]', "[" * 100_000, f"[{HUGE}]", f"[1e999, {'1, ' * 16}{10**400}]", "")


@pytest.mark.parametrize("text", BAD_LISTS, ids=range(len(BAD_LISTS)))
def test_key_points_that_are_no_lists_of_numbers(text: str) -> None:
    table = f"name\tkeypoints_y\tkeypoints_x\n0.png\t'{text}\t{[1] * 18}\n".replace("'", "")
    files = {"0.png": b"", "pairs.csv": b"source,target\n", "keypoints_18.csv": table.encode()}
    with pytest.raises(
        InputError, match=r"keypoints_18.csv line 2 is not name:keypoints_y:.* two lists of numbers"
    ) as e:
        list_images(MemorySource(files))
    assert len(str(e.value)) < 300


def replace(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


FASHION_FAULTS = {
    "fasion-resize-pairs-train.csv line 3: to is empty": lambda f: replace(
        f / "fasion-resize-pairs-train.csv", "b.png,a.png", "b.png,"
    ),
    "fasion-resize-pairs-test.csv has the columns x, y; expected source and target, or from and to": lambda f: replace(
        f / "fasion-resize-pairs-test.csv", "from,to", "x,y"
    ),
    "fasion-resize-annotation-train.csv has the columns name; expected name:keypoints_y:keypoints_x": lambda f: replace(
        f / "fasion-resize-annotation-train.csv", "name:keypoints_y:keypoints_x", "name"
    ),
    "fasion-resize-annotation-train.csv line 2 is not name:keypoints_y:keypoints_x with two lists": lambda f: replace(
        f / "fasion-resize-annotation-train.csv", "a.png: [", "a.png: "
    ),
    "fasion-resize-annotation-test.csv line 3: 18 and 5 coordinates; expected 18 each": lambda f: (
        f / "fasion-resize-annotation-test.csv"
    ).write_text(f"name:keypoints_y:keypoints_x\n\nf.png: {list(range(18))}: [1, 2, 3, 4, 5]\n"),
}
PLAIN_FAULTS = {
    "pairs.csv line 2: source is empty": lambda f: (f / "pairs.csv").write_text("source,target\n,001.png\n"),
    "pairs.csv has the columns file; expected source and target": lambda f: (f / "pairs.csv").write_text("file\n"),
    "keypoints_18.npy has 1 rows, pairs.csv has 2": lambda f: np.save(f / "keypoints_18.npy", np.ones((1, 2, 18, 2))),
    "expected floats of shape (N, 2, 18, 2)": lambda f: np.save(f / "keypoints_18.npy", np.ones((4, 18, 2))),
    "keypoints_18.csv line 4: 000.png is named for the second time, after line 2": lambda f: (
        f / "keypoints_18.csv"
    ).write_text(
        "name:keypoints_y:keypoints_x\n"
        + "".join(f"{n}.png:{[i] * 18}:{[i] * 18}\n" for i, n in enumerate(("000", "001", "000")))
    ),
    "keypoints_18.npy is not a readable .npy array": lambda f: (f / "keypoints_18.npy").write_text("no array"),
}


@pytest.mark.parametrize("message", [*FASHION_FAULTS, *PLAIN_FAULTS])
def test_faults(tmp_path: Path, capfd: pytest.CaptureFixture, message: str) -> None:
    if message in FASHION_FAULTS:
        folder, spoil = write_fashion(tmp_path / "set"), FASHION_FAULTS[message]
    else:
        folder, spoil = write_plain(tmp_path / "set"), PLAIN_FAULTS[message]
    spoil(folder)
    assert cli.status_of("data", main, ["validate", str(folder)]) == 2
    err = capfd.readouterr().err
    assert err.startswith("kiln data: error: ") and message in err and err.count("\n") == 1
