"""Landmark videos, the layout of 300VW: crops, splits, and what is wrong with them."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import cli
from engine.data import open_dataset, open_loader
from engine.data.__main__ import main
from engine.data.layouts.landmark_video import SPLITS, crop_square
from engine.data.reading import read_set
from engine.errors import InputError
from tests.support.data_images import LFS_POINTER, encoded, zip_of
from tests.support.raw_zip import Member, raw_zip

pytest.importorskip("nvidia.dali")
WIDTH, HEIGHT = 160, 120


def face(x: float = 80, y: float = 60, radius: float = 16) -> np.ndarray:
    """(68, 2) points on a ring, so that the box is 2 radius wide; point 28, the centre of the crop, is its middle."""
    angles = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).round(2)
    points[28] = x, y
    return points


def pts(points: np.ndarray) -> str:
    lines = "".join(f"{x + 1:.3f} {y + 1:.3f}\n" for x, y in points)  # files count from 1
    return f"version: 1\nn_points: {len(points)}\n{{\n{lines}}}\n"


def frame(points: np.ndarray) -> np.ndarray:
    """A dark frame with a bright square of 3 pixels where point 0 lies, and a mark that tells right from left."""
    pixels = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    x, y = points[0].round().astype(int)
    pixels[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 255
    return pixels


def write_videos(root: Path, videos: dict[str, list[np.ndarray]], kind: str = "png") -> Path:
    for name, faces in videos.items():
        (root / name / "annot").mkdir(parents=True)
        (root / name / "frames").mkdir()
        for number, points in enumerate(faces, start=1):
            (root / name / "annot" / f"{number:06d}.pts").write_text(pts(points))
            Image.fromarray(frame(points)).save(root / name / "frames" / f"{number:06d}.{kind}")
    return root


def three_videos(root: Path) -> Path:
    moving = [face(70 + 3 * i, 60, 16) for i in range(12)]
    return write_videos(root, {"001": moving, "114": moving[:2], "mine": moving[:3]})


def brightest(images: np.ndarray) -> np.ndarray:
    """(B, 2) centre of what is bright in each (3, R, R)."""
    weights = np.clip(images.mean(axis=1), -0.5, 1) + 0.5
    grid = np.stack(np.meshgrid(np.arange(weights.shape[2]), np.arange(weights.shape[1])), axis=-1)
    return (weights[..., None] * grid).sum(axis=(1, 2)) / weights.sum(axis=(1, 2))[:, None]


def test_crops_clips_and_splits(tmp_path: Path) -> None:
    folder = three_videos(tmp_path / "300vw")
    images = open_dataset(folder, channels=3, resolution=64, points=68)
    assert images.name == "300vw" and images.root == folder and images.points == 68
    assert images.paths[0] == "images/001/000001.jpg" and images.paths[12] == "images/114/000001.jpg"
    assert images.clips.tolist() == [0] * 12 + [1] * 2 + [2] * 3
    assert images.splits == ["train"] * 12 + ["test1"] * 2 + [""] * 3
    assert (images.sizes == 81).all()  # half the side is int(2.5 * 16) where the frame has room
    loader = open_loader(images, batch_size=17, resolution=64, channels=3, device="cpu", seed=0)
    batch = loader.next()
    found = brightest(batch.images.numpy())
    first = batch.landmarks[:, 0].numpy()
    mirrored = batch.landmarks[:, 16].numpy()  # its partner on a mirrored face
    nearer = np.minimum(np.abs(found - first).max(axis=1), np.abs(found - mirrored).max(axis=1))
    assert nearer.max() < 0.6 and (nearer > 0).any()
    assert len(open_dataset(folder, channels=3, resolution=16, split="train")) == 12
    assert len(open_dataset(folder, channels=3, resolution=16, split="test")) == 2
    assert len(open_dataset(folder, channels=3, resolution=16, members=3)) == 15
    with pytest.raises(InputError, match=r"all its clips are shorter than three frames \(longest: 2\)"):
        open_dataset(folder, channels=3, resolution=16, members=3, split="test1")


def test_prepared_once(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = three_videos(tmp_path / "set")
    before = sorted(folder.rglob("*"))
    digest = read_set(folder).digest
    assert "cropping 3 videos" in capfd.readouterr().err
    assert read_set(folder).digest == digest and "cropping" not in capfd.readouterr().err
    assert sorted(folder.rglob("*")) == before, "the user's folder must not be written to"
    (folder / "mine" / "annot" / "000003.pts").write_text(pts(face(60, 60, 12)))
    assert read_set(folder).digest != digest and "cropping" in capfd.readouterr().err
    packed, inside = read_set(zip_of(folder, tmp_path / "set.zip", "set/")), read_set(folder)
    assert packed.name == "set.zip" and [r.sha256 for r in packed.records] == [r.sha256 for r in inside.records]
    np.testing.assert_array_equal(packed.landmarks, inside.landmarks)


def test_geometry_of_the_crop() -> None:
    assert crop_square(face(80, 60, 16), 160, 120) == (40, 20, 81)
    assert crop_square(face(80, 60, 40), 160, 120) == (21, 1, 119)  # 100 would leave the frame: 59 is the room below
    assert crop_square(face(20.7, 60, 16), 160, 120) == (0, 40, 41)
    wide = face(80, 60, 16)
    wide[:, 1] = 60 + (wide[:, 1] - 60) / 4
    assert crop_square(wide, 160, 120) == (40, 20, 81)  # the longer side of the box counts


def test_frames_left_out(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = write_videos(tmp_path / "set", {"a": [face(60 + i, 60) for i in range(8)]})
    video = folder / "a"
    (video / "annot" / "000001.pts").unlink()
    (video / "frames" / "000002.png").unlink()
    (video / "annot" / "000003.pts").write_text(pts(face(8, 60)))
    (video / "annot" / "000004.pts").write_text(pts(face()).replace("81.000 61.000", "nan nan"))
    (video / "frames" / "000005.png").write_bytes(b"text")
    (video / "annot" / "000006.pts").write_text(pts(np.clip(face(2, 60), 0, 159)))
    images = open_dataset(folder, channels=3, resolution=16, points=68)
    assert images.paths == ["images/a/000007.jpg", "images/a/000008.jpg"] and images.clips.tolist() == [0, 0]
    assert dict(images.quarantined) == {
        "a/frames/000001.png": "no landmarks: there is no annot/000001.pts",
        "a/annot/000002.pts": "there is no frame for it",
        "a/frames/000003.png": f"{(face(8, 60)[:, 0] < -0.5).sum()} landmarks lie outside the 160x120 frame",
        "a/frames/000004.png": "its landmarks are not all finite numbers",
        "a/frames/000005.png": "not an image (no known format recognised)",
        "a/frames/000006.png": "the face is too near the border of the frame to be cropped",
    }
    assert "6 files left out, 2 used" in capfd.readouterr().err
    assert cli.status_of("data", main, ["validate", str(folder)]) == 0
    out = capfd.readouterr().out
    assert f"{folder}: 2 usable images" in out and "layout       landmark videos" in out
    assert "clips        1 of 2 frames; 0 images in none" in out and "a/annot/000002.pts: there is no frame" in out


@pytest.mark.parametrize(
    ("frames", "annotations"),
    [("{}.png", "{}.pts"), ("img{}.png", "{:06d}.pts"), ("v1_f{}.PNG", "v1_f{}.PTS"), ("Frame {}.png", "frame{}.pts")],
)
def test_frames_without_zeros_in_front(tmp_path: Path, frames: str, annotations: str) -> None:
    """The oracle is the set whose files have their zeros."""
    faces = [face(50 + 5 * i, 60) for i in range(12)]
    padded = read_set(write_videos(tmp_path / "padded", {"a": faces}))
    folder = write_videos(tmp_path / "set", {"a": faces})
    for number in range(1, 13):
        for kind, name, old in (("frames", frames, "png"), ("annot", annotations, "pts")):
            (folder / "a" / kind / f"{number:06d}.{old}").rename(folder / "a" / kind / name.format(number))
    found = read_set(folder)
    assert found.paths == padded.paths and found.digest == padded.digest
    np.testing.assert_array_equal(found.landmarks, padded.landmarks)


@pytest.mark.parametrize(("kind", "other"), [("annot", "1.pts"), ("frames", "000001.jpg"), ("frames", "img1.png")])
def test_two_files_of_one_frame(tmp_path: Path, kind: str, other: str) -> None:
    folder = write_videos(tmp_path / "set", {"a": [face()]})
    first = next((folder / "a" / kind).iterdir())
    shutil.copy(first, first.with_name(other))
    with pytest.raises(InputError, match=r"set: a/.* and a/.* have one frame number: remove or rename") as raised:
        read_set(folder)
    assert f"a/{kind}/{first.name}" in str(raised.value) and f"a/{kind}/{other}" in str(raised.value)


def test_large_crops_are_reduced(tmp_path: Path) -> None:
    points = face(400, 400, 150)
    (tmp_path / "set" / "v" / "annot").mkdir(parents=True)
    (tmp_path / "set" / "v" / "frames").mkdir()
    (tmp_path / "set" / "v" / "annot" / "7.pts").write_text(pts(points))
    pixels = np.zeros((800, 800, 3), np.uint8)
    x, y = points[0].astype(int)
    pixels[y - 8 : y + 9, x - 8 : x + 9] = 255
    Image.fromarray(pixels).save(tmp_path / "set" / "v" / "frames" / "000007.jpg")
    images = read_set(tmp_path / "set")
    assert images.sizes.tolist() == [[256, 256]] and images.clips is None
    crop = np.asarray(Image.open(images.source.root / images.paths[0]).convert("RGB")).astype(np.float64)
    np.testing.assert_allclose(
        brightest(crop.transpose(2, 0, 1)[None] / 127.5 - 1)[0], images.landmarks[0, 0], atol=0.1
    )


def spoil(video: Path, what: str) -> None:
    if what == "five":
        (video / "annot" / "000001.pts").write_text(pts(face()[:5]))
    elif what == "frames":
        shutil.rmtree(video / "frames")
    elif what == "name":
        (video / "annot" / "first.pts").write_text(pts(face()))
    elif what == "outside":
        for file in (video / "annot").iterdir():
            file.write_text(pts(face(-50, 60)))
    else:
        shutil.rmtree(video / "frames")
        (video / "vid.avi").write_bytes(b"text")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("five", "a/annot/000001.pts line 2: it has 5 points"),
        ("frames", "a: it has landmarks in annot/, but neither frames/000001.jpg ... nor vid.avi"),
        ("name", "a/annot/first.pts is not named after its frame's number"),
        (
            "outside",
            "no frame can be used: all 2 frames are left out, the first: a/frames/000001.png: 68 landmarks lie outside",
        ),
        ("movie", "a/vid.avi is not a video that OpenCV can read: extract its frames"),
    ],
)
def test_videos_that_cannot_be_used(
    tmp_path: Path, empty_cache: Path, capfd: pytest.CaptureFixture, what: str, message: str
) -> None:
    if what == "movie":
        pytest.importorskip("cv2")
    folder = write_videos(tmp_path / "set", {"a": [face(), face()]})
    spoil(folder / "a", what)
    assert cli.status_of("data", main, ["validate", str(folder)]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("kiln data: error: ") and message in last
    assert not [path for path in empty_cache.rglob("*") if path.suffix == ".jpg"], "all or nothing"


def break_film(video: Path, what: str) -> None:
    """Spoil one video of a set; `what` is the name of the way."""
    if what == "no frames":
        shutil.rmtree(video / "frames")
    elif what == "bad points":
        (video / "annot" / "000002.pts").write_text("version: 1\n")
    elif what == "pointer":
        (video / "annot" / "000001.pts").write_bytes(LFS_POINTER)
    elif what == "one frame twice":
        shutil.copy(video / "annot" / "000001.pts", video / "annot" / "1.pts")
    elif what == "no number":
        (video / "frames" / "000001.png").rename(video / "frames" / f"{'1' * 200}.png")
    else:
        shutil.rmtree(video / "frames")
        if what == "pipe":
            os.mkfifo(video / "vid.avi")
        elif what == "endless":
            (video / "vid.avi").symlink_to("/dev/zero")
        else:
            (video / "vid.avi").write_bytes({"film pointer": LFS_POINTER, "no film": b"RIFF" + bytes(999)}[what])


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("no frames", "it has landmarks in annot/, but neither frames/000001.jpg ... nor vid.avi beside them"),
        ("bad points", "bad/annot/000002.pts line 2: expected `n_points: 68`"),
        ("pointer", "bad/annot/000001.pts cannot be used (a Git LFS pointer"),
        ("one frame twice", "bad/annot/1.pts have one frame number"),
        ("no number", "is not named after its frame's number"),
        ("pipe", "bad/vid.avi: a named pipe, not a file"),
        ("endless", "bad/vid.avi: a device, not a file"),
        ("film pointer", "bad/vid.avi: a Git LFS pointer"),
        ("no film", "bad/vid.avi is not a video that OpenCV can read: extract its frames"),
    ],
)
def test_a_bad_film_is_set_aside_and_the_others_are_used(
    tmp_path: Path, capfd: pytest.CaptureFixture, what: str, reason: str
) -> None:
    if what in ("pipe", "endless", "film pointer", "no film"):
        pytest.importorskip("cv2")
    folder = write_videos(tmp_path / "set", {"bad": [face(), face()], "good": [face(), face(82)]})
    break_film(folder / "bad", what)
    images = open_dataset(folder, channels=3, resolution=16, points=68, members=2)
    assert images.paths == ["images/good/000001.jpg", "images/good/000002.jpg"]
    ((name, why),) = images.quarantined
    assert name == "bad" and reason in why
    told = capfd.readouterr().err
    assert "1 of 2 videos set aside, the first: bad: " in told and "1 files left out, 2 used" in told
    assert open_dataset(folder, channels=3, resolution=16).quarantined == images.quarantined  # from the cache
    shutil.rmtree(folder / "good")
    with pytest.raises(InputError, match=r"no frame can be used: all 1 videos are left out, the first: bad: "):
        read_set(folder)


def test_a_zip_writes_no_crop_outside_the_cache(tmp_path: Path, empty_cache: Path) -> None:
    outside = tmp_path / "outside" / "frames.jpg"
    outside.parent.mkdir()
    outside.write_text("the user's own")
    picture = encoded(Image.fromarray(frame(face())), "PNG")
    members = []
    for film in (f"{tmp_path}/outside", "../outside", "a/../../outside", "x" * 300, "good", "\x1b[31m", "per%cent%d"):
        for number in (1, 2):
            members.append(Member(f"{film}/annot/{number:06d}.pts".encode(), pts(face()).encode()))
            members.append(Member(f"{film}/frames/{number:06d}.png".encode(), picture))
    (tmp_path / "set.zip").write_bytes(raw_zip(members))
    images = read_set(tmp_path / "set.zip")
    assert [Path(name).parts[1] for name in images.paths[::2]] == ["\x1b[31m", "good", "per%cent%d"]
    reasons = [why for _, why in images.quarantined]
    assert len(reasons) == 13 and "its name is too long for a folder" in reasons
    assert sum("leads out" in why or "absolute" in why for why in reasons) == 12
    assert {path.name for path in tmp_path.iterdir()} == {"outside", "set.zip", empty_cache.name}
    assert list(outside.parent.iterdir()) == [outside] and outside.read_text() == "the user's own"


def test_movies(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    faces = [face(60 + 4 * i, 60) for i in range(5)]
    folder = write_videos(tmp_path / "set", {"a": faces})
    whole = read_set(folder)
    shutil.rmtree(folder / "a" / "frames")
    writer = cv2.VideoWriter(str(folder / "a" / "vid.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for points in faces[:4]:
        writer.write(np.ascontiguousarray(frame(points) * np.array([0, 0, 1], np.uint8)))  # red, in OpenCV's order
    writer.release()
    decoded = read_set(folder)
    assert decoded.paths == whole.paths[:4] and decoded.clips.tolist() == [0] * 4
    np.testing.assert_array_equal(decoded.landmarks, whole.landmarks[:4])
    assert decoded.quarantined == [("a/annot/000005.pts", "there is no frame for it")]
    crop = np.asarray(Image.open(decoded.source.root / decoded.paths[2])).astype(np.float64)
    x, y = decoded.landmarks[2, 0].round().astype(int)
    assert crop[y, x, 0] > 150 and crop[y, x, 2] < 60 and crop[-1, 0, 0] < 60
    monkeypatch.setitem(sys.modules, "cv2", None)
    shutil.rmtree(empty_cache)
    with pytest.raises(InputError, match=r"a/vid.avi: .*pip install opencv-python-headless, or extract its frames"):
        read_set(folder)


def test_the_challenge_splits() -> None:
    videos = {split: names.split() for split, names in SPLITS.items()}
    assert {split: len(names) for split, names in videos.items()} == {
        "train": 50,
        "test1": 31,
        "test2": 19,
        "test3": 14,
    }
    assert len({name for names in videos.values() for name in names}) == 114
