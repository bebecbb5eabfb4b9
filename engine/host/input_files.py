"""Reads the files that people bring: regular files alone, so many bytes at most, and no pointers of Git LFS."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

MAX_FILE_BYTES = 1 << 30
LFS_POINTER = "a Git LFS pointer instead of the file: run `git lfs pull` where it was cloned"
_LFS_STARTS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_LFS_BYTES = 1024  # a pointer is shorter
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class UnreadableFile(Exception):
    """One file cannot be read; the message says why. Other files beside it still can."""


def open_input(path: Path) -> BufferedReader:
    """A regular file, opened for reading without waiting for anything; close it.

    Raises UnreadableFile for whatever else has that name, such as a named pipe or a device, and for an LFS pointer.
    """
    try:
        # a named pipe would wait for its writer; what is looked at is what was opened, whatever the name means by then
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UnreadableFile(reason(error)) from error
    try:
        kind = stat.S_IFMT(os.fstat(handle).st_mode)
        if kind != stat.S_IFREG:
            raise UnreadableFile(f"{_KINDS.get(kind, 'something else')}, not a file")
        if is_lfs_pointer(os.pread(handle, _LFS_BYTES, 0)):
            raise UnreadableFile(LFS_POINTER)
    except OSError as error:
        os.close(handle)
        raise UnreadableFile(reason(error)) from error
    except UnreadableFile:
        os.close(handle)
        raise
    return open(handle, "rb")


def read_input(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a file. Raises UnreadableFile, also where it has more than `limit` bytes, or more than it claims."""
    with open_input(path) as file:
        claimed = os.fstat(file.fileno()).st_size
        if claimed > limit:
            raise UnreadableFile(too_large(claimed, limit))
        # files of /proc claim no size, and some of them never end
        data = _read(file, claimed + 1)
    if len(data) > claimed:
        raise UnreadableFile(f"it holds more than the {claimed:,} bytes that it claims to have")
    return data


def read_start(path: Path, count: int) -> bytes:
    """The first `count` bytes of a file, or all of a shorter one. Raises UnreadableFile."""
    with open_input(path) as file:
        return _read(file, count)


def refusal(path: Path) -> str:
    """Why what lies at `path` is no file to read: "a named pipe, not a file"; "" for a file, and where nothing lies.

    For files that a library opens by their names.
    """
    if not path.exists():
        return ""
    try:
        check_input(path)
    except UnreadableFile as error:
        return str(error)
    return ""


def check_input(path: Path) -> None:
    """Raise UnreadableFile unless `path` is a regular file that can be read, and no LFS pointer."""
    open_input(path).close()


def is_lfs_pointer(data: bytes) -> bool:
    """Whether these are the first bytes of what Git LFS leaves in the place of a file that it has not fetched."""
    return data.startswith(_LFS_STARTS)


def too_large(size: int, limit: int) -> str:
    """Why a file of `size` bytes is not read."""
    return f"too large ({megabytes(size)}; Kiln reads up to {megabytes(limit)} of such a file)"


def megabytes(size: int) -> str:
    """A number of bytes as messages show it: "12 MB"."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def reason(error: Exception) -> str:
    """Why a file cannot be read, in a few words."""
    if isinstance(error, MemoryError):
        return "cannot be read: not enough memory"
    if getattr(error, "errno", None) == errno.ENXIO:
        return "a socket or a device, not a file"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def _read(file: BufferedReader, count: int) -> bytes:
    try:
        return file.read(count)
    except (OSError, MemoryError) as error:
        raise UnreadableFile(reason(error)) from error
