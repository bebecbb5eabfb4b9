"""Files of models that Git LFS has not fetched, or that are no files, are named as such and not waited for."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.checkpoint import FILES
from engine.errors import InputError
from engine.inference.driving import read_array, read_driving, source_points
from engine.inference.exporting import export
from engine.inference.faces import Framing
from engine.inference.reenacting import ReenactOptions, read_source
from engine.networks.resnet_features import ResnetFeatures
from engine.networks.vgg import VGG19, check_digest
from tests.support.data_images import LFS_POINTER
from tests.support.tiny_run import make_run

SPOILT = [
    (lambda path: path.write_bytes(LFS_POINTER), "a Git LFS pointer .*: run `git lfs pull`"),
    (os.mkfifo, "a named pipe, not a file"),
    (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and what `kiln export` makes of it."""
    place = tmp_path_factory.mktemp("models")
    export(make_run(place / "run"), place / "exported")
    return place


@pytest.mark.parametrize(("spoil", "reason"), SPOILT, ids=["pointer", "pipe", "device"])
@pytest.mark.parametrize(
    "file",
    [
        *(f"run/checkpoints/step_00000007/{name}" for name in ("manifest.json", *FILES)),
        *(f"exported/{name}" for name in ("config.json", "model.safetensors")),
    ],
)
def test_models(folders: Path, tmp_path: Path, file: str, spoil, reason: str) -> None:
    top = file.split("/")[0]
    shutil.copytree(folders / top, tmp_path / top)
    (tmp_path / file).unlink()
    spoil(tmp_path / file)
    with pytest.raises(InputError, match=rf"{Path(file).name}: {reason}"):
        engine.load(tmp_path / top)


@pytest.mark.parametrize(("spoil", "reason"), SPOILT, ids=["pointer", "pipe", "device"])
@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_array(path, 68),
        lambda path: source_points(Path("a.png"), path, 68, "--align"),
        lambda path: read_driving(path, None, 68, 64, "crop"),
        lambda path: read_source(ReenactOptions(Path("run"), path, Path("clip"), Path("out")), 32, 3),
        lambda path: Framing.of(path.rename(path.parent / Framing.FILE).parent),
        lambda path: check_digest(path),
        lambda path: VGG19(["relu1_1"], width=1).load(path),
        lambda path: ResnetFeatures(path),
    ],
    ids=["array", "points", "driving", "picture", "framing", "vgg's digest", "vgg", "resnet"],
)
@pytest.mark.parametrize("suffix", [".npy", ".pts", ".zip", ".safetensors", ".pth"])
def test_what_is_named_on_the_command_line(tmp_path: Path, read, suffix: str, spoil, reason: str) -> None:
    spoil(tmp_path / f"x{suffix}")
    with pytest.raises(InputError, match=rf"{reason}|give a folder with landmarks"):
        read(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("shape", ["(1000000000000, 68, 2)", "(4611686018427387904, 68, 2)", "(3, 68, 2)"])
def test_an_array_whose_header_tells_of_more_than_there_is(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(100)
    (tmp_path / "clip.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"is not a readable .npy array \(its header tells of .*only 100 bytes follow"):
        read_array(tmp_path / "clip.npy", 68)


def test_arrays_of_every_version_and_order(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(0, 64, (3, 68, 2))
    for version in ((1, 0), (2, 0), (3, 0)):
        for array in (points, np.asfortranarray(points), points.astype(np.float16), points.astype(">i2")):
            with (tmp_path / "clip.npy").open("wb") as file:
                np.lib.format.write_array(file, array, version=version)
            np.testing.assert_array_equal(read_array(tmp_path / "clip.npy", 68), array.astype(np.float32))
