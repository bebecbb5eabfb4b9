"""Writes files that are either whole or absent: under a temporary name, flushed to the disk, then renamed."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix; on success it replaces `path`, on failure it is removed.

    Creates the folder when it is missing. Raises OSError where it cannot be written.
    """
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=".writing-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp creates files with mode 0600, and a result must have the mode of any new file
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        # the error of a failed write, as on a full disk, does not name the file
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises OSError: a PermissionError where the system says that a parent is missing although it exists, as in /proc.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        raise PermissionError(errno.EACCES, "no folder can be made here", str(path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a whole UTF-8 text file, atomically; what is no UTF-8 in the names of files becomes an escape."""
    write_bytes(path, content.encode("utf-8", "backslashreplace"))
