"""A signal ends a command in order: no temporary file is left, no traceback printed, the status names the signal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# a command that writes a file atomically and is stopped in the middle
COMMAND = """
import sys, time
from pathlib import Path
from engine.cli import run
from engine.host import atomic_files

def main(argv):
    with atomic_files.replacing(Path(argv[0])) as temporary:
        temporary.write_bytes(b"half")
        print("writing", flush=True)
        try:
            time.sleep(60)
        finally:
            time.sleep(float(argv[1]))  # the clearing up takes a while

run("test", main)
"""
ENDS = [
    (signal.SIGTERM, 143),
    (signal.SIGHUP, 129),
    (signal.SIGUSR1, 138),
    (signal.SIGUSR2, 140),
    (signal.SIGXCPU, 152),
    (signal.SIGINT, 130),
]


def heed() -> None:
    """Heed SIGHUP in a child process, also of tests that nohup has started."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def started(folder: Path, seconds: float = 0, **options: object) -> subprocess.Popen:
    """The command, when it has written half of its file."""
    words = [sys.executable, "-c", COMMAND, str(folder / "out"), str(seconds)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": heed} | options
    process = subprocess.Popen(words, **options)
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize(("number", "status"), ENDS, ids=lambda value: getattr(value, "name", None))
def test_a_command_ends_without_a_half_file(tmp_path: Path, number: signal.Signals, status: int) -> None:
    process = started(tmp_path)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=30)
    assert (process.returncode, complaint) == (status, "")
    assert os.listdir(tmp_path) == []


def test_the_second_signal_of_a_closed_terminal_leaves_the_clearing_up_alone(tmp_path: Path) -> None:
    process = started(tmp_path, 0.3)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=30)
    assert process.returncode in (129, 143)  # of two signals that wait, Python heeds the lower one first
    assert complaint == "" and os.listdir(tmp_path) == []


def test_a_signal_that_is_ignored_at_the_start_stays_ignored(tmp_path: Path) -> None:
    process = started(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.kill()
    process.communicate()
