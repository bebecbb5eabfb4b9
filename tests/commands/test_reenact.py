"""`kiln reenact` end to end on a tiny untrained model: what it writes, and every input it refuses."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine import checkpoint
from engine.errors import InputError
from engine.inference import marking
from engine.inference.driving import align, read_driving
from engine.inference.reenacting import LINES, draw_points
from engine.inference.trained import load_trained
from engine.reenact import main
from engine.systems.reenact import ReenactConfig
from engine.systems.registry import build
from tests.support.data_images import zip_of
from tests.support.tiny_run import command, make_run
from tests.support.training_fakes import smooth_images

SIDE = 16
RANDOM = np.random.default_rng(0)
CLIPS = {("ann", "1"): 3, ("ann", "2"): 5, ("bob", "1"): 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: 16 x 16, 2 filters, untrained."""
    folder = tmp_path_factory.mktemp("run")
    small = {"resolution": SIDE, "filters": 2, "d_filters": 2, "vgg_width": 2, "batch_size": 2}
    config = ReenactConfig(device="cpu", fused=True, **small)
    system = build(config, "cpu")
    checkpoint.save(folder, 1, system.weights(), system.state_dict(), config)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three clips; frames of 32 x 24 pixels, written in no order."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "images").mkdir()
    rows, points = [], []
    for (person, video), count in CLIPS.items():
        for frame in reversed(range(count)):
            name = f"{person}_{video}_{frame}.png"
            Image.new("RGB", (32, 24), (frame * 40, 80, 120)).save(folder / "images" / name)
            rows.append([name, len(points), person, video, frame])
            points.append(RANDOM.uniform(0, 24, (68, 2)))
    np.save(folder / "landmarks_68.npy", np.array(points, np.float32))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "landmarks_row", "person", "video", "frame"], *rows])
    return folder


@pytest.fixture
def face(tmp_path: Path) -> Path:
    pixels = smooth_images(1, 1, 20)[0].add(1).mul(127).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "face.png")
    return tmp_path / "face.png"


def rows_of(folder: Path) -> dict[str, int]:
    with (folder / "manifest.csv").open() as file:
        return {row["file"]: int(row["landmarks_row"]) for row in csv.DictReader(file)}


def pts(points: np.ndarray) -> str:
    return "\n".join(["version: 1", "n_points: 68", "{", *(f"{x:.4f} {y:.4f}" for x, y in points + 1), "}"])


def test_a_face_takes_on_a_clip(model: Path, clips: Path, face: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(model), str(face), str(clips), str(out), "--clip", "ann/2", "--batch-size", "2"]) == 0
    frames = sorted((out / "frames").iterdir())
    assert [path.name for path in frames] == [f"{i:05d}.png" for i in range(5)]
    # framing by hand: the central square of each frame, 24 pixels, becomes the model's 16
    module = load_trained(model).module
    image = np.asarray(Image.open(face).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    points = np.load(clips / "landmarks_68.npy")
    for frame, path in enumerate(frames):
        placed = (points[rows_of(clips)[f"ann_2_{frame}.png"]] - [4, 0] + 0.5) * SIDE / 24 - 0.5
        wanted = module(torch.tensor(image)[None].float() / 127.5 - 1, torch.tensor(placed)[None].float())
        pixels = np.asarray(Image.open(path)).transpose(2, 0, 1).astype(float)
        np.testing.assert_allclose(pixels, (wanted[0].numpy() + 1) * 127.5, atol=1)


def test_every_file_says_that_it_is_synthetic(model: Path, clips: Path, face: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(model), str(face), str(clips), str(out), "--size", "33", "--fps", "10", "--frames", "3"]) == 0
    with Image.open(out / "driven.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (3, (33, 33), 100)
        assert b"Synthetic" in gif.info["comment"]
    for path in (out / "frames" / "00000.png", out / "sheet.png"):
        with Image.open(path) as image:
            assert marking.SOURCE_TYPE in image.text["XML:com.adobe.xmp"]
    cv2 = pytest.importorskip("cv2")
    film = cv2.VideoCapture(str(out / "driven.mp4"))
    assert (film.get(cv2.CAP_PROP_FRAME_COUNT), film.get(cv2.CAP_PROP_FPS)) == (3, 10)
    assert film.read()[1].shape == (34, 34, 3)
    content = (out / "driven.mp4").read_bytes()
    boxes, position = [], 0
    while position < len(content):
        size = int.from_bytes(content[position : position + 4], "big")
        boxes.append((content[position + 4 : position + 8], content[position + 8 : position + size]))
        position += size
    assert position == len(content) and boxes[-1][0] == b"uuid" and marking.SOURCE_TYPE.encode() in boxes[-1][1]


def test_without_opencv_there_is_no_film(
    model: Path, clips: Path, face: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main([str(model), str(face), str(clips), str(tmp_path / "out")]) == 0
    assert "pip install opencv-python-headless" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["driven.gif", "frames", "sheet.png"]


def test_the_longest_clip_unless_told(clips: Path) -> None:
    assert read_driving(clips, None, 68, SIDE, "crop").name == "ann/2"
    assert len(read_driving(clips, "bob", 68, SIDE, "crop").points) == 4
    with pytest.raises(InputError, match=r"no clip 'anne'.*ann/"):
        read_driving(clips, "anne", 68, SIDE, "crop")


def test_an_array_is_in_pixels_of_the_square(tmp_path: Path) -> None:
    points = RANDOM.uniform(0, SIDE, (3, 68, 2))
    np.save(tmp_path / "clip.npy", points)
    found = read_driving(tmp_path / "clip.npy", None, 68, SIDE, "crop")
    np.testing.assert_allclose(found.points, points, rtol=1e-6)
    assert found.points.dtype == np.float32
    np.save(tmp_path / "one.npy", points[0])
    assert read_driving(tmp_path / "one.npy", None, 68, SIDE, "crop").points.shape == (1, 68, 2)


def test_pts_files_are_framed_like_landmark_videos(tmp_path: Path) -> None:
    """A square of 2.5 times the landmark radius around the bridge of the nose, whatever the frame's size."""
    folder = tmp_path / "videos" / "007" / "annot"
    folder.mkdir(parents=True)
    clip = [RANDOM.uniform(200, 260, (68, 2)) + 5 * frame for frame in range(3)]
    for number, points in enumerate(clip, start=1):
        (folder / f"{number:06d}.pts").write_text(pts(points))
    found = read_driving(tmp_path / "videos", "007", 68, 64, "crop")
    for points, placed in zip(clip, found.points, strict=True):
        radius = int(1.25 * np.ptp(points, axis=0).max())
        left, top = points[28].astype(int) - radius
        wanted = (points - [left, top] + 0.5) * 64 / (2 * radius + 1) - 0.5
        np.testing.assert_allclose(placed, wanted, atol=1e-2)


def flatter(folder: Path, names: list[str], write) -> Path:
    """Frames in which the face gets flatter, written under names that are in their order."""
    angle = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    for number, name in enumerate(names):
        height = 5 - 0.3 * number
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, np.stack([8 + 5 * np.cos(angle), 8 + height * np.sin(angle)], axis=1))
    return folder


def plays_in_order(path: Path, clip: str | None = None) -> bool:
    heights = np.ptp(read_driving(path, clip, 68, SIDE, "crop").points[..., 1], axis=1)
    widths = np.ptp(read_driving(path, clip, 68, SIDE, "crop").points[..., 0], axis=1)
    return (np.diff(heights / widths) < 0).all() and len(heights) > 1


def write_pts(path: Path, points: np.ndarray) -> None:
    path.write_text(pts(10 * points + 100))


NUMBERS = [1, 2, 3, 9, 10, 11, 20, 100]


@pytest.mark.parametrize("name", ["{}", "frame{}", "f_{:03d}", "take2 {}", "{}_left"])
@pytest.mark.parametrize("kind", ["pts", "PTS", "npy"])
def test_files_play_in_the_order_of_their_numbers(tmp_path: Path, name: str, kind: str) -> None:
    names = [f"clip/{name.format(number)}.{kind}" for number in NUMBERS]
    folder = flatter(tmp_path / "set", names, np.save if kind == "npy" else write_pts)
    assert plays_in_order(folder) and plays_in_order(zip_of(folder, tmp_path / "set.zip"), "clip")


def test_clips_with_numbers_in_the_names_of_their_folders(tmp_path: Path) -> None:
    names = [f"{clip}/annot/{number}.pts" for clip in ("v2", "v10") for number in NUMBERS]
    flatter(tmp_path / "set", names, write_pts)
    assert plays_in_order(tmp_path / "set", "v2") and plays_in_order(tmp_path / "set", "v10")


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ("1 2 3 4", ""),
        ("10 15 20", ""),
        ("1 2 5 6 8", "frames are missing, 2 times, the most after frame 2;"),
        ("7", ""),
    ],
)
@pytest.mark.parametrize("name", ["{}.pts", "s1 f{}.npy"])
def test_missing_frames_are_said(tmp_path: Path, capsys, numbers: str, said: str, name: str) -> None:
    names = [name.format(number) for number in numbers.split()]
    folder = flatter(tmp_path / "set", names, np.save if name.endswith("npy") else write_pts)
    assert len(read_driving(folder, None, 68, SIDE, "crop").points) == len(names)
    err = capsys.readouterr().err
    assert said in err and bool(err) == bool(said) and err.count("\n") == bool(said)


@pytest.mark.parametrize("names", ["1.pts 001.pts", "f2.pts F02.pts", "-1.pts 1.pts", "1.npy 01.npy"])
def test_frames_that_have_no_order(tmp_path: Path, names: str) -> None:
    write = np.save if names.endswith("npy") else write_pts
    folder = flatter(tmp_path / "set", names.split(), write)
    with pytest.raises(InputError, match=r"have one frame number|has a negative number") as raised:
        read_driving(folder, None, 68, SIDE, "crop")
    assert names.split()[0] in str(raised.value)


def test_two_clips_of_one_name_in_two_splits(tmp_path: Path) -> None:
    rows, points = [["file", "landmarks_row", "video", "frame", "split"]], []
    for split in ("train", "test"):
        for frame in (10, 9):
            rows.append([f"{split}{frame}.png", str(len(points)), "v", str(frame), split])
            points.append(RANDOM.uniform(0, 16, (68, 2)))
            Image.new("RGB", (16, 16)).save(tmp_path / rows[-1][0])
    np.save(tmp_path / "landmarks_68.npy", points)
    (tmp_path / "manifest.csv").write_text("\n".join(map(",".join, rows)))
    found = read_driving(tmp_path, "test/v", 68, SIDE, "crop")
    assert found.name == "test/v"
    np.testing.assert_allclose(found.points, [points[3], points[2]], atol=1e-4)


def test_alignment_finds_the_similarity() -> None:
    turn = 0.3
    matrix = 1.7 * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    shape = RANDOM.uniform(0, 50, (68, 2))
    clip = np.stack([shape + move for move in ([-2, 1], [2, -1], [0, 0])])
    goal = shape @ matrix + [5, -3]
    clip[1, 7] = np.nan  # point 7 is unknown in one frame
    clip[:, 9] = np.nan  # point 9 is unknown in every frame
    found = align(clip.astype(np.float32), goal.astype(np.float32))
    wanted = clip @ matrix + [5, -3]
    # the mean of point 7 is that of two frames only, which moves the fit a little
    assert np.nanmax(np.abs(found - wanted)) < 0.2
    assert np.isnan(found[:, 9]).all()
    exact = align(np.delete(clip, [7, 9], axis=1).astype(np.float32), np.delete(goal, [7, 9], axis=0))
    np.testing.assert_allclose(exact, np.delete(wanted, [7, 9], axis=1), atol=1e-3)
    with pytest.raises(InputError, match="share no two points"):
        align(np.full((2, 68, 2), np.nan, np.float32), goal)


def test_align_takes_the_sources_landmarks_from_its_data_set_or_a_file(
    model: Path, clips: Path, face: Path, tmp_path: Path
) -> None:
    source = clips / "images" / "bob_1_0.png"
    own = np.load(clips / "landmarks_68.npy")[rows_of(clips)["bob_1_0.png"]]
    np.save(tmp_path / "own.npy", own)
    (tmp_path / "own.pts").write_text(pts(own))
    outs = []
    for number, given in enumerate(([], ["--source-landmarks", "own.npy"], ["--source-landmarks", "own.pts"])):
        given = [str(tmp_path / word) if word.startswith("own") else word for word in given]
        outs.append(tmp_path / f"out{number}")
        assert main([str(model), str(source), str(clips), str(outs[-1]), "--align", *given]) == 0
    frames = [np.asarray(Image.open(out / "frames" / "00002.png")).astype(int) for out in outs]
    assert np.abs(frames[0] - frames[1]).max() == 0 and np.abs(frames[0] - frames[2]).max() <= 1
    assert command(main, model, face, clips, tmp_path / "other", "--align") == 2


def test_a_model_that_needs_the_sources_landmarks(clips: Path, face: Path, tmp_path: Path, capsys) -> None:
    small = {"resolution": SIDE, "filters": 2, "d_filters": 2, "vgg_width": 2, "norm": "none"}
    config = ReenactConfig(device="cpu", correct=True, source_points=True, **small)
    system = build(config, "cpu")
    checkpoint.save(tmp_path / "run", 1, system.weights(), system.state_dict(), config)
    assert "this model needs the landmarks of the source" in refused(
        capsys, tmp_path / "run", face, clips, tmp_path / "out"
    )
    name, points = "bob_1_0.png", np.load(clips / "landmarks_68.npy")
    source = clips / "images" / name
    assert command(main, tmp_path / "run", source, clips, tmp_path / "out", "--clip", "ann/2") == 0
    module = load_trained(tmp_path / "run").module
    assert module.needs_source_points
    image = np.asarray(Image.open(source).crop((4, 0, 28, 24)).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    image = torch.tensor(image.transpose(2, 0, 1))[None].float() / 127.5 - 1
    own, wanted = (
        torch.tensor((points[rows_of(clips)[file]] - [4, 0] + 0.5) * SIDE / 24 - 0.5)[None].float()
        for file in (name, "ann_2_1.png")
    )
    pixels = np.asarray(Image.open(tmp_path / "out" / "frames" / "00001.png")).transpose(2, 0, 1).astype(float)
    np.testing.assert_allclose(pixels, (module(image, wanted, own)[0].numpy() + 1) * 127.5, atol=1)
    with pytest.raises(InputError, match="needs the landmarks of the images too"):
        module(image, wanted)


def test_landmarks_are_drawn_where_they_are() -> None:
    joined = sorted(i for points, _ in LINES for i in points)
    assert joined == list(range(68))
    angle = np.linspace(0, 6, 68)
    points = np.stack([8 + 5 * np.cos(angle), 8 + 5 * np.sin(angle)], 1)
    drawn = np.asarray(draw_points(points, SIDE))
    assert drawn.shape == (64, 64) and 0 < (drawn > 0).mean() < 0.5
    for x, y in (points + 0.5) * 4 - 0.5:
        assert drawn[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2].max() == 255
    dots = np.asarray(draw_points(np.array([[3.0, 4.0], [np.nan, np.nan]]), SIDE))
    assert dots[18, 14] == 255 and dots[40, 40] == 0


def test_a_grey_model(clips: Path, face: Path, tmp_path: Path) -> None:
    config = ReenactConfig(device="cpu", fused=False, resolution=SIDE, filters=2, d_filters=2, vgg_width=2, channels=1)
    system = build(config, "cpu")
    checkpoint.save(tmp_path / "run", 1, system.weights(), system.state_dict(), config)
    assert main([str(tmp_path / "run"), str(face), str(clips), str(tmp_path / "out"), "--eager"]) == 0
    assert Image.open(tmp_path / "out" / "frames" / "00000.png").mode == "L"


def refused(capsys: pytest.CaptureFixture, *words: object) -> str:
    assert command(main, *words) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    return error


def test_wrong_input_is_one_line(model: Path, clips: Path, face: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    for name, shape in (("five", (4, 5, 2)), ("flat", (4, 136)), ("empty", (0, 68, 2))):
        np.save(tmp_path / f"{name}.npy", np.zeros(shape))
        assert "(frames, 68, 2)" in refused(capsys, model, face, tmp_path / f"{name}.npy", out)
    np.save(tmp_path / "nan.npy", np.full((2, 68, 2), np.nan))
    assert "no finite number" in refused(capsys, model, face, tmp_path / "nan.npy", out)
    (tmp_path / "text.npy").write_text("text")
    assert "not a readable .npy" in refused(capsys, model, face, tmp_path / "text.npy", out)
    assert "no such file" in refused(capsys, model, face, tmp_path / "missing", out)
    assert "no landmarks" in refused(capsys, model, face, face, out)
    assert "no landmarks" in refused(capsys, model, face, clips / "images", out)
    assert "--clip chooses" in refused(capsys, model, face, tmp_path / "five.npy", out, "--clip", "a")
    assert "one image file" in refused(capsys, model, clips, clips, out)
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert "broken.png cannot be used" in refused(capsys, model, tmp_path / "broken.png", clips, out)
    assert "--fps must be" in refused(capsys, model, face, clips, out, "--fps", "0")
    assert "--align" in refused(capsys, model, face, clips, out, "--source-landmarks", tmp_path / "five.npy")
    assert "has 4 frames" in refused(
        capsys, model, face, clips, out, "--align", "--source-landmarks", save_four(tmp_path)
    )
    assert not out.exists()
    out.mkdir()
    (out / "kept.txt").write_text("kept")
    assert "not an empty folder" in refused(capsys, model, face, clips, out)
    assert "is a file" in refused(capsys, model, face, clips, out / "kept.txt")


def save_four(folder: Path) -> Path:
    np.save(folder / "four.npy", np.ones((4, 68, 2)))
    return folder / "four.npy"


def test_a_data_set_without_clips_and_points_of_another_kind(model: Path, face: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "set").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "set" / "a.png")
    np.save(tmp_path / "set" / "landmarks_68.npy", np.ones((1, 68, 2), np.float32))
    (tmp_path / "set" / "manifest.csv").write_text("file,landmarks_row\na.png,0\n")
    assert "no clips" in refused(capsys, model, face, tmp_path / "set", tmp_path / "out")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.pts").write_text("version: 1\nn_points: 5\n{\n1 2\n}\n")
    assert "5 points" in refused(capsys, model, face, tmp_path / "bad", tmp_path / "out")


def test_another_systems_model_is_refused(clips: Path, face: Path, tmp_path: Path, capsys) -> None:
    run = make_run(tmp_path / "refiner")
    assert "refine" in refused(capsys, run, face, clips, tmp_path / "out")


def test_a_model_that_diverged(model: Path, clips: Path, face: Path, tmp_path: Path, capsys) -> None:
    trained = load_trained(model)
    module, config = trained.module, trained.config
    state = module.generator.state_dict()
    weights = {f"ema.{key}": torch.full_like(value, float("nan")) for key, value in state.items()}
    checkpoint.save(tmp_path / "nan", 1, weights, {}, config)
    assert "NaN" in refused(capsys, tmp_path / "nan", face, clips, tmp_path / "out")


def test_a_batch_of_frames_is_no_different(model: Path, clips: Path, face: Path, tmp_path: Path) -> None:
    """The fused and the eager operators, and any batch size, give the same frames."""
    results = []
    for number, flags in enumerate((["--batch-size", "1"], ["--batch-size", "4"], ["--eager"])):
        out = tmp_path / str(number)
        assert main([str(model), str(face), str(clips), str(out), *flags]) == 0
        results.append(np.stack([np.asarray(Image.open(p)) for p in sorted((out / "frames").iterdir())]).astype(int))
    assert all(np.abs(results[0] - other).max() <= 1 for other in results[1:])
