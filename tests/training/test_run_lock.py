"""One process trains in a run folder; a dead one, a copy and a file system without locks are no obstacle."""

import dataclasses
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import InputError
from engine.training.run_lock import FILE, locked
from engine.training.setup import claimed_folder
from tests.support.training_fakes import tiny_config

HOLD = """
import os, sys, time
from pathlib import Path
from engine.cli import run
from engine.training.run_lock import locked

def main(argv):
    with locked(Path(argv[0])):
        child = os.fork() if "fork" in argv else -1
        if child:
            print(child, flush=True)
        time.sleep(60)

run("test", main)
"""


def holder(run: Path, *words: str) -> tuple[subprocess.Popen, int]:
    """A process that holds the lock, and the number of its child."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run), *words], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def ended(process: subprocess.Popen, number: int) -> None:
    process.send_signal(number)
    process.communicate(timeout=30)


@pytest.mark.parametrize("resume", [True, False])
def test_the_second_process_is_refused_by_the_first_ones_number(tmp_path: Path, resume: bool) -> None:
    run = tmp_path / "deep" / "run"
    process, _ = holder(run)
    (run / "config.json").write_text("{}")
    config = dataclasses.replace(tiny_config(out=run), resume=resume)
    with (
        pytest.raises(InputError, match=rf"^process {process.pid} on .+ \(since 2.+\) trains in .*run; wait") as caught,
        claimed_folder(config),
    ):
        pass
    assert "\n" not in str(caught.value)
    ended(process, signal.SIGTERM)
    assert os.listdir(run) == ["config.json"]
    with locked(run):
        pass


def test_a_folder_in_which_nothing_was_trained_is_gone(tmp_path: Path) -> None:
    process, _ = holder(tmp_path / "run")
    ended(process, signal.SIGHUP)
    assert os.listdir(tmp_path) == []


def test_the_lock_dies_with_its_process_and_not_with_a_forked_child(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process, child = holder(run, "fork")
    try:
        process.kill()
        process.wait(30)
        os.kill(child, 0)  # it lives
        assert os.listdir(run) == [FILE]
        with claimed_folder(tiny_config(out=run)) as start:  # what is left in the folder does not ask for --resume
            assert start is None
        assert not run.exists()
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_copy_of_a_run_that_is_being_trained_is_free(tmp_path: Path) -> None:
    process, _ = holder(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with locked(tmp_path / "copy"):
        pass
    ended(process, signal.SIGTERM)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_told_and_used(tmp_path: Path, monkeypatch, capsys, number: int) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", fails)
    with locked(tmp_path):
        told = capsys.readouterr().err
    assert told.count("\n") == 1 and os.strerror(number) in told and "no other process trains there" in told


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_written_needs_no_lock(tmp_path: Path, monkeypatch, number: int) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("engine.training.run_lock.os.open", fails)
    with locked(tmp_path):
        pass


def test_a_lock_file_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE).symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="cannot write to"), claimed_folder(tiny_config(out=tmp_path / "run")):
        pass
    assert (tmp_path / "precious").read_text() == "text"


@pytest.mark.parametrize("said", [b"", b"process \x1b[31m1 on x since y\n", b"\xff" * 500])
def test_what_a_lock_file_says_is_not_repeated_blindly(tmp_path: Path, said: bytes) -> None:
    process, _ = holder(tmp_path / "run")
    (tmp_path / "run" / FILE).write_bytes(said)
    with pytest.raises(InputError, match=r"^another process trains in"), locked(tmp_path / "run"):
        pass
    ended(process, signal.SIGKILL)


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    before = tmp_path.stat().st_mtime_ns
    for flags in ((), ("--resume",)):
        with pytest.raises(InputError), claimed_folder(tiny_config(*flags, out=tmp_path)):
            pass
    assert tmp_path.stat().st_mtime_ns == before
