"""Clips, splits and key points of the manifest layout; what is asked of a set; the avatars as clips."""

import types
from pathlib import Path

import numpy as np
import pytest

from engine import cli
from engine.data import ImageSet, open_dataset, open_loader
from engine.data.__main__ import main
from engine.data.landmarks import MIRROR_ORDER, MIRROR_ORDERS
from engine.data.opening import CLIP_COUNT, CLIP_FRAMES
from engine.data.reading import read_set
from engine.errors import InputError
from tests.support.data_images import picture, write_manifest_set, write_pictures
from tests.support.places import SHARED_DATA

pytest.importorskip("nvidia.dali")


def write_table(folder: Path, columns: str, rows: list[str]) -> Path:
    """Pictures named in the first column of a manifest, and the manifest."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for seed, row in enumerate(rows):
        picture(seed).save(folder / "images" / row.split(",")[0])
    (folder / "manifest.csv").write_text("\n".join([columns, *rows]) + "\n")
    return folder


CLIPS = [  # names are not in the order of the frames
    "a.png,Ann,1,10,train",
    "b.png,Ann,1,9,train",
    "c.png,Ben,1,0,train",
    "d.png,Ann,1,100,train",
    "e.png,Ann,2,0,train",
    "f.png,Ann,2,1,train",
    "g.png,Ben,1,0,test",
    "h.png,Cid,-1,0,test",
    "i.png,Cid,3,-1,validation",
    "j.png,Cid,,0,",
]


def open_clips(folder: Path, **asked) -> ImageSet:
    return open_dataset(folder, channels=3, resolution=16, **asked)


def test_clips_of_videos(tmp_path: Path) -> None:
    images = open_clips(write_table(tmp_path / "set", "file,person,video,frame,split", CLIPS))
    assert "".join(Path(path).stem for path in images.paths) == "badcefghij"
    assert images.clips.tolist() == [0, 0, 0, -1, 1, 1, -1, -1, -1, -1]
    assert images.splits == ["train"] * 6 + ["test"] * 2 + ["val", ""]
    assert [Path(record.name).stem for record in images.records] == list("badcefghij")
    assert images.landmarks is None and images.points == 0 and images.pairs is None


def test_clips_of_identities(tmp_path: Path) -> None:
    rows = ["a.png,0,1.0", "b.png,0,0.0", "c.png,1,0", "d.png,-1,0", "e.png,-1,1", "f.png,,", "g.png,2,"]
    images = open_clips(write_table(tmp_path / "set", "file,identity,frame", rows))
    assert "".join(Path(path).stem for path in images.paths) == "bacdefg"
    assert images.clips.tolist() == [0, 0, -1, -1, -1, -1, -1] and images.splits is None


def test_members_of_clips(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = write_table(tmp_path / "set", "file,person,video,frame,split", CLIPS)
    pairs = open_clips(folder, members=2)
    assert "".join(Path(path).stem for path in pairs.paths) == "badef" and pairs.clips.tolist() == [0, 0, 0, 1, 1]
    assert capfd.readouterr().err == "kiln: set: 5 images are in no clip of two frames and left out, 5 used\n"
    triples = open_clips(folder, members=3)
    assert "".join(Path(path).stem for path in triples.paths) == "bad" and triples.clips.tolist() == [0, 0, 0]
    assert triples.quarantined == []
    loader = open_loader(
        triples, batch_size=3, resolution=16, channels=3, device="cpu", seed=0, members=3, mirror=False
    )
    batch = loader.next()
    together = np.stack([batch.indices, *(other.indices for other in batch.more)])
    assert (np.sort(together, axis=0) == np.arange(3)[:, None]).all()
    with pytest.raises(InputError, match=r"all its clips are shorter than three frames \(longest: 2\)"):
        open_clips(write_table(tmp_path / "two", "file,video,frame", ["a.png,1,0", "b.png,1,1"]), members=3)
    with pytest.raises(InputError, match=r"all its clips are shorter than two frames \(longest: 1\)"):
        open_clips(folder, members=2, split="test")


def test_bad_images_shorten_clips(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "set", "file,video,frame", [f"{name}.png,1,{i}" for i, name in enumerate("abc")])
    (folder / "images" / "b.png").write_bytes(b"text")
    assert open_clips(folder, members=2).clips.tolist() == [0, 0]
    with pytest.raises(InputError, match="shorter than three frames"):
        open_clips(folder, members=3)


def test_splits(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "set", "file,person,video,frame,split", CLIPS)
    assert {name: len(open_clips(folder, split=name)) for name in ("", "train", "val", "test")} == {
        "": 10, "train": 6, "val": 1, "test": 2}  # fmt: skip
    with pytest.raises(InputError, match=r"has no split 'tset'; its splits: test, train, val"):
        open_clips(folder, split="tset")
    with pytest.raises(InputError, match=r"has no splits .*: leave out the split 'train'"):
        open_clips(write_pictures(tmp_path / "plain", 2), split="train")


def test_the_digest_counts_what_is_there(tmp_path: Path) -> None:
    rows = [f"{name}.png,{i},0" for i, name in enumerate("abc")]
    digest = open_clips(write_table(tmp_path / "set", "file,identity,frame", rows)).digest
    rows = [f"{name}.png" for name in "abc"]
    assert open_clips(write_table(tmp_path / "set", "file", rows)).digest == digest
    rows = [f"{name}.png,0,{i}" for i, name in enumerate("abc")]
    in_clips = open_clips(write_table(tmp_path / "set", "file,identity,frame", rows)).digest
    rows = ["a.png,0,0", "b.png,0,1", "c.png,1,0"]
    others = open_clips(write_table(tmp_path / "set", "file,identity,frame", rows)).digest
    (tmp_path / "set" / "pairs.csv").write_text("source,target\na.png,b.png\n")
    paired = open_clips(tmp_path / "set").digest
    assert len({digest, in_clips, others, paired}) == 4


def test_eighteen_points(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "set", "file,landmarks_row", [f"{name}.png,{i}" for i, name in enumerate("abcd")])
    points = np.random.default_rng(0).uniform(1, 39, (4, 18, 2)).astype(np.float32)
    points[0, 3], points[0, 4, 0], points[1, 5] = -1, -1, np.nan
    points[2] = -1
    np.save(folder / "keypoints_18.npy", points)
    images = open_clips(folder)
    assert images.landmarks is None and images.points == 0
    images = open_clips(folder, points=18)
    assert images.quarantined == [("images/c.png", "no key point is known")]
    assert images.points == 18 and images.landmarks.shape == (3, 18, 2)
    missing = np.isnan(images.landmarks).all(axis=2)
    assert np.argwhere(missing).tolist() == [[0, 3], [0, 4], [1, 5]]
    np.testing.assert_array_equal(images.landmarks[~missing], points[[0, 1, 3]][~missing])
    with pytest.raises(InputError, match=r"set has 18 key points for each image, this needs 68 landmarks"):
        open_clips(folder, points=68)


def test_asked_for_points_that_are_not_there(tmp_path: Path) -> None:
    faces = write_manifest_set(tmp_path / "faces", [picture(0), picture(1)], np.zeros((2, 68, 2)))
    with pytest.raises(InputError, match=r"faces has 68 landmarks for each image, this needs 18 key points"):
        open_clips(faces, points=18)
    with pytest.raises(InputError, match=r"plain has no landmarks \(manifest.csv with landmarks_row, keypoints_18.npy"):
        open_clips(write_pictures(tmp_path / "plain", 2), points=18)
    with pytest.raises(InputError, match=r"plain has no clips, this needs two frames .* or a pairs.csv$"):
        open_clips(tmp_path / "plain", members=2)
    with pytest.raises(InputError, match=r"plain has no clips, this needs three frames .*\(or identity\) and frame$"):
        open_clips(tmp_path / "plain", members=3)


@pytest.mark.parametrize(
    ("table", "array", "message"),
    [
        ("file,video,frame\na.png,1,first\n", None, "manifest.csv line 2: frame is 'first'; expected a whole number"),
        ("file,video,frame\n\na.png,1,0.5\n", None, "manifest.csv line 3: frame is '0.5'; expected a whole number"),
        ("file_source,file_target\na.png,\n", None, "manifest.csv line 2: file_target is empty: each row needs both"),
        (
            "file,landmarks_row\na.png,0\n",
            (1, 17, 2),
            r"keypoints_18.npy holds .*expected floats of shape \(N, 18, 2\)",
        ),
        ("file,landmarks_row\na.png,0\n", (1, 2, 18, 2), r"expected floats of shape \(N, 18, 2\)"),
        ("file,landmarks_row\na.png,x\n", (1, 18, 2), "line 2: landmarks_row is 'x', but keypoints_18.npy has rows"),
        ("file_source,file_target,landmarks_row\na.png,a.png,0\n", (1, 18, 2), r"of shape \(N, 2, 18, 2\)"),
    ],
)
def test_bad_tables(tmp_path: Path, capfd: pytest.CaptureFixture, table: str, array, message: str) -> None:
    folder = write_table(tmp_path / "set", "file", ["a.png"])
    (folder / "manifest.csv").write_text(table)
    if array:
        np.save(folder / "keypoints_18.npy", np.ones(array))
    with pytest.raises(InputError, match=message):
        read_set(folder)
    assert cli.status_of("data", main, ["validate", str(folder)]) == 2
    err = capfd.readouterr().err
    assert err.startswith("kiln data: error: ") and err.count("\n") == 1


def test_mirror_orders() -> None:
    assert MIRROR_ORDERS[68] is MIRROR_ORDER
    order = MIRROR_ORDERS[18]
    assert np.array_equal(order[order], np.arange(18)) and order[[0, 1]].tolist() == [0, 1]
    names = [
        *("nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist"),
        *("right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle"),
        *("right eye", "left eye", "right ear", "left ear"),
    ]
    swap = {"right": "left", "left": "right"}
    for name, partner in zip(names, order, strict=True):
        side, _, part = name.partition(" ")
        assert names[partner] == (f"{swap[side]} {part}" if side in swap else name)


def test_mirrored_key_points(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "set", "file,landmarks_row", ["a.png,0"])
    points = np.tile(np.arange(18, dtype=np.float32)[:, None] + 10, (1, 2))
    points[7] = -1
    np.save(folder / "keypoints_18.npy", points[None])
    images = open_clips(folder, points=18)
    loader = open_loader(images, batch_size=1, resolution=32, channels=3, device="cpu", seed=0)
    plain, mirrored = loader.fixed(1).landmarks[0].numpy(), None
    while mirrored is None or np.allclose(mirrored[0], plain[0]):
        mirrored = loader.next().landmarks[0].numpy()
    assert np.isnan(plain[7]).all() and np.isnan(mirrored[4]).all() and np.isfinite(mirrored[7]).all()
    np.testing.assert_allclose(mirrored[7], [31 - plain[4, 0], plain[4, 1]], rtol=1e-6)


def test_avatars_as_clips(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[tuple[int, int]] = []

    def write(out: Path, count: int, size: int, seed: int, frames: int = 1, progress: bool = True) -> None:
        rendered.append((count, frames))
        for look in ("photo", "game"):
            rows = [f"{look}{i}{frame}.png,{i},{frame}" for i in range(2) for frame in range(min(frames, 3))]
            write_table(out / look, "file,identity,frame", rows)

    monkeypatch.setattr("engine.data.opening.avatars", types.SimpleNamespace(VERSION=1, write=write))
    single = open_dataset(None, channels=3, resolution=16, look="game", progress=False)
    assert single.paths == ["images/game00.png", "images/game10.png"] and single.clips is None
    clips = [open_dataset(None, channels=3, resolution=16, members=n, progress=False) for n in (2, 3)]
    assert [images.clips.tolist() for images in clips] == [[0, 0, 0, 1, 1, 1]] * 2
    assert clips[0].paths[0] == "images/photo00.png" and clips[0].name == "avatars"
    assert rendered == [(1200, 1), (CLIP_COUNT, CLIP_FRAMES)]


def shared(name: str) -> Path:
    if not (SHARED_DATA / name).is_dir():
        pytest.skip("the shared data set is not here")
    return SHARED_DATA / name


def test_shared_clips() -> None:
    images = open_clips(shared("clips"), points=68, members=3)
    assert len(images) == 3117 and set(images.splits) == {"train"}
    assert np.bincount(images.clips).tolist() == [3] * 1039
    assert {path.rsplit("_", 1)[0] for path in images.paths[:3]} == {"images/train_Abdullah_Gul"}


def test_shared_renders() -> None:
    images = open_clips(shared("renders_game"), points=68, members=2)
    assert np.bincount(images.clips).tolist() == [8] * 75
    assert len(open_clips(SHARED_DATA / "renders_game", points=68)) == 921


def test_shared_pairs() -> None:
    folder = shared("fashion")
    images = open_clips(folder, points=18, members=2)
    assert len(images) == 320 and images.landmarks.shape == (320, 18, 2)
    assert [(images.paths[a][7:10], images.paths[b][7:10]) for a, b in images.pairs[:2]] == [
        ("001", "001"),
        ("002", "002"),
    ]
    assert all("source" in images.paths[a] and "target" in images.paths[b] for a, b in images.pairs)
    stored = np.load(folder / "keypoints_18.npy")
    np.testing.assert_array_equal(np.isnan(images.landmarks[images.pairs]).any(-1), (stored == -1).any(-1))
    with pytest.raises(InputError, match="has 18 key points"):
        open_clips(folder, points=68)
