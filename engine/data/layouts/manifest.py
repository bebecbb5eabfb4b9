"""The manifest layout: images/, manifest.csv and, for landmarks, landmarks_68.npy or keypoints_18.npy.

Columns of manifest.csv (tables.COLUMNS has their other names):
file            name of the image (or file_source and file_target, where each row is a pair)
landmarks_row   row of the array that holds the image's landmarks
split           train, val, test or another name
frame, and video (with person) or identity   the images that share the latter are the frames of a clip
person, else identity   the person that the image shows
An image whose video, identity or frame is negative or empty is in no clip.
"""

import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from engine.data.landmarks import KEYPOINTS, POINTS
from engine.data.layouts.listing import Listing
from engine.data.layouts.names import FileFinder
from engine.data.layouts.sources import Source
from engine.data.layouts.tables import (
    Table,
    find_table,
    mark_missing,
    read_points,
    read_table,
    split_name,
    whole_number,
)
from engine.errors import InputError

MANIFEST = "manifest.csv"
_ARRAYS = {"landmarks_68.npy": POINTS, "keypoints_18.npy": KEYPOINTS}
_EXPECTED = "file (or file_source and file_target): rename the columns, or the table if it belongs to another program"
_SINGLE, _PAIR = ("file",), ("source", "target")


@dataclass(frozen=True)
class _Row:
    """A row of the manifest.

    where:  table and line, for messages.
    fields: what a column is -> its text.
    names:  the image of each role; None where the file is not there.
    """

    where: str
    fields: dict[str, str]
    names: tuple[str | None, ...]


def list_manifest(source: Source, files: set[str], images: set[str]) -> Listing | None:
    """What the manifest lists; None where there is none. Raises InputError, also for one that names no file."""
    there = find_table(files, MANIFEST)
    if there is None:
        return None
    base, name = there
    table = read_table(source, name, (_SINGLE, _PAIR), _EXPECTED)
    roles = _SINGLE if table.titles.get("file", "").strip().casefold() == "file" else _PAIR
    if not table.has(*roles):
        roles = _SINGLE
    find = FileFinder(source, images, (f"{base}images/", base, ""))
    rows = [_resolved(table, line, fields, roles, find) for line, fields in table.rows]
    if not rows:
        raise InputError(f"{table.place} names no file: add the rows, or remove the table")
    listing = Listing([], layout="manifest of pairs" if roles == _PAIR else "manifest", tables={name})
    _add_names(listing, rows, roles, f"{base}images/", name)
    if roles == _SINGLE:
        _add_clips(listing, rows)
        _add_people(listing, rows)
    if any(_names_landmarks(row) for row in rows):
        _add_landmarks(listing, rows, source, _array_of(table, base, files))
    return listing


def _resolved(table: Table, line: int, fields: dict[str, str], roles: tuple[str, ...], find: FileFinder) -> _Row:
    """A row with the images that it names. Raises InputError where a role is empty."""
    where = table.where(line)
    for role in roles:
        if not fields[role]:
            whole = ": each row needs both files of a pair" if roles == _PAIR else ", but the row has other fields"
            raise InputError(f"{where}: {table.titles[role]} is empty{whole}")
    return _Row(where, fields, tuple(find(fields[role], where) for role in roles))


def _add_names(listing: Listing, rows: list[_Row], roles: tuple[str, ...], folder: str, table: str) -> None:
    """Add the names, pairs, splits and missing files of the rows.

    roles: the columns that hold files. folder: in front of the names of missing files. table: for messages.
    """
    if roles == _PAIR:
        listing.pairs = []
    names: set[str] = set()
    for row in rows:
        for role, name in zip(roles, row.names, strict=True):
            if name is None:
                listing.missing.append((folder + row.fields[role], f"named in {table} but not there"))
            elif name in names and roles == _SINGLE:
                listing.missing.append((name, f"named twice in {table}; the first row counts"))
            else:
                names.add(name)
                if split := split_name(row.fields.get("split", "")):
                    listing.splits.setdefault(name, split)
        if roles == _PAIR and None not in row.names:
            listing.pairs.append((row.names[0], row.names[1]))
    listing.names = sorted(names)


def _add_clips(listing: Listing, rows: list[_Row]) -> None:
    """Add the clip and frame number of each image. A clip is named by its split, its person and its video.

    Raises InputError for a frame that is no whole number, and for two images of one frame.
    """
    taken: dict[tuple[str, int], str] = {}
    for row in rows:
        fields, name = row.fields, row.names[0]
        clip, person = _label(fields.get("video") or fields.get("identity", "")), _label(fields.get("person", ""))
        clip, person = (clip, person) if clip else (person, "")
        frame = fields.get("frame", "")
        if not clip or not frame or _is_negative(clip):
            continue
        number = whole_number(frame)
        if number is None:
            raise InputError(f"{row.where}: frame is {frame[:40]!r}; expected a whole number")
        if name is None or number < 0 or name in listing.frames:
            continue
        key = ("\0".join((split_name(fields.get("split", "")), person, clip)), number)
        other = taken.setdefault(key, name)
        if other != name:
            raise InputError(
                f"{row.where}: {name} and {other} are both frame {number} of {clip[:100]}: number them apart"
            )
        listing.frames[name] = key


def _add_people(listing: Listing, rows: list[_Row]) -> None:
    """Add the number of the person that each image shows: the column person, else identity."""
    numbers: dict[str, int] = {}
    for row in rows:
        person = _label(row.fields.get("person") or row.fields.get("identity", ""))
        if person and not _is_negative(person) and row.names[0] is not None:
            listing.identities.setdefault(row.names[0], numbers.setdefault(person, len(numbers)))


def _label(text: str) -> str:
    """The name of a clip or a person; 3.0, as pandas writes a number, is 3."""
    number = re.fullmatch(r"(-?[0-9]+)\.0+", text)
    return number[1] if number else text


def _is_negative(text: str) -> bool:
    try:
        return float(text) < 0
    except ValueError:
        return False


def _names_landmarks(row: _Row) -> bool:
    return row.fields.get("landmarks_row", "") != "" and whole_number(row.fields["landmarks_row"]) != -1


def _array_of(table: Table, base: str, files: set[str]) -> str:
    """The array beside the manifest. Raises InputError where there is none."""
    any_case = {name.casefold(): name for name in sorted(files)}
    for name in (base + array for array in _ARRAYS):
        if name in files or name.casefold() in any_case:
            return name if name in files else any_case[name.casefold()]
    others = [name for name in sorted(files) if name.startswith(base) and name.endswith((".npy", ".npz"))]
    there = f" (there is {', '.join(others[:3])})" if others else ""
    title = table.titles["landmarks_row"]
    raise InputError(f"{table.place} has the column {title}, but {' or '.join(_ARRAYS)} is not beside it{there}")


def _add_landmarks(listing: Listing, rows: list[_Row], source: Source, name: str) -> None:
    """Add the landmarks of each image from the array; images whose points cannot be used are `unmarked`."""
    file = name.rsplit("/", 1)[-1]
    count, roles = _ARRAYS[file.casefold()], len(rows[0].names)
    array = read_points(source, name, (2, count, 2) if roles == 2 else (count, 2))
    listing.points = count
    listing.tables.add(name)
    if count == KEYPOINTS:
        array = mark_missing(array)
    array = array.reshape(len(array), roles, count, 2)
    named: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        if not _names_landmarks(row):
            continue
        number = _row_number(row, len(array), file)
        named[number].append(row.fields["file" if roles == 1 else "source"])
        for image, points in zip(row.names, array[number], strict=True):
            if image is None or image in listing.landmarks or image in listing.unmarked:
                continue
            usable = np.isfinite(points)
            if usable.all() or (count == KEYPOINTS and usable.any()):
                listing.landmarks[image] = points
            else:
                listing.unmarked[image] = (
                    "no key point is known" if count == KEYPOINTS else "its landmarks are not all finite numbers"
                )
    _remark_on_rows(listing, named, len(array), file)


def _remark_on_rows(listing: Listing, named: dict[int, list[str]], count: int, array: str) -> None:
    """Remark on rows of the array that several images name, and on rows that none names.

    named: row of the array -> the files that name it. count: how many rows the array has.
    """
    shared = {row: files for row, files in named.items() if len(set(files)) > 1}
    for row, files in list(shared.items())[:1]:
        both = f"{files[0][:100]} and {files[1][:100]}"
        listing.remarks.append(f"{len(shared):,} rows of {array} are named more than once: row {row} by {both}")
    if len(named) < count:
        listing.remarks.append(f"{array} has {count:,} rows, of which {MANIFEST} names {len(named):,}")


def _row_number(row: _Row, count: int, array: str) -> int:
    """The row of the array, which has `count` rows, that a manifest's row names. Raises InputError."""
    text = row.fields["landmarks_row"]
    number = whole_number(text)
    if number is None or not 0 <= number < count:
        rows = f"has rows 0 to {count - 1}" if count else "has no rows"
        raise InputError(f"{row.where}: landmarks_row is {text[:40]!r}, but {array} {rows}")
    return number
