"""Processes that render: what ends one of them is named, none outlives the process that started it."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engine.data.avatars import record, worker, writing
from engine.data.cache import make_once
from engine.errors import InputError

MEMORY = "free some, or let fewer processes render"
ENDS = [
    ("kill -KILL $$", rf"killed by SIGKILL: most likely memory ran out; {MEMORY}"),
    ("kill -SEGV $$", r"killed by SIGSEGV: start again$"),
    ("kill -40 $$", r"killed by signal 40: start again$"),
    ("printf half; kill -KILL $$", r"killed by SIGKILL"),
    ("printf half", r"ended with status 0; its own message stands above"),
    ("exit 3", r"ended with status 3; its own message stands above"),
    ("exec sleep 60", r"has hung for 0.3 seconds; start again"),
]
FAILURES = [
    (OSError(errno.ENOSPC, "x"), errno.ENOSPC),
    (PermissionError(errno.EACCES, "x"), errno.EACCES),
    (OSError("no number"), errno.EIO),
    (MemoryError(), errno.ENOMEM),
]


def render(monkeypatch: pytest.MonkeyPatch, script: Path, command: str) -> None:
    """Render 30 avatars by two processes that run a command of the shell in place of the renderer."""
    script.write_text(f"#!/bin/sh\n{command}\n")
    script.chmod(0o755)
    monkeypatch.setattr(writing, "_cores", lambda: 2)
    monkeypatch.setattr(writing, "_PATIENCE", 0.3)
    monkeypatch.setattr(writing.sys, "executable", str(script))
    writing.write(script.parent / "set", 30, 16, 0, progress=False)


@pytest.mark.parametrize(("command", "says"), ENDS, ids=[command for command, _ in ENDS])
def test_what_ended_a_process_is_said(tmp_path: Path, monkeypatch, command: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        render(monkeypatch, tmp_path / "python", command)
    assert "\n" not in str(caught.value) and "None" not in str(caught.value)
    assert os.listdir(tmp_path) == ["python"]


@pytest.mark.parametrize(("error", "number"), FAILURES, ids=lambda value: errno.errorcode.get(value, ""))
def test_a_process_tells_the_one_that_started_it_why_it_ends(capfdbinary, monkeypatch, error, number: int) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "render_share", fails)
    assert worker.main(["/nowhere", "1", "1", "16", "0", "0", "1"]) == 1
    out, complaint = capfdbinary.readouterr()
    row, marks = record.unpack(out)
    assert row == -number and not marks.any() and complaint == b""


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, r"the avatars cannot be written to .* \(No space left on device\): set KILN_CACHE"),
        (errno.ENOMEM, rf"no memory to render avatars: {MEMORY}"),
    ],
)
def test_the_reason_reaches_the_user(tmp_path: Path, monkeypatch, number: int, says: str) -> None:
    (tmp_path / "said").write_bytes(record.failure(number))
    command = f"cat {tmp_path / 'said'}; exit 1"
    with pytest.raises(InputError, match=says):
        make_once(tmp_path / "avatars", lambda out: render(monkeypatch, tmp_path / "python", command), "the avatars")


@pytest.mark.parametrize("row", [0, 7, 2**31 - 1, -errno.ENOSPC])
def test_a_record_is_read_as_it_was_written(row: int) -> None:
    marks = np.random.default_rng(0).random((68, 2), np.float32)
    packed = record.pack(row, marks)
    assert len(packed) == record.LENGTH
    read, same = record.unpack(packed)
    assert read == row and np.array_equal(same, marks)


RENDER = """
import sys
from pathlib import Path
from engine.cli import run
from engine.data.avatars import writing

writing._cores = lambda: 2
run("test", lambda argv: writing.write(Path(argv[0]), 9000, 16, 0, progress=False))
"""


def parents() -> dict[int, int]:
    """The processes that live, and the process that started each."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            state, parent = (entry / "stat").read_text().rsplit(") ", 1)[1].split()[:2]
            if state != "Z":
                found[int(entry.name)] = int(parent)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_no_process_outlives_the_one_that_started_it(tmp_path: Path, number: signal.Signals) -> None:
    words = [sys.executable, "-c", RENDER, str(tmp_path / "out" / "set")]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("out/.*/photo/images/*.jpg")):
            assert process.poll() is None
            time.sleep(0.01)
        started = {child for child, parent in parents().items() if parent == process.pid}
        process.send_signal(number)
        _, complaint = process.communicate(timeout=30)
    assert len(started) == 2 and complaint == ""
    if number == signal.SIGTERM:
        assert process.returncode == 143 and os.listdir(tmp_path / "out") == []
    until = time.monotonic() + 20
    while started & parents().keys():
        assert time.monotonic() < until
        time.sleep(0.01)
