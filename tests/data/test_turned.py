"""Landmarks of turned pictures count in pixels as displayed, for training, landmark videos, driving and refining."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data import open_dataset, open_loader
from engine.data.__main__ import main
from engine.data.decoding.stored_squares import unlike_displayed
from engine.data.reading import read_set
from engine.errors import InputError
from engine.inference.driving import read_driving

pytest.importorskip("nvidia.dali")
ORIENTATIONS = range(1, 9)
WAYS_BACK = {  # orientation -> from the pixels as displayed to the pixels as stored
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def shown(width: int, height: int, dot: tuple[float, float]) -> Image.Image:
    """A dark picture with a bright dot of 5 pixels."""
    y, x = np.mgrid[0:height, 0:width]
    distance = (x - dot[0]) ** 2 + (y - dot[1]) ** 2
    return Image.fromarray((30 + 220 * np.exp(-distance / 8)).astype(np.uint8)).convert("RGB")


def stored(image: Image.Image, orientation: int, kind: str) -> bytes:
    """A file that is displayed as the image, by an orientation that turns its pixels."""
    way = WAYS_BACK[orientation]
    image = image.transpose(way) if way is not None else image
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(out, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return out.getvalue()


def brightest(pixels: np.ndarray) -> np.ndarray:
    """(2,) x and y of the middle of what is bright in (H, W)."""
    weight = np.clip(pixels.astype(np.float64) - pixels.max() / 2, 0, None)
    y, x = np.mgrid[0 : weight.shape[0], 0 : weight.shape[1]]
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def write_turned(folder: Path, kind: str, width: int = 48, height: int = 72) -> tuple[Path, np.ndarray]:
    """One picture of each orientation in the manifest layout, and where its dot is displayed (8, 2)."""
    (folder / "images").mkdir(parents=True)
    dots = np.stack([[12 + 2 * i, 50 - i] for i in range(8)]).astype(np.float32)
    rows = ["file,landmarks_row,video,frame"]
    for row, orientation in enumerate(ORIENTATIONS):
        name = f"{orientation}.{'jpg' if kind == 'JPEG' else kind.lower()}"
        (folder / "images" / name).write_bytes(stored(shown(width, height, dots[row]), orientation, kind))
        rows.append(f"{name},{row},v,{orientation}")
    points = np.repeat(dots[:, None], 68, axis=1)
    np.save(folder / "landmarks_68.npy", points)
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder, dots


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_batches(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture) -> None:
    folder, _ = write_turned(tmp_path / "set", kind)
    images = open_dataset(folder, channels=1, resolution=64, points=68)
    assert images.sizes.tolist() == [[48, 72]] * 8
    assert "kiln: set: 7 images with landmarks are turned by their orientation (EXIF)" in capfd.readouterr().err
    batch = open_loader(images, batch_size=8, resolution=64, channels=1, device="cpu", seed=0, mirror=False).next()
    for image, points in zip(batch.images, batch.landmarks, strict=True):
        np.testing.assert_allclose(brightest(image[0].numpy() + 1), points[0], atol=0.3)
    assert main(["validate", str(folder)]) == 0
    assert "7 images with landmarks are turned" in capfd.readouterr().out


def test_driving(tmp_path: Path) -> None:
    folder, dots = write_turned(tmp_path / "set", "JPEG")
    found = read_driving(folder, None, 68, 64, "crop").points[:, 0]
    np.testing.assert_allclose(found, (dots - [0, 12] + 0.5) * 64 / 48 - 0.5, atol=1e-4)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_landmark_videos(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture) -> None:
    video, suffix = tmp_path / "set" / "v", "jpg" if kind == "JPEG" else "tif"
    (video / "annot").mkdir(parents=True)
    (video / "frames").mkdir()
    angle = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    for orientation in ORIENTATIONS:
        points = np.stack([40 + orientation + 9 * np.cos(angle), 70 - orientation + 9 * np.sin(angle)], axis=1)
        points[28] = 40, 70
        lines = "\n".join(f"{x:.3f} {y:.3f}" for x, y in points + 1)
        (video / "annot" / f"{orientation}.pts").write_text(f"version: 1\nn_points: 68\n{{\n{lines}\n}}\n")
        data = stored(shown(90, 140, tuple(points[0])), orientation, kind)
        (video / "frames" / f"{orientation}.{suffix}").write_bytes(data)
    images = read_set(tmp_path / "set")
    assert len(images) == 8 and images.quarantined == []
    assert "7 images with landmarks are turned by their orientation" in capfd.readouterr().err
    for path, points in zip(images.paths, images.landmarks, strict=True):
        pixels = np.asarray(Image.open(images.source.root / path).convert("L"))
        np.testing.assert_allclose(brightest(pixels), points[0], atol=0.3)


def test_landmarks_that_fit_only_the_stored_pixels(tmp_path: Path) -> None:
    folder, dots = write_turned(tmp_path / "set", "JPEG")
    points = np.repeat(dots[:, None], 68, axis=1)
    points[:, 1] = 60, 40  # inside 72x48, outside 48x72
    np.save(folder / "landmarks_68.npy", points)
    images = open_dataset(folder, channels=3, resolution=16, points=68)
    assert [Path(path).stem for path in images.paths] == ["1", "2", "3", "4"]  # those lie outside either way
    why = "its landmarks fit the 72x48 pixels of the file, not the 48x72 displayed"
    assert [Path(name).stem for name, reason in images.quarantined if reason.startswith(why)] == ["5", "6", "7", "8"]
    with pytest.raises(InputError, match=rf"5.jpg cannot be used: {why} \(orientation 5\): give them"):
        read_driving(folder, None, 68, 64, "crop")


def test_what_fits() -> None:
    points = np.array([[50.0, 5.0], [np.nan, 900.0]])
    assert "72x48 pixels of the file" in unlike_displayed(points, (48, 72), 6)
    assert unlike_displayed(points, (48, 72), 3) == "" and unlike_displayed(points, (72, 48), 6) == ""
    assert unlike_displayed(points + 40, (48, 72), 6) == "" and unlike_displayed(points[1:], (48, 72), 6) == ""
