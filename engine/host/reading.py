"""Reads the files of runs and exported models, which may be anything: one line says what is wrong with them."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.host.atomic_files import naming

_TEXT_BYTES = 64 << 20  # of a JSON file, at most


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The content of a regular file. Raises OSError, also for a folder, a pipe or a device, and for more than `limit`."""
    with naming(path):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe is opened at once, not when somebody writes
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            if limit is not None and status.st_size > limit:
                raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
            with open(handle, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(handle)


def read_json(path: Path, limit: int = _TEXT_BYTES) -> Any:
    """The value in a JSON file (RFC 8259: no NaN, each key once). Raises InputError, which names the file.

    A missing file is one too; whoever can do without it looks for it first.
    """
    try:
        return json.loads(
            read_bytes(path, limit), object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite
        )
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    except RecursionError:
        raise InputError(f"{path} is damaged: it is nested too deeply") from None
    except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError are of this class
        raise InputError(f"{path} is damaged: {error}") from None


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
