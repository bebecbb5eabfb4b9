"""The CelebA layout: img_align_celeba/ (or img_celeba/) and its tables, all beside each other or in Anno/, Eval/, Img/.

At least one of the tables must be there: list_eval_partition.txt, identity_CelebA.txt, list_attr_celeba.txt and
list_landmarks_align_celeba.txt (list_landmarks_celeba.txt for img_celeba/). They may be .csv with a header, and the
images may be PNG files, which the tables call .jpg: both are common downloads.
Source: README of the data set, Liu et al. 2015.
"""

from collections.abc import Iterator

import numpy as np

from engine.data.layouts.listing import Listing
from engine.data.layouts.names import FileFinder, last_part
from engine.data.layouts.sources import Source, is_image_name
from engine.data.layouts.tables import meaning, read_lines, split_name, whole_number
from engine.errors import InputError

_LANDMARKS = {
    "img_align_celeba": "list_landmarks_align_celeba",
    "img_align_celeba_png": "list_landmarks_align_celeba",
    "img_celeba": "list_landmarks_celeba",
}
"""Folder of the images -> the table of their points."""
_PARTITION, _IDENTITY, _ATTRIBUTES = "list_eval_partition", "identity_celeba", "list_attr_celeba"
_TABLES = {_PARTITION, _IDENTITY, _ATTRIBUTES, *_LANDMARKS.values()}
_SUFFIXES = ("txt", "csv", "tsv")
_SPLITS = {0: "train", 1: "val", 2: "test"}
_POINTS = 5


def list_celeba(source: Source, files: set[str], images: set[str]) -> Listing | None:
    """Images, splits, identities, attributes and five points an image; None where this is not CelebA.

    Raises InputError.
    """
    tables = _find_tables(source, files)
    if not tables:
        return None
    folder = next((f for f in _LANDMARKS if any(f in name.split("/")[:-1] for name in images)), None)
    if folder is None:
        raise InputError(
            f"{source.root}: {next(iter(tables.values()))} is there, but no image in a folder img_align_celeba or "
            "img_celeba: unpack the images beside the tables"
        )
    by_file = _by_file(source, sorted(name for name in images if folder in name.split("/")[:-1]))
    listing = Listing(sorted(by_file.values()), layout="CelebA")
    reader = _Reader(source, by_file, folder)
    if _PARTITION in tables:
        for where, name, (split,) in reader.rows(tables[_PARTITION], ["split"]):
            listing.splits[name] = _split(split, where)
    if _IDENTITY in tables:
        for where, name, (person,) in reader.rows(tables[_IDENTITY], ["person"]):
            listing.identities[name] = _whole(person, where)
    if _ATTRIBUTES in tables:
        listing.attribute_names = reader.header(tables[_ATTRIBUTES])
        for where, name, values in reader.rows(tables[_ATTRIBUTES], listing.attribute_names):
            listing.attributes[name] = np.array([_whole(value, where) > 0 for value in values])
    if _LANDMARKS[folder] in tables:
        listing.points = _POINTS
        for where, name, values in reader.rows(tables[_LANDMARKS[folder]], ["x", "y"] * _POINTS):
            points = [_whole(value, where) for value in values]
            listing.landmarks[name] = np.array(points, np.float32).reshape(_POINTS, 2)
    listing.tables = reader.tables
    return listing


def _find_tables(source: Source, files: set[str]) -> dict[str, str]:
    """The table's name without suffix, in lower case -> its file. Raises InputError for two files of one table."""
    tables: dict[str, str] = {}
    for name in sorted(files):
        table, _, suffix = last_part(name).casefold().rpartition(".")
        if table in _TABLES and suffix in _SUFFIXES and (other := tables.setdefault(table, name)) != name:
            raise InputError(f"{source.root}: {other} and {name} are one table twice: keep one of them")
    return tables


def _by_file(source: Source, names: list[str]) -> dict[str, str]:
    """File name -> image name. Raises InputError for two images of one file name."""
    by_file: dict[str, str] = {}
    for name in names:
        if (other := by_file.setdefault(last_part(name), name)) != name:
            raise InputError(f"{source.root}: {other} and {name} have one file name, by which the tables know them")
    return by_file


def _split(text: str, where: str) -> str:
    """The split that a field of the partition table means. Raises InputError."""
    split = _SPLITS.get(whole_number(text), split_name(text))
    if split not in _SPLITS.values():
        raise InputError(f"{where}: the split is {text[:40]}; expected 0 (train), 1 (val) or 2 (test)")
    return split


def _whole(text: str, where: str) -> int:
    number = whole_number(text)
    if number is None:
        raise InputError(f"{where}: expected whole numbers after the file name, not {text[:60]!r}")
    return number


class _Reader:
    """Reads tables whose rows are a file name and its values; a table must name every image once, and no other.

    by_file: file name -> image name. folder: of the images, for messages. tables: the tables that were read.
    """

    def __init__(self, source: Source, by_file: dict[str, str], folder: str) -> None:
        self._source, self._by_file, self._folder = source, by_file, folder
        self._find = FileFinder(source, by_file, ("",), any_suffix=True)
        self.tables: set[str] = set()

    def header(self, table: str) -> list[str]:
        """The names of a table's columns after the file name's; below the number of rows in the official tables."""
        lines = read_lines(self._source, table)
        return next((_after_file(fields)[1] for _, fields in lines if _is_header(fields)), [])

    def rows(self, table: str, columns: list[str]) -> Iterator[tuple[str, str, list[str]]]:
        """Of each row: the place (file and line, for messages), the image's name, and the values of `columns`."""
        self.tables.add(table)
        place = f"{self._source.root}: {table}"
        named: dict[str, str] = {}
        first = 0
        for position, (number, fields) in enumerate(read_lines(self._source, table)):
            where = f"{place} line {number}"
            if position < 2 and (_is_header(fields) or (not position and _is_count(fields))):
                first = _after_file(fields)[0]
                continue
            file, *values = fields[first:] or [""]
            if len(values) != len(columns):
                line = " ".join(fields)[:60]
                raise InputError(f"{where} has {len(values)} columns after the file name, not {len(columns)}: {line!r}")
            known = self._find(last_part(file), where)
            if known is None:
                raise InputError(
                    f"{where}: there is no {file[:100]} in {self._folder}: unpack the images again, or remove the line"
                )
            if known in named:
                raise InputError(f"{where}: {file[:100]} is named for the second time")
            named[known] = file
            yield where, self._by_file[known], values
        if without := sorted(self._by_file.keys() - named.keys()):
            raise InputError(f"{place} has no line for {without[0]} ({len(without):,} images are not in it)")


def _is_count(fields: list[str]) -> bool:
    return len(fields) == 1 and whole_number(fields[0]) is not None


def _is_header(fields: list[str]) -> bool:
    return not any(map(is_image_name, fields)) and all(whole_number(field) is None for field in fields)


def _after_file(fields: list[str]) -> tuple[int, list[str]]:
    """Where the file's name stands in a table with this header, and the columns after it.

    The official headers name only the columns after it; others may have a row's number in front of it.
    """
    first = next((i for i, field in enumerate(fields) if meaning(field) == "file"), None)
    return (0, fields) if first is None else (first, fields[first + 1 :])
