"""The cache folder: validation results, the rendered avatars, prepared videos. Safe to delete at any time."""

import fcntl
from collections.abc import Callable
from pathlib import Path

from engine.errors import InputError
from engine.host import atomic_files
from engine.kernels import _cache_folder


def cache_folder() -> Path:
    """The folder that _cache_folder finds; it may not exist yet. Raises InputError where there is none."""
    try:
        return _cache_folder.cache_folder()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise InputError(f"{where}{error.strerror}; set KILN_CACHE to a folder that can be written") from error


def make_once(folder: Path, make: Callable[[Path], None], what: str) -> Path:
    """A folder of the cache, made where it is not there: all of it or nothing. Concurrent processes wait for the first.

    folder:  its path.
    make:    called with the path of an empty folder to fill.
    what:    the content, for messages.
    returns: folder.
    Raises InputError where the content cannot be written, and what `make` raises.
    """
    home = folder.parent
    try:
        home.mkdir(parents=True, exist_ok=True)
        with open(home / f".{folder.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            atomic_files.sweep(home)
            if not folder.is_dir():
                with atomic_files.whole_folder(folder) as temporary:
                    make(temporary)
    except OSError as error:
        raise InputError(
            f"{what} cannot be written to {home} ({error.strerror}): set KILN_CACHE to a folder with room"
        ) from error
    return folder
