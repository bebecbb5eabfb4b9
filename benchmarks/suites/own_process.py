"""Runs a module of the benchmark in a process of its own: for its peak memory, and for what may crash or never end."""

import os
import signal
import subprocess
import sys

from benchmarks.checkout import ROOT
from benchmarks.timing.rows import one_line


class Failed(Exception):
    """A process that gave no answer; the message says why in one line."""


def answer(module: str, *words: str, seconds: float | None = None) -> str:
    """The last line that `python -m MODULE WORDS` prints. Raises Failed where it fails or takes longer than `seconds`.

    A process that takes too long is ended together with the compilers that it started.
    """
    command = [sys.executable, "-m", module, *words]
    options = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            printed, errors = process.communicate(timeout=seconds)
        except BaseException as error:  # an interrupt of the user, too, must leave no process behind
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failed(f"it took longer than {seconds:g} s") from None
            raise
    if process.returncode < 0:
        raise Failed(f"its process ended by signal {-process.returncode}")
    if process.returncode:
        raise Failed((errors.strip().splitlines() or ["its process said nothing"])[-1])
    return printed.splitlines()[-1]


def ended_by(error: Exception) -> SystemExit:
    """What a process raises so that `answer` of the process that started it tells this error."""
    return SystemExit(one_line(error))
