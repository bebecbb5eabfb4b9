"""CSV files, arrays and image names as the layouts' tables hold them. Errors name the file and the line."""

import csv
import io
import math
from collections.abc import Collection

import numpy as np

from engine.data.layouts.sources import Source, UnreadableFile
from engine.errors import InputError

MAX_TABLE_BYTES = 1 << 27  # of a table or a text, which takes many times as much memory when it is read
MAX_ARRAY_BYTES = 1 << 32
Rows = list[tuple[int, dict[str, str]]]
_MISSING = -1  # a coordinate of a missing point, in key point files
_SPLITS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


def read_text(source: Source, name: str) -> str:
    """The file as UTF-8 text. Raises InputError."""
    try:
        return source.read(name, MAX_TABLE_BYTES).decode("utf-8-sig")
    except (UnreadableFile, UnicodeDecodeError) as error:
        raise InputError(f"{source.root}: {name} cannot be read ({error}): save it as UTF-8, or remove it") from error


def read_csv(source: Source, name: str) -> tuple[list[str], Rows]:
    """Columns, and (line number, row) of each row; a field that a row lacks is "". Raises InputError."""
    reader = csv.DictReader(io.StringIO(read_text(source, name), newline=""), restval="")
    try:
        columns = list(reader.fieldnames or [])
        return columns, [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise InputError(f"{source.root}: {name} line {reader.line_num} is not CSV ({error})") from error


def table_prefix(files: Collection[str], table: str) -> str | None:
    """The path in front of a table: "" in the root, "TOP/" in the only top-level folder; None where it is in neither.

    The only top-level folder counts, because a zipped folder has its own name in front of every file.
    """
    if table in files:
        return ""
    tops = {name.split("/", 1)[0] for name in files}
    if len(tops) == 1 and f"{(top := tops.pop())}/{table}" in files:
        return top + "/"
    return None


def read_points(source: Source, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array in a .npy file, (N, *shape) float32. Raises InputError."""
    place = f"{source.root}: {name}"
    try:
        array = parse_array(source.read(name, MAX_ARRAY_BYTES))
    except (UnreadableFile, ValueError) as error:
        raise InputError(f"{place} is not a readable .npy array ({error})") from error
    if array.shape[1:] != shape or array.dtype.kind not in "fiu":
        expected = ", ".join(["N", *map(str, shape)])
        raise InputError(f"{place} holds {array.dtype} {array.shape}; expected floats of shape ({expected})")
    return array.astype(np.float32)


def parse_array(content: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file. Raises ValueError, also where the header tells of more than there is."""
    form, file = np.lib.format, io.BytesIO(content)
    try:
        version = form.read_magic(file)
        shape, _, dtype = (form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0)(file)
        # numpy would take memory for all that the header tells of before it reads on
        if math.prod(shape) * dtype.itemsize > (there := len(content) - file.tell()):
            raise ValueError(f"its header tells of {dtype} {shape}, but only {there:,} bytes follow")
        return np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a parser that meets arbitrary bytes may raise anything
        raise ValueError(str(error)) from error


def mark_missing(keypoints: np.ndarray) -> np.ndarray:
    """keypoints: (..., 2) float32 -> the same, with NaN, NaN for each point that has -1, NaN or infinity in it."""
    missing = ((keypoints == _MISSING) | ~np.isfinite(keypoints)).any(axis=-1, keepdims=True)
    return np.where(missing, np.float32(np.nan), keypoints)


def split_name(text: str) -> str:
    """The split that a table's `text` means: "train", "val" or "test" for their usual spellings, else `text` itself.

    In lower case, without spaces around it.
    """
    text = text.strip().lower()
    return _SPLITS.get(text, text)


def image_name(text: str, base: str, images: Collection[str]) -> str | None:
    """The image that a table in `base` means by `text`: in images/ or beside the table; None when it is in neither."""
    for name in (f"{base}images/{text}", f"{base}{text}"):
        if name in images:
            return name
    return None
