"""A picture means the same everywhere: every format, mode, depth, orientation and profile against what Pillow shows."""

import numpy as np
import pytest
from PIL import Image

from engine.data import ImageSet, open_dataset, open_loader
from engine.data.decoding import plain_images
from engine.data.decoding.plain_images import inspect, plain_bytes, plain_image
from engine.inference import pictures
from tests.support.data_images import encoded, picture
from tests.support.picture_files import PROFILES, WHITES, depths, pixels, product
from tests.support.shown import shown

pytest.importorskip("nvidia.dali")


@pytest.fixture(scope="module")
def pictures_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageSet, dict[str, Image.Image]]:
    """The product as one image set, and what is shown of each."""
    folder, expected = tmp_path_factory.mktemp("product"), {}
    for name, data in (*product(), *depths()):
        (folder / name).write_bytes(data)
        expected[name] = shown(data, white=WHITES.get(name) or (1 if "-F-" in name else None))
    images = open_dataset(folder, channels=3, resolution=16, progress=False)
    assert images.quarantined == []
    return images, expected


def square(image: Image.Image, channels: int) -> np.ndarray:
    """The middle 16 x 16 pixels, (channels, 16, 16)."""
    left, top = (image.width - 16) // 2, (image.height - 16) // 2
    part = image.convert("RGB" if channels == 3 else "L").crop((left, top, left + 16, top + 16))
    return np.atleast_3d(np.asarray(part)).transpose(2, 0, 1).astype(int)


@pytest.mark.parametrize(("kind", "channels"), [("resident", 3), ("resident", 1), ("dali", 3), ("dali", 1)])
def test_loaders_show_what_pillow_shows(pictures_set, kind: str, channels: int) -> None:
    images, expected = pictures_set
    loader = open_loader(images, batch_size=64, resolution=16, channels=channels, device="cpu", seed=0, loader=kind)
    squares = ((loader.fixed(len(images)).images + 1) * 127.5).round().numpy()
    loader.close()
    wrong = {}
    for name, found in zip(images.paths, squares, strict=True):
        error = np.abs(found - square(expected[name], channels)).max()
        if error > 1:
            wrong[name] = error
    assert not wrong, "\n".join(f"{k} {v}" for k, v in wrong.items())


def test_commands_show_what_pillow_shows(pictures_set) -> None:
    """refine and reenact read a file itself; evaluate reads what the loaders give to DALI."""
    images, expected = pictures_set
    wrong = {}
    for index, name in enumerate(images.paths):
        wanted = np.asarray(expected[name].convert("RGB")).astype(int)
        for data in {images.source.read(name), bytes(images.read(index))}:
            read = np.asarray(pictures.read(data)[0].convert("RGB"))
            if read.shape != wanted.shape or np.abs(read - wanted).max() > 1:
                wrong[name] = read.shape
    assert not wrong, wrong


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_the_plain_form_is_made_in_strips(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    for mode, icc in [("RGBA", "p3"), ("L", "grey"), ("CMYK", "inks"), ("I;16", "none")]:
        data = encoded(pixels(mode), "TIFF", icc_profile=PROFILES[icc], tiffinfo={274: 6})
        whole = plain_image(data)
        with monkeypatch.context() as patch:
            patch.setattr(plain_images, "_STRIP", rows * whole.width)
            assert plain_image(data) == whole
            assert bytes(plain_bytes(data)) == encoded(whole, "PPM")


@pytest.mark.parametrize(
    ("mode", "icc", "said"),
    [
        ("RGB", "srgb", ""),
        ("RGB", "p3", "colour profile Display P3"),
        ("RGB", "broken", "unusable colour profile"),
        ("RGB", "inks", "unusable colour profile"),
        ("L", "srgb", ""),
        ("L", "p3", ""),  # grey looks the same in it
        ("L", "grey", "colour profile grey"),
        ("L", "prophoto", "unusable colour profile"),
        ("CMYK", "inks", "mode CMYK, colour profile inks"),
        ("CMYK", "srgb", "mode CMYK, unusable colour profile"),
    ],
)
def test_only_profiles_that_change_colours_cost_time(mode: str, icc: str, said: str) -> None:
    data = encoded(picture(1).convert(mode), "JPEG", icc_profile=PROFILES[icc])
    assert inspect(data).convert == said
