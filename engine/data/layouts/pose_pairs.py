"""Layouts of image pairs with 18 key points: DeepFashion's as pose-transfer code uses it, and a plain pairs.csv.

DeepFashion: fasion-resize-pairs-{train,test}.csv (columns from, to), fasion-resize-annotation-{train,test}.csv (fields
name:keypoints_y:keypoints_x, each list in JSON, -1 = missing), and the images in train/ and test/. "fasion" is how the
data set spells it; "fashion" is read too.
Plain: pairs.csv (columns source and target, or from and to), and either keypoints_18.npy, which has (2, 18, 2) for each
row of pairs.csv, or keypoints_18.csv, which has the fields of DeepFashion's annotation files.
"""

import json
import re
from collections.abc import Callable, Iterator

import numpy as np

from engine.data.landmarks import KEYPOINTS
from engine.data.layouts.listing import Listing
from engine.data.layouts.sources import Source
from engine.data.layouts.tables import image_name, mark_missing, read_csv, read_points, read_text, table_prefix
from engine.errors import InputError

PAIRS = "pairs.csv"
_ARRAY, _ANNOTATION = "keypoints_18.npy", "keypoints_18.csv"
_FASHION = re.compile(r"(?P<base>(?:.*/)?)(?P<start>fash?ion-(?:resize-)?)pairs-(?P<split>train|val|test)\.csv")
_FIELDS = "name:keypoints_y:keypoints_x"
_ROLES = (("source", "target"), ("from", "to"))

Find = Callable[[str], "str | None"]


def list_fashion(source: Source, files: set[str], images: set[str]) -> Listing | None:
    """The images of train/, val/ and test/, paired; None where there is no such pairs file. Raises InputError."""
    tables = [match for name in sorted(files) if (match := _FASHION.fullmatch(name))]
    if not tables:
        return None
    listing = Listing([], layout="DeepFashion pairs", pairs=[])
    for match in tables:
        base, split = match["base"], match["split"]
        folder = f"{base}{split}/"
        listing.names += [name for name in images if name.startswith(folder)]
        listing.splits |= {name: split for name in images if name.startswith(folder)}

        def find(text: str, folder: str = folder) -> str | None:
            return folder + text if folder + text in images else None

        _add_pairs(listing, source, match.string, find, folder)
        annotation = f"{base}{match['start']}annotation-{split}.csv"
        if annotation in files:
            _add_annotation(listing, source, annotation, find)
    listing.names = sorted(set(listing.names))
    return listing


def add_plain_pairs(listing: Listing, source: Source, files: set[str]) -> None:
    """Add the pairs of pairs.csv, where there is one, and the key points that belong to it, to images listed already.

    Raises InputError.
    """
    base = table_prefix(files, PAIRS)
    if base is None:
        return
    names = set(listing.names)

    def find(text: str) -> str | None:
        return image_name(text, base, names)

    listing.pairs = []
    if listing.layout == "images":
        listing.layout = "pairs"
    rows = _add_pairs(listing, source, base + PAIRS, find, base)
    if listing.points:
        return
    if base + _ANNOTATION in files:
        _add_annotation(listing, source, base + _ANNOTATION, find)
    elif base + _ARRAY in files:
        array = mark_missing(read_points(source, base + _ARRAY, (2, KEYPOINTS, 2)))
        if len(array) != len(rows):
            raise InputError(f"{source.root}: {base}{_ARRAY} has {len(array)} rows, {PAIRS} has {len(rows)}: one each")
        listing.points = KEYPOINTS
        for pair, both in zip(rows, array, strict=True):
            for name, points in zip(pair, both, strict=True):
                _set_points(listing, name, points)


def _add_pairs(
    listing: Listing, source: Source, table: str, find: Find, folder: str
) -> list[tuple[str | None, str | None]]:
    """Add the pairs and the missing files of a table to the listing.

    find:    image name that the table means by a text, None for a file that is not there.
    folder:  path in front of the missing files' names.
    returns: the two image names of each row, None for a file that is not there.
    """
    place = f"{source.root}: {table}"
    columns, rows = read_csv(source, table)
    roles = next((roles for roles in _ROLES if set(roles) <= set(columns)), None)
    if roles is None:
        raise InputError(f"{place} has the columns {', '.join(columns)}; expected source and target, or from and to")
    named = []
    told = {name for name, _ in listing.missing}
    for line, row in rows:
        pair = []
        for role in roles:
            if not row[role]:
                raise InputError(f"{place} line {line}: {role} is empty: each row needs both files of a pair")
            pair.append(find(row[role]))
            absent = folder + row[role]
            if pair[-1] is None and absent not in told:
                told.add(absent)
                listing.missing.append((absent, f"named in {table} but not there"))
        named.append((pair[0], pair[1]))
    listing.pairs += [(first, second) for first, second in named if first and second]
    return named


def _add_annotation(listing: Listing, source: Source, table: str, find: Find) -> None:
    """Add the key points of an annotation file, for the images that `find` knows."""
    listing.points = KEYPOINTS
    for text, points in _annotation(source, table):
        _set_points(listing, find(text), points)


def _set_points(listing: Listing, name: str | None, points: np.ndarray) -> None:
    """Give an image its key points (18, 2), unless it has some already; an image with none known is `unmarked`."""
    if name is None or name in listing.landmarks or name in listing.unmarked:
        return
    if np.isfinite(points).any():
        listing.landmarks[name] = points
    else:
        listing.unmarked[name] = "no key point is known"


def _annotation(source: Source, table: str) -> Iterator[tuple[str, np.ndarray]]:
    """Of each line of an annotation file: the name, and (18, 2) float32 x and y in pixels, NaN for a missing point."""
    place = f"{source.root}: {table}"
    lines = read_text(source, table).splitlines()
    if not lines or lines[0].strip() != _FIELDS:
        raise InputError(f"{place} line 1 is {lines[0][:60] if lines else ''!r}; expected {_FIELDS}")
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        where = f"{place} line {number}"
        name, *lists = line.split(":")
        try:
            y, x = (np.array(json.loads(text), np.float32) for text in lists)
        except (ValueError, TypeError) as error:
            raise InputError(f"{where} is not {_FIELDS} with two lists of numbers: {line[:60]!r}") from error
        if x.shape != (KEYPOINTS,) or y.shape != (KEYPOINTS,):
            raise InputError(f"{where}: {y.size} and {x.size} coordinates; expected {KEYPOINTS} each")
        yield name.strip(), mark_missing(np.stack([x, y], axis=1))
