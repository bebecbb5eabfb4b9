"""The CelebA layout: img_align_celeba/ (or img_celeba/) and its tables, all beside each other or in Anno/, Eval/, Img/.

At least one of the tables must be there: list_eval_partition.txt, identity_CelebA.txt, list_attr_celeba.txt and
list_landmarks_align_celeba.txt (list_landmarks_celeba.txt for img_celeba/).
Source: README of the data set, Liu et al. 2015.
"""

from collections.abc import Iterator

import numpy as np

from engine.data.layouts.listing import Listing
from engine.data.layouts.sources import Source
from engine.data.layouts.tables import read_text
from engine.errors import InputError

_FOLDERS = ("img_align_celeba", "img_celeba")
_PARTITION, _IDENTITY, _ATTRIBUTES = "list_eval_partition.txt", "identity_CelebA.txt", "list_attr_celeba.txt"
_LANDMARKS = {"img_align_celeba": "list_landmarks_align_celeba.txt", "img_celeba": "list_landmarks_celeba.txt"}
_TABLES = {_PARTITION, _IDENTITY, _ATTRIBUTES, *_LANDMARKS.values()}
_SPLITS = {0: "train", 1: "val", 2: "test"}
_POINTS = 5


def list_celeba(source: Source, files: set[str], images: set[str]) -> Listing | None:
    """Images, splits, identities, attributes and five points an image; None where this is not CelebA.

    Raises InputError.
    """
    tables = {name.rsplit("/", 1)[-1]: name for name in sorted(files) if name.rsplit("/", 1)[-1] in _TABLES}
    if not tables:
        return None
    folder = next((f for f in _FOLDERS if any(f in name.split("/")[:-1] for name in images)), None)
    if folder is None:
        raise InputError(
            f"{source.root}: {next(iter(tables.values()))} is there, but no image in a folder img_align_celeba or "
            "img_celeba: unpack the images beside the tables"
        )
    by_file = {name.rsplit("/", 1)[-1]: name for name in sorted(images) if folder in name.split("/")[:-1]}
    listing = Listing(sorted(by_file.values()), layout="CelebA")
    reader = _Reader(source, by_file, folder)
    if _PARTITION in tables:
        for where, name, (split,) in reader.rows(tables[_PARTITION], 1):
            if split not in _SPLITS:
                raise InputError(f"{where}: the split is {split}; expected 0 (train), 1 (val) or 2 (test)")
            listing.splits[name] = _SPLITS[split]
    if _IDENTITY in tables:
        listing.identities = {name: person for _, name, (person,) in reader.rows(tables[_IDENTITY], 1)}
    if _ATTRIBUTES in tables:
        listing.attribute_names = reader.header(tables[_ATTRIBUTES])
        for _, name, values in reader.rows(tables[_ATTRIBUTES], len(listing.attribute_names), skip=2):
            listing.attributes[name] = np.array(values, np.int8) > 0
    if _LANDMARKS[folder] in tables:
        listing.points = _POINTS
        for _, name, values in reader.rows(tables[_LANDMARKS[folder]], 2 * _POINTS, skip=2):
            listing.landmarks[name] = np.array(values, np.float32).reshape(_POINTS, 2)
    return listing


class _Reader:
    """Reads tables whose rows are a file name and whole numbers; a table must name every image once, and no other.

    by_file: file name -> image name. folder: of the images, for messages.
    """

    def __init__(self, source: Source, by_file: dict[str, str], folder: str) -> None:
        self._source, self._by_file, self._folder = source, by_file, folder

    def header(self, table: str) -> list[str]:
        """The column names of a table: they stand in its second line, below the number of rows."""
        lines = read_text(self._source, table).splitlines()
        return lines[1].split() if len(lines) > 1 else []

    def rows(self, table: str, columns: int, skip: int = 0) -> Iterator[tuple[str, str, list[int]]]:
        """Of each row: the place (file and line, for messages), the image's name, and its `columns` numbers.

        skip: how many lines the header has.
        """
        place = f"{self._source.root}: {table}"
        seen: set[str] = set()
        for number, line in enumerate(read_text(self._source, table).splitlines(), start=1):
            if number <= skip or not line.strip():
                continue
            where = f"{place} line {number}"
            file, *values = line.split()
            if len(values) != columns:
                raise InputError(f"{where} has {len(values)} columns after the file name, not {columns}: {line[:60]!r}")
            name = self._by_file.get(file)
            if name is None:
                raise InputError(
                    f"{where}: there is no {file} in {self._folder}: unpack the images again, or remove the line"
                )
            if name in seen:
                raise InputError(f"{where}: {file} is named for the second time")
            seen.add(name)
            try:
                yield where, name, [int(value) for value in values]
            except ValueError as error:
                raise InputError(f"{where}: expected whole numbers after the file name: {line[:60]!r}") from error
        if without := sorted(self._by_file.keys() - {name.rsplit("/", 1)[-1] for name in seen}):
            raise InputError(f"{place} has no line for {without[0]} ({len(without):,} images are not in it)")
