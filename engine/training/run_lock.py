"""Keeps two processes from training in one run folder."""

import contextlib
import errno
import fcntl
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from engine.errors import InputError
from engine.host.atomic_files import is_still

FILE = ".lock"
_BYTE = 1 << 20  # the byte that is locked; where locks keep others from reading, they can read who holds it
_HELD = (errno.EACCES, errno.EAGAIN)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Within the block no other process is in such a block of this folder, which is created when it is missing.

    After the block the lock's file is gone, and so is the folder where nothing else is in it. The lock is one of fcntl:
    it ends with its process, however that ends, a forked child does not keep it, and network file systems carry it to
    other machines. One line on standard error tells of a file system without such locks; a folder that cannot be
    written needs none. Raises InputError that names the process which holds the lock, OSError where no folder can be
    made.
    """
    handle = _take(run_dir)
    try:
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                if is_still(run_dir / FILE, handle):
                    (run_dir / FILE).unlink()
            os.close(handle)
        with contextlib.suppress(OSError):
            run_dir.rmdir()


def _take(run_dir: Path) -> int | None:
    """The open file of the lock that this process now holds; None where there can be no lock. Raises as `locked`."""
    while True:
        handle = _open(run_dir)
        if handle is None:
            return None
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _BYTE)
        except OSError as error:
            with os.fdopen(handle, "rb") as file:
                if error.errno in _HELD:
                    fix = "wait until it ends, stop it, or choose another --out"
                    raise InputError(f"{_holder(file.read(400))} trains in {run_dir}; {fix}") from None
            what = f"no lock can be had in {run_dir} ({error.strerror})"
            print(f"kiln: {what}: see to it that no other process trains there", file=sys.stderr)
            return None
        if is_still(run_dir / FILE, handle):
            _sign(handle)
            return handle
        os.close(handle)  # its holder removed the file after it had been opened here


def _open(run_dir: Path) -> int | None:
    """The lock's file, opened; None where nothing can be written. Raises OSError where there can be no folder."""
    while True:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(run_dir / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            continue  # another process ended here and removed the empty folder
        except OSError as error:
            if error.errno in _READ_ONLY:
                return None
            raise


def _sign(handle: int) -> None:
    """Write into the lock's file who holds it, for the message of a process that is refused."""
    with contextlib.suppress(OSError):  # without it the message says less
        os.fchmod(handle, 0o666)  # a file that a killed process left must not keep another user out
        os.ftruncate(handle, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)


def _holder(said: bytes) -> str:
    """Who holds the lock, as its file says."""
    known = re.fullmatch(rb"(process \d+ on [\w.-]+) (since [\d-]+ [\d:]+)\n", said)
    return f"{known[1].decode()} ({known[2].decode()})" if known else "another process"
