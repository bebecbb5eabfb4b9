"""Where Kiln keeps what it has made: in KILN_CACHE, else in the platform's cache folder, else in a temporary one."""

import errno
import os
import stat
import sys
import tempfile
from functools import cache
from pathlib import Path


def cache_folder() -> Path:
    """KILN_CACHE where it is set, else the folder "kiln" in the platform's cache folder. It may not exist yet.

    Without a home folder, or where nothing can be written there, it is a temporary folder, and standard error says so.
    Raises OSError for a KILN_CACHE in a home folder that there is not, and where there is no temporary folder.
    """
    if named := os.environ.get("KILN_CACHE"):
        return _named(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # a relative XDG_CACHE_HOME counts as none, by its specification
        folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "kiln"
    except RuntimeError:  # HOME is not set, and the user has no account, as in many containers
        return _temporary("there is no home folder")
    return folder if _can_be_written(folder) else _temporary(f"{folder} cannot be written")


def _named(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, "there is no such home folder", text) from error


def _can_be_written(folder: Path) -> bool:
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


@cache
def _temporary(why: str) -> Path:
    """A folder of this user alone below the system's temporary folder, the same one in every process."""
    folder = Path(tempfile.gettempdir(), f"kiln-cache-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    there = folder.lstat()
    # another user may have made it first, to have us read and write what they choose
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid() or there.st_mode & 0o022:
        folder = Path(tempfile.mkdtemp(prefix="kiln-cache-"))
    print(f"kiln: {why}: the cache is {folder}; KILN_CACHE names another folder", file=sys.stderr)
    return folder
