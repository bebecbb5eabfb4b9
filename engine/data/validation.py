"""Validation: decode every file once before training, remember the verdict, and set aside the files that fail."""

import csv
import hashlib
import io
import json
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from tqdm import tqdm

from engine.data.cache import cache_folder
from engine.data.decoding.dali import Probe, Prober, native_stderr, runs_that_fit, worker_threads
from engine.data.decoding.plain_images import BadImage, inspect, plain_image
from engine.data.decoding.stored_squares import FIRST_SIDEWAYS
from engine.data.layouts.sources import Source, Stamp
from engine.errors import InputError
from engine.host.atomic_files import write_bytes
from engine.host.input_files import UnreadableFile, megabytes
from engine.host.reading import read_json

_VERSION = 2  # of the verdicts: raise it when the rules below change
_VERDICT_BYTES = 1 << 30  # of the file with the verdicts on a source, at most
_CHUNK = 32  # files decoded together
_HELD_BYTES = 1 << 28  # of files that are held at once, whatever their number; a single file may have more
_ANY_PICTURE_BYTES = 1 << 26  # a file of so many bytes is read whatever it holds
_PIXEL_BYTES = 16  # of a larger file, for each pixel of its picture
_HEADER_BYTES = 1 << 20  # in which the header of a picture stands
_FORGIVEN = {"WEBP"}  # DALI decodes damaged files of these formats that Pillow, and so `kiln refine`, does not
_OF_HEADER = ("format", "mode", "width", "height", "orientation", "convert")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """The verdict on one file.

    name:              of the file in its source.
    size:              in bytes.
    modified, changed: its times, as Stamp has them.
    sha256:            of its content.
    format, mode, width, height, orientation, convert: as plain_images.Header has them.
    problem:           why the file is quarantined; "" when it can be used.
    """

    name: str
    size: int = 0
    modified: int = 0
    changed: int = 0
    sha256: str = ""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    convert: str = ""
    problem: str = ""

    def has_stamp(self, stamp: Stamp) -> bool:
        """Whether the file still has the size and times it was validated with."""
        return (self.size, self.modified, self.changed) == (stamp.size, stamp.modified, stamp.changed)


def validate(source: Source, names: Sequence[str], *, progress: bool = True, fresh: bool = False) -> list[FileRecord]:
    """The verdict on each name, in order.

    Verdicts are kept in the cache folder, by name, size and times. A file whose size or times have changed is read, and
    decoded only when its content has changed too.
    progress: a bar on standard error.
    fresh:    decode every file again.
    """
    known = {} if fresh else load_verdicts(source)
    by_content = {record.sha256: record for record in known.values() if record.sha256}
    records: dict[str, FileRecord] = {}
    todo: list[str] = []
    for name in names:
        record = known.get(name)
        try:
            if record and record.has_stamp(source.stamp(name)):
                records[name] = record
                continue
        except UnreadableFile:
            pass
        todo.append(name)
    if todo:
        hidden = None if progress else True  # None: shown on a terminal only
        bar = tqdm(total=len(todo), desc="validating", unit="file", file=sys.stderr, delay=0.5, disable=hidden)
        with bar, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            for record in _examine(source, todo, by_content):
                records[record.name] = record
                bar.update()
        _store_verdicts(source, known | records)
    return [records[name] for name in names]


def load_verdicts(source: Source) -> dict[str, FileRecord]:
    """The verdicts of an earlier validation of this source, by name; {} where this version cannot read them."""
    columns = {field.name: field.type for field in fields(FileRecord)}
    try:
        stored = read_json(_verdict_file(source), _VERDICT_BYTES)
        if stored["version"] != _VERSION or stored["columns"] != list(columns):
            return {}
        return {(record := _record(row, list(columns.values()))).name: record for row in stored["rows"]}
    except (InputError, KeyError, TypeError, ValueError):
        return {}


def _record(row: Sequence[object], types: Sequence[object]) -> FileRecord:
    """The verdict in a row of the cache. Raises ValueError for one that this version does not write."""
    if [type(value) for value in row] != types or any(abs(v) >= 1 << 63 for v in row if isinstance(v, int)):
        raise ValueError("a value of another type")
    return FileRecord(*row)


def forget_verdicts(source: Source) -> None:
    """Make the next start validate this source anew."""
    _verdict_file(source).unlink(missing_ok=True)


def write_quarantine(path: Path, quarantined: Iterable[tuple[str, str]]) -> None:
    """A CSV with the columns file and reason. Raises OSError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "reason"])
    writer.writerows(quarantined)
    write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))


def default_quarantine_file(source: Source) -> Path:
    """Where the list of this source's quarantined files goes when no place is given: a file in the cache folder."""
    return _verdict_file(source).with_suffix(".quarantine.csv")


def _verdict_file(source: Source) -> Path:
    place = hashlib.sha256(str(source.root.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:20]
    return cache_folder() / "validated" / f"{place}.json"


def _store_verdicts(source: Source, records: dict[str, FileRecord]) -> None:
    """Write the verdicts into the cache folder; where that fails, say so on standard error and go on."""
    columns = [field.name for field in fields(FileRecord)]
    rows = [list(asdict(record).values()) for record in records.values()]
    stored = {"version": _VERSION, "source": str(source.root), "columns": columns, "rows": rows}
    try:
        write_bytes(_verdict_file(source), json.dumps(stored).encode())
    except OSError as error:
        print(f"kiln: validation results not kept ({error}); the next start validates again", file=sys.stderr)


def _examine(source: Source, names: Sequence[str], by_content: dict[str, FileRecord]) -> Iterator[FileRecord]:
    """The verdict on each name, in any order. Threads read files and headers a chunk ahead of the decoding.

    by_content: sha256 -> an earlier verdict on the same content.
    """
    prober = Prober(_CHUNK)
    for looked in _read_ahead(source, names, by_content):
        yield from (record for record, data in looked if data is None)
        undecided = [(record, data) for record, data in looked if data is not None]
        for run in runs_that_fit([record.width * record.height for record, _ in undecided], _CHUNK):
            yield from _try_decoding(prober, undecided[run.start : run.stop])
        del looked, undecided  # before more is read


Looked = list[tuple[FileRecord, bytes | None]]


def _read_ahead(source: Source, names: Sequence[str], by_content: dict[str, FileRecord]) -> Iterator[Looked]:
    """What `_look` tells of each chunk of files. The next chunk is read meanwhile where both may be held at once."""
    reading: deque[tuple[int, list[Future]]] = deque()
    with ThreadPoolExecutor(worker_threads()) as pool:
        for size, chunk in _chunks(source, names):
            while reading and (len(reading) == 2 or size + sum(held for held, _ in reading) > _HELD_BYTES):
                yield [future.result() for future in reading.popleft()[1]]
            reading.append((size, [pool.submit(_look, source, name, by_content) for name in chunk]))
        while reading:
            yield [future.result() for future in reading.popleft()[1]]


def _chunks(source: Source, names: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The files that are held together, and how many bytes they have: _CHUNK files, or fewer where those are large."""
    chunk: list[str] = []
    held = 0
    for name in names:
        try:
            size = source.stamp(name).size
        except UnreadableFile:  # reported where the file is read
            size = 0
        if chunk and (len(chunk) == _CHUNK or held + size > _HELD_BYTES // 2):
            yield held, chunk
            chunk, held = [], 0
        chunk.append(name)
        held += size
    if chunk:
        yield held, chunk


def _look(source: Source, name: str, by_content: dict[str, FileRecord]) -> tuple[FileRecord, bytes | None]:
    """What can be told of a file without decoding it: the record, and its bytes where it remains to be decoded."""
    record = FileRecord(name)
    try:
        stamp = source.stamp(name)
        record = replace(record, size=stamp.size, modified=stamp.modified, changed=stamp.changed)
        _check_size(source, name, stamp.size)
        data = source.read(name)
        record = replace(record, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        if same := by_content.get(record.sha256):
            stamped = {"name": name, "size": record.size, "modified": record.modified, "changed": record.changed}
            return replace(same, **stamped), None
        header = inspect(data)
    except (UnreadableFile, BadImage) as error:
        return replace(record, problem=str(error)), None
    return replace(record, **{name: getattr(header, name) for name in _OF_HEADER}), data


def _stored_size(record: FileRecord) -> tuple[int, int]:
    """Width and height of a file's pixels as they are stored."""
    size = record.width, record.height
    return size[::-1] if record.orientation >= FIRST_SIDEWAYS else size


def _check_size(source: Source, name: str, size: int) -> None:
    """Raise BadImage for a file with far more bytes than its picture can have: a few MB of a zip hold GB of zeros."""
    if size <= _ANY_PICTURE_BYTES:
        return
    try:
        header = inspect(source.read_start(name, _HEADER_BYTES))
    except BadImage:  # the header may stand elsewhere, as at the end of a TIFF
        return
    if size > _ANY_PICTURE_BYTES + _PIXEL_BYTES * header.width * header.height:
        raise BadImage(f"too large ({megabytes(size)} for {header.width}x{header.height} pixels)")


def _try_decoding(prober: Prober, group: list[tuple[FileRecord, bytes]]) -> Iterator[FileRecord]:
    """The verdict on each of a group of files: used as it is, converted by Pillow, or quarantined with the reason.

    A file is used as it is when DALI reads it without complaint, and converted when Pillow reads it.
    """
    direct = [(record, data) for record, data in group if not record.convert]
    others = [(record, data) for record, data in group if record.convert]
    probes = prober.probe([data for _, data in direct]) if direct else []
    for (record, data), probe in zip(direct, probes, strict=True):
        if probe != Probe(_stored_size(record)):
            # converted, because DALI's codec would print its complaint in every epoch, and Pillow's prints none
            others.append((replace(record, convert=probe.complaint or "not read by DALI"), data))
        elif record.format in _FORGIVEN:
            others.append((record, data))
        else:
            yield record
    for record, data in others:
        try:
            with native_stderr():  # where libtiff speaks of damaged files, without their names
                size = plain_image(data).size
            if size != (record.width, record.height):
                raise BadImage("damaged (its size is not the one in its header)")
            yield record
        except BadImage as error:
            yield replace(record, problem=str(error))
