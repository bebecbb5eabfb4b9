"""Tables and arrays in the dialects that people save them in. Errors name the file and the line.

A table's text is UTF-8, or UTF-16 with its mark. Commas, semicolons, tabs, bars, colons or blanks separate its fields:
the header decides. Capitals, blanks and underscores in column names do not count; each column has several names
(COLUMNS).
"""

import codecs
import csv
import io
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

import numpy as np

from engine.data.layouts.sources import Source
from engine.errors import InputError
from engine.host.input_files import UnreadableFile

COLUMNS = {
    "file": "file filename filepath image imagename imagefile imagefilename imagepath imageid img imgname imgfile "
    "imgpath imgid path picture photo name",
    "source": "source filesource sourcefile sourceimage imagesource sourcepath from fromfile filefrom src",
    "target": "target filetarget targetfile targetimage imagetarget targetpath to tofile fileto tgt dst",
    "landmarks_row": "landmarksrow landmarkrow row rowindex rowid landmarksindex landmarkindex landmarksid landmarkid",
    "split": "split set partition subset",
    "frame": "frame framenumber frameid frameindex frameno framenum",
    "video": "video videoid videoname clip clipid clipname",
    "identity": "identity identityid id personid subject subjectid",
    "person": "person personname",
    "keypoints_y": "keypointsy",
    "keypoints_x": "keypointsx",
}
"""What a column is -> its names, without capitals, blanks and underscores; the first that a table has counts."""
_COLUMNS = {what: names.split() for what, names in COLUMNS.items()}
_MEANING = {name: what for what, names in _COLUMNS.items() for name in names}

_SEPARATORS = (",", ";", "\t", "|", ":")
_BLANKS = " "  # any number of blanks and tabs between two fields
_SUFFIXES = (".csv", ".tsv", ".csv.txt")
_UNKNOWN = frozenset({
    "#N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "NAN", "NaN", "NaT", "None", "n/a", "nan", "none", "null", "-nan",
    "-NaN", "1.#IND", "1.#QNAN", "-1.#IND", "-1.#QNAN",
})  # fmt: skip
"""What programs write into an empty field."""
MAX_TABLE_BYTES = 1 << 27  # of a table or a text, which takes many times as much memory when it is read
MAX_ARRAY_BYTES = 1 << 32
_MISSING = -1  # a coordinate of a missing point, in key point files
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*|,0{1,2})?(?:[eE][+-]?[0-9]{1,4})?")
_WRAPPED = re.compile(r'\s*"(?:[^"]|"")*"[,;\t ]*')
_MOST_DIGITS = 18  # of a whole number: it stays below 2^63
_SPLITS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}

Rows = list[tuple[int, dict[str, str]]]


@dataclass(frozen=True)
class Table:
    """A table with a header.

    place:   set and name, for messages.
    titles:  what a column is (a key of COLUMNS) -> how the header calls it.
    rows:    (line number, what a column is -> the field) of each row that is not empty; "" for an empty field.
    """

    place: str
    titles: dict[str, str]
    rows: Rows

    def has(self, *columns: str) -> bool:
        """Whether the table has all these columns."""
        return all(column in self.titles for column in columns)

    def where(self, line: int) -> str:
        """Set, table and line, for messages."""
        return f"{self.place} line {line}"


def meaning(title: str) -> str:
    """What the column of that title is, a key of COLUMNS; "" for a column that no layout knows."""
    return _MEANING.get(_squeezed(title), "")


def find_table(files: Collection[str], table: str) -> tuple[str, str] | None:
    """The path in front of a table and the table's name; None where there is none.

    table: such as "manifest.csv"; with other capitals, as .tsv or as .csv.txt it counts too.
    The path is "" in the root and "TOP/" in the only top-level folder, which counts because a zipped folder has its own
    name in front of every file.
    """
    wanted = _table_names(table)
    tops = {name.split("/", 1)[0] for name in files}
    for base in ("", *(f"{top}/" for top in tops if len(tops) == 1)):
        beside = [name for name in files if name.startswith(base) and "/" not in name[len(base) :]]
        for match in (str, str.casefold):
            for name in wanted:
                if there := sorted(file for file in beside if match(file[len(base) :]) == name):
                    return base, there[0]
    return None


def is_table_name(name: str, table: str) -> bool:
    """Whether a file, in whatever folder, has the name of a table, as `find_table` knows it."""
    return name.rsplit("/", 1)[-1].casefold() in _table_names(table)


def read_text(source: Source, name: str) -> str:
    """The file as text. Raises InputError."""
    try:
        data = source.read(name, MAX_TABLE_BYTES)
    except UnreadableFile as error:
        raise InputError(f"{source.root}: {name} cannot be used ({error}): replace it, or remove it") from error
    return as_text(data, f"{source.root}: {name}")


def as_text(data: bytes, place: str) -> str:
    """The text in a file's bytes: UTF-8, or UTF-16 that begins with its mark, as Excel saves it. Raises InputError."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place} cannot be read ({error}): save it as UTF-8, or remove it") from error
    if "\0" in text:
        raise InputError(f"{place} cannot be read (it holds zero bytes): save it as UTF-8, or remove it")
    return text


def read_table(source: Source, name: str, needed: Collection[tuple[str, ...]], expected: str) -> Table:
    """The table with a header in a file.

    needed:   columns (keys of COLUMNS) that the table must have, of one alternative at least.
    expected: the same, for messages.
    Raises InputError where it is no table, has other columns, or has a row of more fields than columns.
    """
    place = f"{source.root}: {name}"
    text, skipped, separator = _without_separator_line(read_text(source, name))
    text = _unwrapped(text)
    header = next((line for line in text.splitlines() if _squeezed(line)), "")
    separator = separator or _separator_of(header)
    (_, columns), *lines = list(_fields(text, separator, place, skipped)) or [(1, [])]
    columns = [" ".join(column.split()) for column in columns]
    titles = _titles(columns, place)
    there = ", ".join(columns)[:200]
    if not any(all(column in titles for column in columns) for columns in needed):
        has = f"has the columns {there}" if columns else "has no line of column names"
        raise InputError(f"{place} {has}; expected {expected}")
    rows = []
    for line, fields in lines:
        if len(fields) > len(columns):
            raise InputError(f"{place} line {line} has {len(fields)} fields, the header {len(columns)}: {there}")
        by_title = dict(zip(columns, fields, strict=False))
        row = {what: _known(by_title.get(title, "")) for what, title in titles.items()}
        _check_one_line(row.values(), place, line)
        rows.append((line, row))
    return Table(place, titles, rows)


def read_lines(source: Source, name: str) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line of a table that may have no header. Raises InputError.

    The last line decides what separates the fields: the first ones may be a header, or the number of rows.
    """
    text, skipped, separator = _without_separator_line(read_text(source, name))
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    separator = separator or next((one for one in (";", "\t", ",", "|") if one in last), _BLANKS)
    place = f"{source.root}: {name}"
    for line, fields in _fields(text, separator, place, skipped):
        _check_one_line(fields, place, line)
        yield line, fields


@lru_cache(maxsize=1 << 12)  # tables repeat the same few numbers by the million
def whole_number(text: str) -> int | None:
    """The whole number that a field holds, also as 2.0 (pandas), 2,0 (with a decimal comma) or 2e3, else None."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    number = Decimal(text.replace(",", "."))
    if number and (number.adjusted() >= _MOST_DIGITS or number != number.to_integral_value()):
        return None
    return int(number)


def read_points(source: Source, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array in a .npy file, (N, *shape) float32; (N, ..., 2, K) is read as (N, ..., K, 2). Raises InputError."""
    place = f"{source.root}: {name}"
    try:
        data = source.read(name, MAX_ARRAY_BYTES)
    except UnreadableFile as error:
        raise InputError(f"{place} is not a readable .npy array ({error})") from error
    array = parse_array(data, place)
    if array.shape[1:] == (*shape[:-2], *shape[:-3:-1]):
        array = array.swapaxes(-1, -2)
    if array.shape[1:] != shape:
        expected = ", ".join(["N", *map(str, shape)])
        raise InputError(f"{place} holds {array.dtype} {array.shape}; expected floats of shape ({expected})")
    return array


def parse_array(data: bytes, place: str) -> np.ndarray:
    """The array in the bytes of a .npy file, of any shape, float32; numbers out of its range are infinite.

    Raises InputError for anything but real numbers. Pickled objects are never loaded.
    """
    if data.startswith(b"PK"):
        raise InputError(f"{place} is a .npz archive; expected one array, as numpy.save writes it")
    try:
        _require_whole(data)
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a parser that meets arbitrary bytes may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        if "allow_pickle" in reason or "pickled" in reason:
            reason = "it holds pickled objects, which are never loaded: save numbers, array.astype('float32')"
        raise InputError(f"{place} is not a readable .npy array ({reason})") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{place} holds {array.dtype} {array.shape}; expected floats")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(array, np.float32)


def _require_whole(data: bytes) -> None:
    """Raise ValueError where the header of a .npy file tells of more than follows: numpy would take memory for all."""
    form, file = np.lib.format, io.BytesIO(data)
    if not data.startswith(form.MAGIC_PREFIX) or (version := form.read_magic(file)) > (3, 0):
        return  # numpy says what that is
    shape, _, dtype = (form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0)(file)
    there = len(data) - file.tell()
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > there:
        raise ValueError(f"its header tells of {dtype} {shape}, but only {there:,} bytes follow")


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


def _table_names(table: str) -> list[str]:
    return [table.rsplit(".", 1)[0] + suffix for suffix in _SUFFIXES]


def _squeezed(title: str) -> str:
    """A column's name without capitals, blanks, underscores and other signs."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", title).casefold()))


def _known(field: str) -> str:
    return "" if field in _UNKNOWN else field


def _titles(columns: list[str], place: str) -> dict[str, str]:
    """What a column is -> its title, of the columns that are known. Raises InputError for two columns of one title."""
    titles = {}
    squeezed = [_squeezed(column) for column in columns]
    for what, names in _COLUMNS.items():
        name = next((name for name in names if name in squeezed), None)
        if name is None:
            continue
        titles[what] = columns[squeezed.index(name)]
        if squeezed.count(name) > 1:
            raise InputError(f"{place} has two columns {titles[what][:100]}; its columns: {', '.join(columns)[:200]}")
    return titles


def _check_one_line(fields: Iterable[str], place: str, line: int) -> None:
    """Raise InputError for a field that goes on in the next line, as after a quote that nothing closes."""
    text = "".join(fields)
    if "\n" in text or "\r" in text:
        raise InputError(f"{place} line {line}: a field in quotes goes over the line's end: close its quotes")


def _separator_of(header: str) -> str:
    """What separates a header's fields: the one that gives the most known columns, then the most columns.

    Blanks stand in the names of columns too, so they separate only a header that has no other separator.
    """
    there = [separator for separator in _SEPARATORS if separator in header]

    def fit(separator: str) -> tuple[int, bool, int]:
        try:
            _, columns = next(_fields(header, separator, ""))
        except (InputError, StopIteration):
            return 0, False, 0
        return len({meaning(column) for column in columns} - {""}), separator != _BLANKS, len(columns)

    return max(there or (",", _BLANKS), key=fit)


def _without_separator_line(text: str) -> tuple[str, int, str]:
    """A text without the line `sep=;` that Excel reads, how many lines those are, and the separator or ""."""
    match = re.match(r"\s*\"?sep=(?P<separator>\t|[^\s\w\"'])\"?[,;\t ]*(?:\r\n|\r|\n|$)", text, re.IGNORECASE)
    if match is None:
        return text, 0, ""
    return text[match.end() :], len(match.group().splitlines()), match["separator"]


def _unwrapped(text: str) -> str:
    """A text without the quotes around whole lines, which programs add that take a line for one field."""
    lines = text.splitlines()
    if not all(_WRAPPED.fullmatch(line) for line in lines if line.strip()):
        return text
    bare = [line.strip(" ,;\t")[1:-1].replace('""', '"') for line in lines]
    header = next((line for line in bare if line), "")
    return "\n".join(bare) if any(separator in header for separator in _SEPARATORS) else text


def _fields(text: str, separator: str, place: str, skipped: int = 0) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line that is not empty, without blanks around fields and empty ones at its end.

    skipped: lines that stood in front of the text. Raises InputError.
    """
    if separator == _BLANKS:
        lines = enumerate((line.split() for line in text.splitlines()), start=1 + skipped)
        yield from ((number, fields) for number, fields in lines if fields)
        return
    text = re.sub(rf'" +(?=[{re.escape(separator)}\r\n]|\Z)', '"', text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for fields in reader:
            fields = [field.strip() for field in fields]
            while fields and not fields[-1]:
                fields.pop()
            if fields:
                yield reader.line_num + skipped, fields
    except csv.Error as error:
        raise InputError(f"{place} line {reader.line_num + skipped} is not CSV ({error})") from error
