"""The avatars as files, written by several processes: OUT/photo and OUT/game, each in the manifest layout."""

from __future__ import annotations

import contextlib
import csv
import errno
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from engine.data.avatars import record
from engine.data.avatars.picture import LOOKS, draw, paint_look
from engine.errors import InputError
from engine.host import atomic_files

_SMALL = 24  # pictures: fewer are drawn in less time than it takes to start processes
_PATIENCE = 600  # seconds without a picture after which a process hangs; a picture takes less than one
_MORE_MEMORY = "free some, or let fewer processes render (taskset -c 0 allows one core), and start again"
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def write(out: Path, count: int, size: int, seed: int, frames: int = 1, progress: bool = True) -> None:
    """Render `count` identities x `frames` frames in both looks into `out`, all or nothing.

    out:      must not exist, or be an empty folder.
    size:     pixels per side.
    progress: a bar on standard error.
    The files do not depend on the number of processes. An interrupted call leaves nothing at `out`.
    Raises InputError for an `out` that is not empty, for numbers out of range, and where a process that renders was
    killed or hangs; OSError where `out` cannot be written.
    """
    out = Path(out)
    if count < 1 or frames < 1 or seed < 0:
        raise InputError("avatars need at least 1 identity, 1 frame and a seed of 0 or more")
    if not 16 <= size <= 1024:
        raise InputError(f"avatars are drawn at 16 to 1024 pixels, not {size}")
    atomic_files.require_free(out)
    if os.path.ismount(out):
        raise InputError(f"{out} is a mount, which cannot be written as a whole; name a new folder inside it")
    with atomic_files.whole_folder(out.absolute()) as temporary:
        for look in LOOKS:
            (temporary / look / "images").mkdir(parents=True)
        jobs = [(identity, frame) for identity in range(count) for frame in range(frames)]
        landmarks = np.zeros((len(jobs), 68, 2), np.float32)
        with _bar(len(jobs), progress) as advance:
            for row, marks in _render_all(temporary, count, frames, size, seed):
                landmarks[row] = marks
                advance(1)
        for look in LOOKS:
            _write_tables(temporary / look, jobs, landmarks)


def file_name(identity: int, frame: int) -> str:
    """Name of one picture inside images/."""
    return f"id{identity:05d}_f{frame:02d}.jpg"


def render_share(
    folder: Path, count: int, frames: int, size: int, seed: int, share: int, shares: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Write the identities share, share + shares, share + 2 shares, ... in both looks.

    yields: of each frame, its row in the manifest and its landmarks (68, 2) float32.
    """
    for identity in range(share, count, shares):
        for frame in range(frames):
            drawing = draw(seed, identity, frame, size)
            for look in LOOKS:
                _save(
                    folder / look / "images" / file_name(identity, frame),
                    paint_look(drawing, look),
                    f"{look} look, identity {identity}",
                )
            yield identity * frames + frame, drawing.landmarks


def _render_all(folder: Path, count: int, frames: int, size: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Write all pictures, by a process for each core; yield row and landmarks (68, 2) of each frame, in any order."""
    workers = min(_cores(), count)
    if workers < 2 or count * frames < _SMALL or not sys.executable:
        yield from render_share(folder, count, frames, size, seed, 0, 1)
        return
    # plain child interpreters rather than multiprocessing: a caller's script needs no __main__ guard
    environment = dict(
        os.environ, PYTHONPATH=os.pathsep.join(p or os.getcwd() for p in sys.path), **dict.fromkeys(_ONE_THREAD, "1")
    )
    common = [sys.executable, "-m", "engine.data.avatars.worker", str(folder), *map(str, (count, frames, size, seed))]
    children: list[subprocess.Popen] = []
    try:
        for share in range(workers):
            command = [*common, str(share), str(workers)]
            # a session of its own, so that an interrupt reaches the caller alone, which then ends its workers
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
            children.append(child)
        yield from _collect(children, folder)
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdout.close()


def _collect(children: list[subprocess.Popen], folder: Path) -> Iterator[tuple[int, np.ndarray]]:
    """The records that workers write to their standard output, as they come: row and landmarks (68, 2) of each frame.

    Raises OSError where a worker could not write in `folder`, InputError for one that was killed, failed or hangs.
    """
    with selectors.DefaultSelector() as ready:
        pending = {child.stdout.fileno(): b"" for child in children}
        for child in children:
            ready.register(child.stdout, selectors.EVENT_READ, child)
        while ready.get_map():
            events = ready.select(_PATIENCE)
            if not events:
                raise InputError(f"a process that renders avatars has hung for {_PATIENCE} seconds; start again")
            for key, _ in events:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    ready.unregister(key.fileobj)
                    _require_done(key.data, pending[key.fd])
                    continue
                data = pending[key.fd] + data
                whole = len(data) - len(data) % record.LENGTH
                for start in range(0, whole, record.LENGTH):
                    row, marks = record.unpack(data[start : start + record.LENGTH])
                    if row < 0:
                        raise _failure(-row, folder)
                    yield row, marks
                pending[key.fd] = data[whole:]


def _failure(number: int, folder: Path) -> Exception:
    """The error of a worker that the system's error `number` has ended."""
    if number == errno.ENOMEM:
        return InputError(f"no memory to render avatars: {_MORE_MEMORY}")
    return OSError(number, os.strerror(number), str(folder))


def _require_done(child: subprocess.Popen, rest: bytes) -> None:
    """Raise InputError unless a worker that has closed its output ended well; rest: an unfinished record of it."""
    status = child.wait()
    if status < 0:
        name = next((number.name for number in signal.Signals if number == -status), f"signal {-status}")
        fix = f"most likely memory ran out; {_MORE_MEMORY}" if status == -signal.SIGKILL else "start again"
        raise InputError(f"a process that renders avatars was killed by {name}: {fix}")
    if status or rest:
        raise InputError(f"a process that renders avatars ended with status {status}; its own message stands above")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _save(path: Path, picture: np.ndarray, what: str) -> None:
    """Write a picture (H, W, 3) uint8 as a JPEG that is marked as synthetic; `what`: which avatar it shows."""
    image = Image.fromarray(picture)
    exif = image.getexif()
    exif[0x010E] = f"Synthetic face, not a real person (kiln avatars, {what})"  # ImageDescription
    exif[0x0131] = "kiln avatars"  # Software
    image.save(path, "JPEG", quality=95, subsampling=0, exif=exif)


def _write_tables(folder: Path, jobs: list[tuple[int, int]], landmarks: np.ndarray) -> None:
    np.save(folder / "landmarks_68.npy", landmarks)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["file", "landmarks_row", "identity", "frame"])
        table.writerows(
            (file_name(identity, frame), row, identity, frame) for row, (identity, frame) in enumerate(jobs)
        )


@contextlib.contextmanager
def _bar(total: int, progress: bool):
    if not progress:
        yield lambda _: None
        return
    with tqdm(total=total, desc="avatars", unit="face", file=sys.stderr) as bar:
        yield bar.update
