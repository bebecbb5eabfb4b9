"""The manifest layout: images/, manifest.csv (columns file and landmarks_row) and landmarks_68.npy."""

import csv
import io
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from engine.data.landmarks import POINTS
from engine.data.sources import Source, UnreadableFile, is_image_name
from engine.errors import InputError

_MANIFEST = "manifest.csv"
_LANDMARKS = "landmarks_68.npy"


@dataclass
class Listing:
    """What a source offers. names: sorted image names; landmarks: name -> (68, 2) float32; missing: (name, reason)."""

    names: list[str]
    landmarks: dict[str, np.ndarray] = field(default_factory=dict)
    missing: list[tuple[str, str]] = field(default_factory=list)
    ignored: int = 0
    nested: list[str] = field(default_factory=list)


def list_images(source: Source) -> Listing:
    """The manifest's images where there is a manifest.csv with a column `file`, else every image below the root.

    Raises InputError for a manifest or a landmark file that cannot be understood.
    """
    files = source.files()
    images = [name for name in files if is_image_name(name)]
    nested = sorted(name[: -len(_MANIFEST) - 1] for name in files if name.endswith("/" + _MANIFEST))
    base = _base(files)
    rows = _read_rows(source, base) if base is not None else None
    if rows is None:
        return Listing(images, ignored=len(files) - len(images), nested=nested)
    listing = _from_rows(rows, base, set(images))
    listing.ignored = len(files) - len(listing.names)
    if any(row.get("landmarks_row", "") for row in rows) and base + _LANDMARKS in files:
        listing.landmarks = _match_landmarks(rows, base, _read_landmarks(source, base), set(listing.names))
    return listing


def _base(files: Collection[str]) -> str | None:
    """The prefix of the manifest: the root, or the one top-level folder (a zipped folder has its name in front)."""
    if _MANIFEST in files:
        return ""
    tops = {name.split("/", 1)[0] for name in files}
    if len(tops) == 1 and f"{next(iter(tops))}/{_MANIFEST}" in files:
        return next(iter(tops)) + "/"
    return None


def _read_rows(source: Source, base: str) -> list[dict[str, str]] | None:
    place = f"{source.root}: {base}{_MANIFEST}"
    try:
        text = source.read(base + _MANIFEST).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except (UnreadableFile, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{place} cannot be read ({error}): save it as UTF-8 CSV, or remove it") from error
    if not rows or "file" not in rows[0]:
        return None
    return [row for row in rows if row["file"]]


def _from_rows(rows: list[dict[str, str]], base: str, images: set[str]) -> Listing:
    names: set[str] = set()
    missing = []
    for row in rows:
        name = _image_name(row, base, images)
        if name is None:
            missing.append((f"{base}images/{row['file']}", f"named in {_MANIFEST} but not there"))
        elif name in names:
            missing.append((name, f"named twice in {_MANIFEST}; the first row counts"))
        else:
            names.add(name)
    return Listing(sorted(names), missing=missing)


def _image_name(row: dict[str, str], base: str, images: Collection[str]) -> str | None:
    for name in (f"{base}images/{row['file']}", f"{base}{row['file']}"):
        if name in images:
            return name
    return None


def _read_landmarks(source: Source, base: str) -> np.ndarray:
    place = f"{source.root}: {base}{_LANDMARKS}"
    try:
        array = np.load(io.BytesIO(source.read(base + _LANDMARKS)), allow_pickle=False)
    except (UnreadableFile, ValueError, EOFError, OSError) as error:
        raise InputError(f"{place} is not a readable .npy array ({error})") from error
    if array.ndim != 3 or array.shape[1:] != (POINTS, 2) or array.dtype.kind not in "fiu":
        raise InputError(f"{place} holds {array.dtype} {array.shape}; expected floats of shape (N, {POINTS}, 2)")
    return array.astype(np.float32)


def _match_landmarks(
    rows: list[dict[str, str]], base: str, array: np.ndarray, names: set[str]
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for line, row in enumerate(rows, start=2):
        name, text = _image_name(row, base, names), (row.get("landmarks_row") or "").strip()
        if name is None or name in found or text in ("", "-1"):
            continue
        if not text.isdecimal() or int(text) >= len(array):
            rows_there = f"{_LANDMARKS} has rows 0 to {len(array) - 1}"
            raise InputError(f"{base}{_MANIFEST} line {line}: landmarks_row is {text!r}, but {rows_there}")
        points = array[int(text)]
        if np.isfinite(points).all():
            found[name] = points
    return found
