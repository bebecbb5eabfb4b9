"""CelebA: the images, the official split, identities, attributes, and its five points."""

from pathlib import Path

import numpy as np
import pytest

from engine import cli
from engine.data import open_dataset
from engine.data.__main__ import main
from engine.data.reading import read_set
from engine.errors import InputError
from tests.support.data_images import picture, zip_of

pytest.importorskip("nvidia.dali")
FILES = [f"{i:06d}.jpg" for i in range(1, 7)]


def write_celeba(root: Path, images: str = "img_align_celeba", tables: dict[str, str] | None = None) -> Path:
    """Six images; tables: folder of each table, "" where it is not told."""
    (root / images).mkdir(parents=True)
    for seed, file in enumerate(FILES):
        picture(seed, 44, 54).save(root / images / file)
    for name, text in (
        ("list_eval_partition.txt", lines([f"{file} {split}" for file, split in zip(FILES, "000112", strict=True)])),
        ("identity_CelebA.txt", lines([f"{file} {id}" for file, id in zip(FILES, (7, 7, 9, 2, 2, 7), strict=True)])),
        (
            "list_attr_celeba.txt",
            lines(["6", "Bald Male", *(f"{f}  {-1} {1 if i % 2 else -1:2d}" for i, f in enumerate(FILES))]),
        ),
        (
            "list_landmarks_align_celeba.txt",
            lines(["6", "lefteye_x lefteye_y", *(f"{f} " + " ".join(map(str, range(10))) for f in FILES)]),
        ),
    ):
        folder = root / (tables or {}).get(name, "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return root


def lines(rows: list[str]) -> str:
    return "\n".join(rows) + "\n"


def test_splits_identities_and_attributes(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = write_celeba(tmp_path / "set")
    images = open_dataset(folder, channels=3, resolution=16)
    assert images.paths == [f"img_align_celeba/{file}" for file in FILES]
    assert images.splits == ["train"] * 3 + ["val"] * 2 + ["test"]
    assert images.identities.tolist() == [7, 7, 9, 2, 2, 7]
    assert {name: has.tolist() for name, has in images.attributes.items()} == {
        "Bald": [False] * 6,
        "Male": [False, True] * 3,
    }
    assert images.points == 0 and images.landmarks is None and images.clips is None
    held_out = open_dataset(folder, channels=3, resolution=16, split="val")
    assert held_out.paths == images.paths[3:5] and held_out.identities.tolist() == [2, 2]
    men = images.subset(images.attributes["Male"])
    assert men.paths == images.paths[1::2] and men.attributes["Male"].all() and men.digest != images.digest
    assert cli.status_of("data", main, ["validate", str(folder)]) == 0
    out = capfd.readouterr().out
    assert "layout       CelebA" in out and "splits       train 3, val 2, test 1" in out
    assert "identities   3" in out and "attributes   Bald 0, Male 3" in out
    assert "5 for all images (training uses 68 or 18)" in out


def test_five_points_are_not_68(tmp_path: Path) -> None:
    folder = write_celeba(tmp_path / "set")
    for points, needed in ((68, "68 landmarks"), (18, "18 key points")):
        with pytest.raises(InputError, match=f"set has 5 points for each image, this needs {needed}"):
            open_dataset(folder, channels=3, resolution=16, points=points)
    np.testing.assert_array_equal(
        read_set(folder).listing.landmarks["img_align_celeba/000002.jpg"], np.arange(10).reshape(5, 2)
    )


def test_as_it_is_unpacked(tmp_path: Path) -> None:
    plain = write_celeba(tmp_path / "plain")
    official = {"list_eval_partition.txt": "Eval"} | dict.fromkeys(
        ("identity_CelebA.txt", "list_attr_celeba.txt", "list_landmarks_align_celeba.txt"), "Anno"
    )
    nested = write_celeba(tmp_path / "nested", "Img/img_align_celeba", official)
    (nested / "Img" / "notes.txt").write_text("x")
    a, b = read_set(plain), read_set(nested)
    assert [Path(path).name for path in b.paths] == FILES
    assert (a.splits, a.identities.tolist()) == (b.splits, b.identities.tolist())
    packed = read_set(zip_of(nested, tmp_path / "celeba.zip", "CelebA/"))
    assert packed.splits == a.splits and packed.paths[0] == f"CelebA/Img/img_align_celeba/{FILES[0]}"
    wild = write_celeba(tmp_path / "wild", "img_celeba")
    assert read_set(wild).listing.points == 0  # the table of aligned points is not about these images
    for name in ("list_eval_partition.txt", "list_attr_celeba.txt", "list_landmarks_align_celeba.txt"):
        (plain / name).unlink()
    alone = read_set(plain)
    assert alone.splits is None and alone.attributes == {} and alone.identities.tolist() == [7, 7, 9, 2, 2, 7]


def test_bad_images_are_set_aside(tmp_path: Path) -> None:
    folder = write_celeba(tmp_path / "set")
    (folder / "img_align_celeba" / FILES[1]).write_bytes(b"text")
    images = read_set(folder)
    assert len(images) == 5 and images.identities.tolist() == [7, 9, 2, 2, 7]
    assert [name for name, _ in images.quarantined] == [f"img_align_celeba/{FILES[1]}"]


def change(name: str, old: str, new: str):
    def apply(folder: Path) -> None:
        assert old in (folder / name).read_text()
        (folder / name).write_text((folder / name).read_text().replace(old, new, 1))

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / "img_align_celeba" / FILES[2]).unlink(),
            "list_eval_partition.txt line 3: there is no 000003.jpg in img_align_celeba",
        ),
        (
            lambda f: picture(9).save(f / "img_align_celeba" / "000009.jpg"),
            "list_eval_partition.txt has no line for 000009.jpg (1 images are not in it)",
        ),
        (
            change("list_eval_partition.txt", "000002.jpg 0", "000002.jpg"),
            "list_eval_partition.txt line 2 has 0 columns after the file name, not 1: '000002.jpg'",
        ),
        (
            change("list_eval_partition.txt", "000002.jpg 0", "000002.jpg 3"),
            "list_eval_partition.txt line 2: the split is 3; expected 0 (train), 1 (val) or 2 (test)",
        ),
        (
            change("list_eval_partition.txt", "000002.jpg 0", "000001.jpg 0"),
            "list_eval_partition.txt line 2: 000001.jpg is named for the second time",
        ),
        (
            change("identity_CelebA.txt", "000003.jpg 9", "000003.jpg nine"),
            "identity_CelebA.txt line 3: expected whole numbers after the file name, not 'nine'",
        ),
        (
            change("list_attr_celeba.txt", "Bald Male", "Bald Male Young"),
            "list_attr_celeba.txt line 3 has 2 columns after the file name, not 3",
        ),
        (
            change("list_landmarks_align_celeba.txt", "7 8 9", "7 8"),
            "list_landmarks_align_celeba.txt line 3 has 9 columns after the file name, not 10",
        ),
        (
            lambda f: (f / "img_align_celeba").rename(f / "images"),
            "identity_CelebA.txt is there, but no image in a folder img_align_celeba or img_celeba",
        ),
        (
            lambda f: (f / "identity_CelebA.txt").write_bytes(b"\xff\xfex"),
            "identity_CelebA.txt cannot be read",
        ),
    ],
)
def test_inconsistent_tables(tmp_path: Path, capfd: pytest.CaptureFixture, spoil, message: str) -> None:
    folder = write_celeba(tmp_path / "set")
    spoil(folder)
    assert cli.status_of("data", main, ["validate", str(folder)]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"kiln data: error: {folder}: ") and message in err and err.count("\n") == 1
