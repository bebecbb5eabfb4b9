"""`kiln crop`: faces lie where they lie in the photos of --like, whatever lies around them, and nothing is lost."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import crop
from engine.data import avatars
from engine.inference.faces import FaceFinder, Framing
from tests.support.data_images import encoded, write_pictures
from tests.support.packages import needs
from tests.support.tiny_run import command

pytestmark = needs("cv2")
SIDE = 128


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Avatars as they are rendered: the photos that others are framed like."""
    folder = tmp_path_factory.mktemp("crop") / "faces"
    folder.mkdir()
    for identity in range(16):
        Image.fromarray(avatars.render(identity, 0, "photo", SIDE, 3)[0]).save(folder / f"{identity:02d}.png")
    return folder


@pytest.fixture
def snapshots(faces, tmp_path) -> Path:
    """The same people, smaller or larger, somewhere in pictures of other shapes."""
    rng = np.random.default_rng(5)
    (tmp_path / "in" / "below").mkdir(parents=True)
    for number, path in enumerate(sorted(faces.iterdir())):
        side = int(rng.integers(150, 260))
        picture = Image.new("RGB", (int(rng.integers(300, 420)), int(rng.integers(270, 340))), (96, 110, 120))
        place = tuple(int(rng.integers(0, whole - side)) for whole in picture.size)
        picture.paste(Image.open(path).resize((side, side), Image.Resampling.BICUBIC), place)
        picture.save(tmp_path / "in" / ("below" if number % 2 else "") / f"{path.stem}.jpg", quality=95)
    return tmp_path / "in"


def offsets(folder: Path, faces: Path) -> np.ndarray:
    """How far a crop's face lies from that of its original, (N, 4): the box's sides in shares of the picture."""
    finder, found = FaceFinder(), []
    for path in sorted(folder.rglob("*.png"), key=lambda path: path.stem):
        image = Image.open(path)
        assert image.size == (SIDE, SIDE) and not image.info
        boxes = [finder.boxes(np.asarray(Image.open(place))) for place in (path, faces / path.name)]
        if all(boxes):
            found.append(np.subtract(boxes[0][0], boxes[1][0]) / SIDE)
    return np.array(found)


def share(folder: Path) -> float:
    """The faces' width in the pictures of a folder, as a share of the picture's side."""
    return Framing.measure(np.stack([np.asarray(Image.open(path)) for path in folder.rglob("*.png")])).share


def test_faces_lie_as_in_the_photos(faces, snapshots, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(crop.main, snapshots, out, "--like", faces) == 0
    told, written = capsys.readouterr(), {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert f"{len(written)} images of 16 cropped to 128x128" in told.out
    names = {f"{'below/' if number % 2 else ''}{number:02d}" for number in range(16)}
    left_out = {line.split("left out ")[1].split(".jpg")[0] for line in told.err.splitlines() if "left out" in line}
    assert {name.removesuffix(".png") for name in written} | left_out == names and len(written) >= 12
    assert np.median(np.abs(offsets(out, faces))) < 0.03
    # without --like faces have the framing of an aligned portrait
    assert command(crop.main, snapshots, tmp_path / "default") == 0
    assert share(out) == pytest.approx(share(faces), abs=0.04)
    assert command(crop.main, snapshots, tmp_path / "larger", "--like", faces, "--zoom", 1.25) == 0
    assert share(tmp_path / "larger") == pytest.approx(1.25 * share(out), abs=0.04)
    assert share(tmp_path / "default") == pytest.approx(Framing().share, abs=0.06) and share(faces) < 0.6


def test_framed_as_a_shipped_model_s_photos(snapshots, tmp_path):
    assert command(crop.main, snapshots / "00.jpg", tmp_path / "one.png", "--like", "portraits-c", "--size", 64) == 0
    framing = Framing.of(Path(crop.__file__).parent / "shipped" / "portraits-c")
    (left, _, right, _), *_ = FaceFinder().boxes(np.asarray(Image.open(tmp_path / "one.png")))
    assert framing != Framing() and (right - left) / 64 == pytest.approx(framing.share, abs=0.1)


def test_grey_stays_grey_and_the_border_is_repeated(faces, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.open(faces / "00.png").convert("L").crop((14, 20, 114, 120)).save(tmp_path / "in" / "tight.png")
    assert command(crop.main, tmp_path / "in", tmp_path / "out", "--like", faces, "--size", 200) == 0
    assert "1 enlarged; 1 reach beyond the picture" in capsys.readouterr().out
    cropped = Image.open(tmp_path / "out" / "tight.png")
    assert cropped.mode == "L" and np.ptp(np.asarray(cropped)[:, 0]) > 0


def test_no_face_and_no_image_are_told_apart(faces, tmp_path, capsys):
    write_pictures(tmp_path / "in", 1)
    assert command(crop.main, tmp_path / "in", tmp_path / "out") == 2
    assert "no face was found" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "in" / "face.png").write_bytes((faces / "00.png").read_bytes())
    assert command(crop.main, tmp_path / "in", tmp_path / "out") == 0
    told = capsys.readouterr()
    assert "left out 000.png: no face found" in told.err and "1 image of 2 cropped" in told.out
    (tmp_path / "in" / "cut.jpg").write_bytes(encoded(Image.new("RGB", (40, 40)), "JPEG")[:80])
    assert command(crop.main, tmp_path / "in", tmp_path / "again") == 2
    told = capsys.readouterr().err
    assert "skipped cut.jpg: " in told and "1 image could not be read (named above); 1 image of 3 cropped" in told
    assert (tmp_path / "again" / "face.png").exists()


@pytest.mark.parametrize(
    "words, says",
    [
        (["missing", "out"], "missing: no such file or folder"),
        (["in", "in"], "the originals are never overwritten"),
        (["in", "out", "--size", "4"], "--size must be 8 to 4096, got 4"),
        (["in", "out", "--zoom", "0"], "--zoom must be 0.25 to 4, got 0"),
        (["in", "out", "--like", "nobody"], "no shipped model has this name"),
        (["in", "out", "--like", "in"], "--like in: fewer than 8 faces are found in 2 images"),
    ],
)
def test_wrong_usage(words, says, tmp_path, monkeypatch, capsys):
    write_pictures(tmp_path / "in", 2)
    monkeypatch.chdir(tmp_path)
    assert command(crop.main, *words) == 2
    told = capsys.readouterr().err
    assert says in told.splitlines()[-1] and not (tmp_path / "out").exists()
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["000.png", "001.png"]


def test_missing_opencv_names_the_extra(tmp_path, monkeypatch, capsys):
    write_pictures(tmp_path / "in", 1)
    monkeypatch.setattr(
        "engine.inference.faces.attempt", lambda name: (None, "ModuleNotFoundError: No module named 'cv2'")
    )
    assert command(crop.main, tmp_path / "in", tmp_path / "out") == 2
    assert "kiln-engine[eval]" in capsys.readouterr().err
