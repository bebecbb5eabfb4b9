"""A signal ends a training with a checkpoint, whatever has become of its terminal."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from engine import checkpoint
from tests.support.training_processes import forked, run_training, trained

LONG = ("--steps", "9000", "--checkpoint-every", "9000", "--log-every", "1")


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return forked()


def begun(processes: ForkServerContext, target: Callable[..., None], out: Path, *arguments: object) -> BaseProcess:
    """A process that has begun to train in `out`."""
    process = processes.Process(target=target, args=(out, *arguments))
    process.start()
    rows = out / "metrics.jsonl"
    while process.is_alive() and not (rows.exists() and rows.stat().st_size):
        time.sleep(0.002)
    return process


def saved_step(out: Path) -> int:
    """The step of the checkpoint of a run that has one and no other file of a half-written one."""
    assert [path.name for path in (out / "checkpoints").iterdir()] == [checkpoint.latest(out).name]
    return checkpoint.load(out).step


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2], ids=lambda number: number.name)
def test_a_signal_saves_and_ends(processes: ForkServerContext, tmp_path: Path, number: signal.Signals) -> None:
    process = begun(processes, run_training, tmp_path / "run", *LONG)
    os.kill(process.pid, number)
    os.kill(process.pid, signal.SIGTERM)  # a queue sends another one while the run saves: the first one counts
    process.join(60)
    assert process.exitcode == 128 + number
    assert 0 < saved_step(tmp_path / "run") < 9000
    assert f"stopped by {number.name} after step" in (tmp_path / "run.log").read_text()


def under_nohup(out: Path, *flags: str) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run_training(out, *flags)


def test_a_signal_that_is_ignored_from_the_start_stays_ignored(processes: ForkServerContext, tmp_path: Path) -> None:
    process = begun(processes, under_nohup, tmp_path / "run", *LONG)
    os.kill(process.pid, signal.SIGHUP)
    time.sleep(0.2)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143 and saved_step(tmp_path / "run") > 0


def on_a_terminal(out: Path, name: str, *flags: str) -> None:
    """Train in a session of its own whose terminal is `name`; it shows a progress bar there."""
    os.setsid()
    terminal = os.open(name, os.O_RDWR)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for number in (0, 1, 2):
        os.dup2(terminal, number)
    sys.exit(trained(out, *flags))


def test_a_terminal_that_is_closed(processes: ForkServerContext, tmp_path: Path) -> None:
    """The system sends SIGHUP, and every write to the terminal fails from then on."""
    master, slave = pty.openpty()
    process = begun(processes, on_a_terminal, tmp_path / "run", os.ttyname(slave), *LONG)
    assert process.is_alive()
    os.close(slave)
    os.close(master)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGHUP and saved_step(tmp_path / "run") > 0


def into_a_pipe(out: Path, name: str, *flags: str) -> None:
    """Train and print to the named pipe."""
    pipe = os.open(name, os.O_WRONLY)
    os.dup2(pipe, 1)
    os.dup2(pipe, 2)
    sys.exit(trained(out, *flags))


def test_a_reader_of_the_output_that_ends_ends_no_training(processes: ForkServerContext, tmp_path: Path) -> None:
    """`kiln train | tee log`: Ctrl-C ends tee first."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    process = begun(processes, into_a_pipe, tmp_path / "run", str(tmp_path / "pipe"), *LONG)
    os.close(reader)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130 and saved_step(tmp_path / "run") > 0


def test_second_ctrl_c_quits_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal, time\n"
        "from engine.training.signals import StopRequest\n"
        "with StopRequest():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (130, "still here\n")
    assert "stopped at once" in done.stderr
