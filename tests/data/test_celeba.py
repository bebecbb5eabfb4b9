"""CelebA: the images, the official split, identities, attributes, and its five points."""

from pathlib import Path

import numpy as np
import pytest

from engine import cli
from engine.data import open_dataset
from engine.data.__main__ import main
from engine.data.layouts.sources import FolderSource
from engine.data.layouts.which_layout import list_images
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


def as_csv(folder: Path, separator: str = ",", case=str) -> None:
    """Replace the tables by those of the common mirror: a header that names the file's column too."""
    headers = {"list_eval_partition": ["partition"], "identity_CelebA": ["identity"]}
    for path in folder.glob("*.txt"):
        rows = [line.split() for line in path.read_text().splitlines()]
        titles = headers.get(path.stem) or (rows[1] if "attr" in path.stem else [f"p{i}" for i in range(10)])
        rows = rows if path.stem in headers else rows[2:]
        text = "".join(separator.join(row) + "\n" for row in [["image_id", *titles], *rows])
        path.unlink()
        (folder / f"{case(path.stem)}.csv").write_text(text)


def rewrite(folder: Path, change) -> None:
    for path in [*folder.glob("*.txt"), *folder.glob("*.csv")]:
        path.write_bytes(change(path.read_text()))


def numbered(text: str) -> bytes:
    return "".join(f"{i or ''},{line}\n" for i, line in enumerate(text.splitlines())).encode()


def as_png(folder: Path) -> None:
    for path in (folder / "img_align_celeba").iterdir():
        path.rename(path.with_suffix(".png"))


def doubled(folder: Path) -> None:
    (folder / "img_align_celeba").rename(folder / "inner")
    (folder / "img_align_celeba").mkdir()
    (folder / "inner").rename(folder / "img_align_celeba" / "img_align_celeba")


DOWNLOADS = {
    "csv": as_csv,
    "csv with semicolons": lambda f: as_csv(f, ";"),
    "csv in small letters": lambda f: as_csv(f, case=str.lower),
    "csv with the index of pandas": lambda f: (as_csv(f), rewrite(f, numbered)),
    "csv with floats": lambda f: (as_csv(f), rewrite(f, lambda text: text.replace("-1,", "-1.0,").encode())),
    "png": as_png,
    "png folder": lambda f: (as_png(f), (f / "img_align_celeba").rename(f / "img_align_celeba_png")),
    "folder twice": doubled,
    "csv, folder twice": lambda f: (as_csv(f), doubled(f)),
    "CRLF": lambda f: rewrite(f, lambda text: text.replace("\n", "\r\n").encode()),
    "CR": lambda f: rewrite(f, lambda text: text.replace("\n", "\r").encode()),
    "a mark": lambda f: rewrite(f, lambda text: text.encode("utf-8-sig")),
    "UTF-16": lambda f: rewrite(f, lambda text: text.encode("utf-16")),
    "tabs": lambda f: rewrite(f, lambda text: text.replace("  ", " ").replace(" ", "\t").encode()),
    "other capitals": lambda f: rewrite(f, lambda text: text.replace(".jpg", ".JPG").encode()),
    "paths": lambda f: rewrite(f, lambda text: text.replace("0000", "img_align_celeba\\0000").encode()),
}


@pytest.mark.parametrize("download", DOWNLOADS)
def test_downloads_of_other_writers(tmp_path: Path, download: str) -> None:
    plain = list_images(FolderSource(write_celeba(tmp_path / "plain")))
    DOWNLOADS[download](write_celeba(tmp_path / "set"))
    found = list_images(FolderSource(tmp_path / "set"))

    def told(by_name: dict) -> dict:
        return {Path(name).stem: np.asarray(value).tolist() for name, value in by_name.items()}

    assert found.layout == "CelebA" and found.unused == [] and found.attribute_names == plain.attribute_names
    assert [Path(name).stem for name in found.names] == [Path(name).stem for name in plain.names]
    for what in ("splits", "identities", "attributes", "landmarks"):
        assert told(getattr(found, what)) == told(getattr(plain, what)), what


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
            lambda f: (f / "list_eval_partition.csv").write_text("image_id,partition\n"),
            "list_eval_partition.csv and list_eval_partition.txt are one table twice",
        ),
        (
            lambda f: (picture(9).save(f / "img_align_celeba" / "a.jpg"), as_csv(f)),
            "list_eval_partition.csv has no line for a.jpg",
        ),
        (
            lambda f: ((f / "img_align_celeba" / "a").mkdir(), picture(9).save(f / f"img_align_celeba/a/{FILES[0]}")),
            "img_align_celeba/000001.jpg and img_align_celeba/a/000001.jpg have one file name",
        ),
        (
            change("list_landmarks_align_celeba.txt", "7 8 9", f"7 8 {'9' * 5000}"),
            "list_landmarks_align_celeba.txt line 3: expected whole numbers after the file name, not '9999",
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
