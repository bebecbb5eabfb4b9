"""Reads files of runs, exported models and caches, which may hold anything: one line says what is wrong."""

import json
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.host.input_files import MAX_FILE_BYTES, UnreadableFile, read_input

_BYTES = 64 << 20  # of a JSON file, at most


def read_json(path: Path, limit: int = _BYTES) -> Any:
    """The value in a JSON file (RFC 8259: no NaN, each key once). Raises InputError, which names the file.

    A missing file is one too; whoever can do without it looks for it first.
    """
    if not path.exists():
        raise InputError(f"{path} is missing")
    content = read_named(path, limit)
    try:
        return json.loads(content, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise InputError(f"{path} is damaged: it is nested too deeply") from None
    except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError are of this class
        raise InputError(f"{path} is damaged: {error}") from None


def read_named(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a file, as `read_input`. Raises InputError, which names the file."""
    try:
        return read_input(path, limit)
    except UnreadableFile as error:
        raise InputError(f"{path}: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises ValueError for a key that comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _finite(text: str) -> float:
    """The number; ValueError for one that float64 does not hold."""
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is too large")
    return number
