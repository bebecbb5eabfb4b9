"""The manifest layout: images/, manifest.csv and, for landmarks, landmarks_68.npy or keypoints_18.npy.

Columns of manifest.csv:
file            name of the image (or file_source and file_target, where each row is a pair)
landmarks_row   row of the array that holds the image's landmarks
split           train, val, test or another name
frame, and video (with person) or identity   the images that share the latter are the frames of a clip
An image whose video, identity or frame is negative or empty is in no clip.
"""

import math

import numpy as np

from engine.data.landmarks import KEYPOINTS, POINTS
from engine.data.layouts.listing import Listing
from engine.data.layouts.sources import Source
from engine.data.layouts.tables import Rows, image_name, mark_missing, read_csv, read_points, split_name, table_prefix
from engine.errors import InputError

MANIFEST = "manifest.csv"
_ARRAYS = {"landmarks_68.npy": POINTS, "keypoints_18.npy": KEYPOINTS}
_SINGLE, _PAIR = ("file",), ("file_source", "file_target")


def list_manifest(source: Source, files: set[str], images: set[str]) -> Listing | None:
    """What the manifest lists; None where there is none, or none with a column of files. Raises InputError."""
    base = table_prefix(files, MANIFEST)
    if base is None:
        return None
    columns, rows = read_csv(source, base + MANIFEST)
    place = f"{source.root}: {base}{MANIFEST}"
    roles = next((roles for roles in (_SINGLE, _PAIR) if set(roles) <= set(columns)), None)
    if roles is None or not rows:
        return None
    rows = [(line, row) for line, row in rows if any(row[role] for role in roles)]
    listing = _names(rows, roles, base, images, place)
    _add_clips(listing, rows, roles, base, place)
    array = next((name for name in _ARRAYS if base + name in files), None)
    if array and any(row.get("landmarks_row") for _, row in rows):
        listing.points = _ARRAYS[array]
        _add_landmarks(listing, rows, roles, base, source, array)
    return listing


def _names(rows: Rows, roles: tuple[str, ...], base: str, images: set[str], place: str) -> Listing:
    """A Listing with the names, pairs, splits and missing files of the rows.

    roles: the columns that hold files. base: path in front of the manifest. place: of the manifest, for messages.
    """
    listing = Listing([], layout="manifest of pairs" if roles == _PAIR else "manifest")
    if roles == _PAIR:
        listing.pairs = []
    names: set[str] = set()
    for line, row in rows:
        present = []
        for role in roles:
            if not row[role]:
                raise InputError(f"{place} line {line}: {role} is empty: each row needs both files of a pair")
            name = image_name(row[role], base, images)
            if name is None:
                listing.missing.append((f"{base}images/{row[role]}", f"named in {MANIFEST} but not there"))
                continue
            if name in names and roles == _SINGLE:
                listing.missing.append((name, f"named twice in {MANIFEST}; the first row counts"))
                continue
            names.add(name)
            present.append(name)
            if split := split_name(row.get("split", "")):
                listing.splits.setdefault(name, split)
        if roles == _PAIR and len(present) == 2:
            listing.pairs.append((present[0], present[1]))
    listing.names = sorted(names)
    return listing


def _add_clips(listing: Listing, rows: Rows, roles: tuple[str, ...], base: str, place: str) -> None:
    """Add the clip and frame number of each image. A clip is named by its split, its person and its video."""
    names = set(listing.names)
    for line, row in rows:
        clip = row.get("video") or row.get("identity")
        frame = (row.get("frame") or "").strip()
        if roles != _SINGLE or not clip or not frame or _is_negative(clip):
            continue
        try:
            number = float(frame)
        except ValueError:
            number = math.nan
        if not number.is_integer():
            raise InputError(f"{place} line {line}: frame is {frame!r}; expected a whole number")
        name = image_name(row["file"], base, names)
        if name is not None and number >= 0:
            who = (split_name(row.get("split", "")), row.get("person", ""), clip.strip())
            listing.frames.setdefault(name, ("\0".join(who), int(number)))


def _is_negative(text: str) -> bool:
    try:
        return float(text) < 0
    except ValueError:
        return False


def _add_landmarks(
    listing: Listing, rows: Rows, roles: tuple[str, ...], base: str, source: Source, array_name: str
) -> None:
    """Add the landmarks of each image from the array; images whose points cannot be used are `unmarked`."""
    count, names = listing.points, set(listing.names)
    array = read_points(source, base + array_name, (2, count, 2) if roles == _PAIR else (count, 2))
    if count == KEYPOINTS:
        array = mark_missing(array)
    array = array.reshape(len(array), len(roles), count, 2)
    for line, row in rows:
        text = (row.get("landmarks_row") or "").strip()
        for role, points in enumerate(_row(array, text, source, base, line, array_name)):
            name = image_name(row[roles[role]], base, names)
            if name is None or name in listing.landmarks or name in listing.unmarked:
                continue
            usable = np.isfinite(points)
            if usable.all() or (count == KEYPOINTS and usable.any()):
                listing.landmarks[name] = points
            else:
                listing.unmarked[name] = (
                    "no key point is known" if count == KEYPOINTS else "its landmarks are not all finite numbers"
                )


def _row(array: np.ndarray, text: str, source: Source, base: str, line: int, array_name: str) -> np.ndarray:
    """(roles, points, 2), the points of the array's row that a manifest line names; (0, points, 2) where it names none.

    text: what the line has in landmarks_row. line: its number, for messages.
    """
    if text in ("", "-1"):
        return array[:0]
    if not text.isdecimal() or int(text) >= len(array):
        raise InputError(
            f"{source.root}: {base}{MANIFEST} line {line}: landmarks_row is {text!r}, but {array_name} has rows "
            f"0 to {len(array) - 1}"
        )
    return array[int(text)]
