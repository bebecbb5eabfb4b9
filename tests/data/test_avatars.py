"""The embedded avatars: exact, repeatable, varied, and recognisable as faces."""

import csv
import hashlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from engine.data.avatars import LOOKS, render, write
from engine.data.avatars.contours import features
from engine.data.avatars.geometry import camera, front_point, landmarks, pose, profile
from engine.data.avatars.identity import frame, scene, traits
from engine.data.avatars.picture import _material, draw, paint_look
from engine.errors import InputError
from tests.support.places import ROOT

# fmt: off
MIRROR = np.array([
    16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 27, 28, 29, 30,
    35, 34, 33, 32, 31, 45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40, 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55,
    64, 63, 62, 61, 60, 67, 66, 65,
])
# fmt: on


def digest(identity: int, index: int, look: str, size: int, seed: int = 0) -> str:
    picture, marks = render(identity, index, look, size, seed)
    return hashlib.sha256(picture.tobytes() + marks.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def sample():
    """Twelve drawings at 64 pixels and their pictures in both looks."""
    drawings = [draw(0, identity, 0, 64) for identity in range(12)]
    return drawings, {look: [paint_look(d, look) for d in drawings] for look in LOOKS}


@pytest.mark.parametrize(("look", "size"), [("photo", 64), ("game", 48), ("photo", 128)])
def test_shapes(look, size):
    picture, marks = render(3, 1, look, size)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
    assert marks.shape == (68, 2) and marks.dtype == np.float32 and np.isfinite(marks).all()


def test_same_bytes_in_any_order_and_process():
    jobs = [(5, 0, "photo"), (1, 2, "game"), (5, 1, "photo")]
    first = [digest(*job, 48) for job in jobs]
    assert [digest(*job, 48) for job in reversed(jobs)] == first[::-1]
    code = "import sys; sys.path[:0] = eval(sys.argv[1]); from tests.data.test_avatars import digest\n" + "".join(
        f"print(digest(*{job!r}, 48))\n" for job in jobs[::-1]
    )
    out = subprocess.run(
        [sys.executable, "-c", code, repr([str(ROOT), *sys.path])], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == first[::-1]
    assert digest(5, 0, "photo", 48, seed=1) != first[0]


def test_looks_share_landmarks_but_not_pixels(sample):
    drawings, pictures = sample
    for identity, drawing in enumerate(drawings):
        look = LOOKS[identity % 2]
        np.testing.assert_array_equal(render(identity, 0, look, 64)[1], drawing.landmarks)
    differences = [np.abs(a.astype(int) - b).mean() for a, b in zip(pictures["photo"], pictures["game"], strict=True)]
    assert min(differences) > 4


def test_landmarks_in_order(sample):
    for drawing in sample[0]:
        m = drawing.landmarks
        assert (m > 0).all() and (m < 63).all()
        assert (np.diff(m[:9, 0]) > -1.5).all() and (np.diff(m[8:17, 0]) > -1.5).all() and m[16, 0] - m[0, 0] > 20
        assert (
            (np.diff(m[17:22, 0]) > 0).all() and (np.diff(m[22:27, 0]) > 0).all() and (np.diff(m[31:36, 0]) > 0).all()
        )
        assert (np.diff(m[27:31, 1]) > 0).all(), "the nose runs down"
        assert m[36, 0] < m[39, 0] < m[42, 0] < m[45, 0], "eye corners from image left to right"
        assert m[17:27, 1].mean() < m[36:48, 1].mean() < m[31:36, 1].mean() < m[48:68, 1].mean() < m[8, 1]
        assert m[48, 0] < m[51, 0] < m[54, 0] and m[51, 1] < m[57, 1] and m[60, 0] < m[64, 0]


def test_frontal_face_is_symmetric():
    who, how = traits(0, 4), frame(0, 4, 0)
    who.shape["asymmetry"] = 0.0
    values = {**vars(how), "yaw": 0.0, "pitch": 0.0, "roll": 0.0, "eye_left": 1.0, "eye_right": 1.0}
    how = type(how)(**values)
    face = features(who, how)
    points = landmarks(who, face, profile(who, face))
    u, v, _ = camera(scene(0, 4), 256).project(pose(how).points(points))
    middle = u[27]
    np.testing.assert_allclose(u[MIRROR] - middle, middle - u, atol=0.05)
    np.testing.assert_allclose(v[MIRROR], v, atol=0.05)
    traits.cache_clear()


def test_eye_landmarks_lie_on_the_drawn_contours():
    checked = 0
    for identity in (0, 4, 5, 10, 21):
        d = draw(0, identity, 0, 128)
        material = _material(d, False)
        for eye, first in zip(d.face.eyes, (36, 42), strict=True):
            if eye.openness < 0.6:
                continue
            q = np.linspace(-1, 1, 400)
            for curve in (eye.upper, eye.lower):
                x = eye.side * (eye.x + eye.half_width * q)
                u, v, _ = d.camera.project(d.place.points(front_point(d.traits, d.face, d.profile, x, curve(q))))
                contour = (np.stack([u, v], 1) + 0.5) / d.factor - 0.5
                rows = [1, 2] if curve == eye.upper else [4, 5]
                for mark in d.landmarks[[first + r for r in rows]]:
                    assert np.hypot(*(contour - mark).T).min() < 0.1
            # and the painted eyeball ends there: only it is not skin around the opening
            eyeball = np.zeros((256, 256), bool)
            eyeball.reshape(-1)[d.body.pixels[(d.part == 0) & (material.skin < 0.5) & (np.abs(material.y) < 14)]] = True
            inner = (
                eyeball[1:-1, 1:-1] & eyeball[:-2, 1:-1] & eyeball[2:, 1:-1] & eyeball[1:-1, :-2] & eyeball[1:-1, 2:]
            )
            edge = eyeball.copy()
            edge[1:-1, 1:-1] &= ~inner
            rim = (np.argwhere(edge)[:, ::-1] + 0.5) / d.factor - 0.5
            for mark in d.landmarks[first : first + 6]:
                assert np.hypot(*(rim - mark).T).min() < 1.0
            checked += 1
    assert checked >= 6


def test_landmarks_sit_on_the_visible_surface():
    """Head coordinates read back from the raster at a landmark are those the landmark was made from."""
    d = draw(0, 4, 0, 128)
    raster = d.size * d.factor
    position = np.full((raster * raster, 3), np.nan, np.float32)
    head = d.part == 0
    position[d.body.pixels[head]] = d.body.attributes[head, :3]
    marks = ((d.landmarks + 0.5) * d.factor - 0.5).round().astype(int)
    expected = landmarks(d.traits, d.face, d.profile)
    inner = [*range(17, 31), 33, *range(36, 48), *range(48, 68)]
    found = position.reshape(raster, raster, 3)[marks[inner, 1], marks[inner, 0]]
    assert np.nanmedian(np.linalg.norm(found - expected[inner], axis=1)) < 1.2
    assert np.isfinite(found).all()


def test_identities_differ(sample):
    for look in LOOKS:
        stack = np.stack(sample[1][look]).astype(np.float32)
        distance = np.abs(stack[:, None] - stack[None]).mean((2, 3, 4))[np.triu_indices(len(stack), 1)]
        assert distance.min() > 8 and distance.mean() > 25
    people = [traits(0, i) for i in range(200)]
    assert {p.hair for p in people} >= {"bald", "buzz", "short", "bangs", "long", "afro"}
    assert {p.beard for p in people} >= {"", "stubble", "full", "moustache"}
    assert np.ptp([p.melanin for p in people]) > 0.85 and any(p.glasses for p in people)


def test_clips_move_smoothly():
    marks = np.stack([draw(0, 8, f, 64).landmarks for f in range(10)])
    step = np.linalg.norm(np.diff(marks, axis=0), axis=2).mean(1)
    assert step.max() < 4 and step.max() > 0.2
    assert np.linalg.norm(marks[1:] - marks[:1], axis=2).mean() > 0.5
    same = np.abs(render(8, 0, "photo", 64)[0].astype(int) - render(8, 1, "photo", 64)[0]).mean()
    other = np.abs(render(8, 0, "photo", 64)[0].astype(int) - render(9, 0, "photo", 64)[0]).mean()
    assert same < other


@pytest.mark.parametrize("workers", [1, 2])
def test_write_layout(tmp_path, monkeypatch, workers):
    from engine.data.avatars import writing

    monkeypatch.setattr(writing, "_cores", lambda: workers)
    monkeypatch.setattr(writing, "_SMALL", 2)
    write(tmp_path / "set", 3, 32, 7, frames=2, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]
    for look in LOOKS:
        folder = tmp_path / "set" / look
        rows = list(csv.DictReader((folder / "manifest.csv").open()))
        assert [(r["file"], r["landmarks_row"], r["identity"], r["frame"]) for r in rows][:3] == [
            ("id00000_f00.jpg", "0", "0", "0"),
            ("id00000_f01.jpg", "1", "0", "1"),
            ("id00001_f00.jpg", "2", "1", "0"),
        ]
        assert sorted(p.name for p in (folder / "images").iterdir()) == [r["file"] for r in rows]
        marks = np.load(folder / "landmarks_68.npy")
        assert marks.shape == (6, 68, 2) and marks.dtype == np.float32
        picture, expected = render(2, 1, look, 32, seed=7)
        np.testing.assert_array_equal(marks[5], expected)
        with Image.open(folder / "images" / "id00002_f01.jpg") as image:
            assert image.size == (32, 32) and "Synthetic" in image.getexif()[0x010E]
            assert np.abs(np.asarray(image).astype(int) - picture).mean() < 4


def test_write_refuses_a_used_folder_and_bad_numbers(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        write(tmp_path / "used", 1, 32, 0, progress=False)
    with pytest.raises(InputError):
        write(tmp_path / "new", 0, 32, 0, progress=False)
    with pytest.raises(InputError):
        render(0, 0, "oil", 64)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", 1, 32, 0, progress=False)
    assert (tmp_path / "empty" / "photo" / "manifest.csv").is_file()


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    from engine.data.avatars import writing

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "_write_tables", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", 1, 32, 0, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_write_from_a_script_without_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; sys.path[:0] = eval(sys.argv[1])\nfrom engine.data.avatars import write, writing\n"
        "writing._SMALL = 2\nwriting._cores = lambda: 2\nwrite(sys.argv[2], 2, 24, 0, progress=True)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), repr(sys.path), str(tmp_path / "set")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "avatars" in done.stderr and done.stdout == ""
    assert len(list((tmp_path / "set" / "photo" / "images").iterdir())) == 2


def test_a_face_detector_finds_them():
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "CascadeClassifier"):
        pytest.skip("this OpenCV has no cascade classifier")
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    found = []
    for identity in range(40):
        grey = cv2.cvtColor(render(identity, 0, "photo", 128)[0], cv2.COLOR_RGB2GRAY)
        found.append(any(len(cascade.detectMultiScale(cv2.resize(grey, None, fx=s, fy=s), 1.1, 3)) for s in (1, 2)))
    assert np.mean(found) >= 0.9
