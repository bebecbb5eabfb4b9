"""Writes files and folders that are either whole or absent: under a temporary name, flushed to the disk, then renamed.

What a killed process was writing stays behind as a rest. This file alone knows the names of rests; no reader lists
them, and the next writer in the same folder removes those whose writers are gone. A writer holds a lock on its rest,
which ends with its process, whatever ends it.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from engine.errors import InputError

_REST = ".writing-"
_UNFINISHED = ".unfinished"  # marks a folder that is being filled, or whose filling was cut short
_ABANDONED = 24 * 3600  # seconds after which a rest counts as one, where the file system has no locks
# what a file system says that cannot flush a folder; a failing disk says something else
_NO_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def is_rest(name: str) -> bool:
    """Whether a file or folder of this name is what a writer, running or killed, has not finished."""
    return name.startswith(_REST) or name == _UNFINISHED


def contents(folder: Path) -> list[str]:
    """The names in a folder, without rests; [] where there is no folder. Raises OSError."""
    try:
        return sorted(name for name in os.listdir(folder) if not is_rest(name))
    except FileNotFoundError:
        return []


def sweep(folder: Path) -> None:
    """Remove the rests in a folder whose writers are gone; those stay that cannot be told from a running writer's."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(_REST):
                with contextlib.suppress(OSError):
                    _remove_abandoned(folder / name)


# a folder may get very many files, and listing it for each would take longer than writing them
_sweep_once = lru_cache(maxsize=1024)(sweep)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix; on success it replaces `path`, on failure it is removed.

    Creates the folder when it is missing. Raises OSError where it cannot be written.
    """
    with naming(path):
        make_folder(path.parent)
        _sweep_once(path.parent)
        temporary, lock = _held_rest(lambda: _empty_file(path))
        try:
            yield temporary
            temporary.chmod(0o666 & ~_mask())  # mkstemp gives 0600, and a result must have the mode of any new file
            _flush(temporary)
            temporary.replace(path)
        finally:
            os.close(lock)
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, on failure it is removed.

    path: must not exist, or be an empty folder
    Creates the folder above when it is missing. Raises OSError where it cannot be written.
    """
    with naming(path):
        make_folder(path.parent)
        sweep(path.parent)
        temporary, lock = _held_rest(lambda: Path(tempfile.mkdtemp(prefix=_REST, dir=path.parent)))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_mask())  # mkdtemp gives 0700
            for folder, _, files in os.walk(temporary):
                for name in files:
                    _flush(Path(folder, name))
                _flush(Path(folder))
            os.rename(temporary, path)
            _flush(path.parent)
        finally:
            os.close(lock)
            shutil.rmtree(temporary, ignore_errors=True)


def require_free(folder: Path, *own: str) -> None:
    """Raise InputError for a folder that `filling` would not fill; own: as for it. Writes nothing."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise InputError(f"{folder} is a file; give a new folder") from None
    again = _UNFINISHED in names
    if any(not is_rest(name) and not (again and _is_own(name, own)) for name in names):
        raise InputError(f"{folder} is not an empty folder; give a new one")


@contextlib.contextmanager
def filling(folder: Path, *own: str) -> Iterator[None]:
    """Mark a folder as unfinished until the block has filled it; after a failure or a kill the same call works again.

    folder: new or empty, or left unfinished by an earlier call; what that wrote is removed first
    own:    patterns of the names that the block gives
    Raises InputError for a folder that holds anything else, or that another process fills, OSError where it cannot be
    written.
    """
    require_free(folder, *own)
    make_folder(folder)
    mark = folder / _UNFINISHED
    lock, is_new = _mark(mark)
    try:
        if _locked(lock) is False:
            raise InputError(f"another process is writing into {folder}; wait for it, or give a new folder")
        if not is_new and not is_still(mark, lock):
            raise InputError(f"another process has just filled {folder}; give a new folder")
        for name in contents(folder):
            if is_new or not _is_own(name, own):
                raise InputError(f"{folder} is not an empty folder; give a new one")
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        yield
        _flush(folder)
        mark.unlink()
    finally:
        os.close(lock)


def remove_folder(path: Path) -> None:
    """Remove a folder, of which nothing is seen any more once it has begun. Raises OSError."""
    rest = Path(tempfile.mkdtemp(prefix=_REST, dir=path.parent))
    os.rename(path, rest)
    shutil.rmtree(rest)


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
    """Write a whole UTF-8 text file, atomically; of a name with bytes that are no UTF-8 it shows their values."""
    write_bytes(path, content.encode("utf-8", "backslashreplace"))


def link(path: Path, target: str) -> None:
    """Make `path` a symbolic link to `target` beside it, in place of what link is there. Raises OSError."""
    with naming(path):
        sweep(path.parent)
        with tempfile.TemporaryDirectory(prefix=_REST, dir=path.parent) as folder:
            made = Path(folder) / path.name
            made.symlink_to(target)
            made.replace(path)
        _flush(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """A block whose OSError names `path`: that of a failed read or write, as on a full disk, names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def _mark(path: Path) -> tuple[int, bool]:
    """The open mark of an unfinished folder, and whether it was made by this call. Raises OSError."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        return os.open(path, os.O_RDWR), False


def _empty_file(path: Path) -> Path:
    """A new empty file beside `path`, with its suffix."""
    handle, name = tempfile.mkstemp(prefix=_REST, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    return Path(name)


def _held_rest(make: Callable[[], Path]) -> tuple[Path, int]:
    """A new rest, and the descriptor that holds its lock as long as it is open."""
    while True:
        rest = make()
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(rest, os.O_RDONLY if rest.is_dir() else os.O_RDWR)
            # before the lock was there, another process may have taken the rest for an abandoned one
            if _locked(lock) is not False and is_still(rest, lock):
                return rest, lock
            os.close(lock)


def is_still(path: Path, handle: int) -> bool:
    """Whether the open file or folder is the one at `path`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _locked(handle: int) -> bool | None:
    """Take the lock of an open file: whether that worked, or None where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_abandoned(rest: Path) -> None:
    """Remove a rest that nobody writes any more. Raises OSError."""
    kind = os.O_RDONLY if rest.is_dir() else os.O_RDWR  # network disks lock only files that are open for writing
    lock = os.open(rest, kind | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        locked = _locked(lock)
        if locked or (locked is None and time.time() - os.fstat(lock).st_mtime > _ABANDONED):
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    finally:
        os.close(lock)


def _is_own(name: str, own: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in own)


def _mask() -> int:
    """The rights that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(handle)
