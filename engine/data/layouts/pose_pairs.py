"""Layouts of image pairs with 18 key points: DeepFashion's as pose-transfer code uses it, and a plain pairs.csv.

DeepFashion: fasion-resize-pairs-{train,test}.csv (columns from, to), fasion-resize-annotation-{train,test}.csv (fields
name:keypoints_y:keypoints_x, each list in JSON, -1 = missing), and the images in train/ and test/. "fasion" is how the
data set spells it; "fashion" is read too.
Plain: pairs.csv (columns source and target, or from and to), and either keypoints_18.npy, which has (2, 18, 2) for each
row of pairs.csv, or keypoints_18.csv, which has the fields of DeepFashion's annotation files.
The tables may be in any dialect that `tables` reads.
"""

import json
import re

import numpy as np

from engine.data.landmarks import KEYPOINTS
from engine.data.layouts.listing import Listing
from engine.data.layouts.names import FileFinder
from engine.data.layouts.sources import Source
from engine.data.layouts.tables import find_table, mark_missing, read_points, read_table
from engine.errors import InputError

PAIRS = "pairs.csv"
_ARRAY, _ANNOTATION = "keypoints_18.npy", "keypoints_18.csv"
_FASHION = re.compile(
    r"(?P<base>(?:.*/)?)(?P<start>fash?ion-(?:resize-)?)pairs-(?P<split>train|val|test)(?P<suffix>\.[ct]sv)",
    re.IGNORECASE,
)
_FIELDS = "name:keypoints_y:keypoints_x"


def list_fashion(source: Source, files: set[str], images: set[str]) -> Listing | None:
    """The images of train/, val/ and test/, paired; None where there is no such pairs file. Raises InputError."""
    tables = [match for name in sorted(files) if (match := _FASHION.fullmatch(name))]
    if not tables:
        return None
    listing = Listing([], layout="DeepFashion pairs", pairs=[])
    any_case = {name.casefold(): name for name in sorted(files)}
    for match in tables:
        base, split = match["base"], match["split"].lower()
        folder = f"{base}{split}/"
        names = [name for name in images if name.casefold().startswith(folder.casefold())]
        listing.names += names
        listing.splits |= dict.fromkeys(names, split)
        find = FileFinder(source, names, (folder, base, ""))
        _add_pairs(listing, source, match.string, find, folder)
        annotation = f"{base}{match['start']}annotation-{match['split']}{match['suffix']}".casefold()
        if annotation in any_case:
            _add_annotation(listing, source, any_case[annotation], find)
    listing.names = sorted(set(listing.names))
    return listing


def add_plain_pairs(listing: Listing, source: Source, files: set[str]) -> None:
    """Add the pairs of pairs.csv, where there is one, and the key points that belong to it, to images listed already.

    Raises InputError.
    """
    there = find_table(files, PAIRS)
    if there is None:
        return
    base, table = there
    find = FileFinder(source, listing.names, (f"{base}images/", base, ""))
    listing.pairs = []
    if listing.layout == "images":
        listing.layout = "pairs"
    rows = _add_pairs(listing, source, table, find, base)
    if listing.points:
        return
    annotation, array = find_table(files, _ANNOTATION), base + _ARRAY
    if annotation is not None:
        _add_annotation(listing, source, annotation[1], find)
    elif array in files:
        listing.tables.add(array)
        points = mark_missing(read_points(source, array, (2, KEYPOINTS, 2)))
        if len(points) != len(rows):
            raise InputError(f"{source.root}: {array} has {len(points)} rows, {table} has {len(rows)}: one each")
        listing.points = KEYPOINTS
        for pair, both in zip(rows, points, strict=True):
            for name, keypoints in zip(pair, both, strict=True):
                _set_points(listing, name, keypoints)


def _add_pairs(
    listing: Listing, source: Source, name: str, find: FileFinder, folder: str
) -> list[tuple[str | None, str | None]]:
    """Add the pairs and the missing files of a table to the listing.

    folder:  path in front of the missing files' names.
    returns: the two image names of each row, None for a file that is not there.
    """
    table = read_table(source, name, [("source", "target")], "source and target, or from and to")
    listing.tables.add(name)
    named = []
    told = {name for name, _ in listing.missing}
    for line, row in table.rows:
        pair = []
        for role in ("source", "target"):
            if not row[role]:
                title = table.titles[role]
                raise InputError(f"{table.where(line)}: {title} is empty: each row needs both files of a pair")
            pair.append(find(row[role], table.where(line)))
            absent = folder + row[role]
            if pair[-1] is None and absent not in told:
                told.add(absent)
                listing.missing.append((absent, f"named in {name} but not there"))
        named.append((pair[0], pair[1]))
    listing.pairs += [(first, second) for first, second in named if first and second]
    return named


def _add_annotation(listing: Listing, source: Source, name: str, find: FileFinder) -> None:
    """Add the key points of an annotation file, for the images that `find` knows. Raises InputError."""
    table = read_table(source, name, [("file", "keypoints_y", "keypoints_x")], _FIELDS)
    listing.tables.add(name)
    listing.points = KEYPOINTS
    named: dict[str, int] = {}
    for line, row in table.rows:
        where = table.where(line)
        points = _keypoints(row, where)
        image = find(row["file"], where)
        if image is not None and (first := named.setdefault(image, line)) != line:
            raise InputError(f"{where}: {row['file'][:100]} is named for the second time, after line {first}")
        _set_points(listing, image, points)


def _set_points(listing: Listing, name: str | None, points: np.ndarray) -> None:
    """Give an image its key points (18, 2), unless it has some already; an image with none known is `unmarked`."""
    if name is None or name in listing.landmarks or name in listing.unmarked:
        return
    if np.isfinite(points).any():
        listing.landmarks[name] = points
    else:
        listing.unmarked[name] = "no key point is known"


def _keypoints(row: dict[str, str], where: str) -> np.ndarray:
    """(18, 2) float32 x and y in pixels of an annotation's row, NaN for a missing point. Raises InputError."""
    y, x = (_numbers(row[column]) for column in ("keypoints_y", "keypoints_x"))
    if y is None or x is None:
        line = ":".join(row[column] for column in ("file", "keypoints_y", "keypoints_x"))
        raise InputError(f"{where} is not {_FIELDS} with two lists of numbers: {line[:60]!r}")
    if len(x) != KEYPOINTS or len(y) != KEYPOINTS:
        raise InputError(f"{where}: {len(y)} and {len(x)} coordinates; expected {KEYPOINTS} each")
    with np.errstate(over="ignore"):  # a number beyond float32 is infinite, a missing point
        return mark_missing(np.array([x, y]).T.astype(np.float32))


def _numbers(text: str) -> list[float] | None:
    """The numbers in a JSON list; None for any other text."""
    try:
        values = json.loads(text)
        return [float(value) for value in values] if isinstance(values, list) else None
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
