"""The signals that ask a process to end, and how a command ends by one: in order, without files half written."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

# Ctrl-C; a system that shuts down or a queue that stops a job; a terminal that is closed; a queue's early warnings;
# a limit of processor time that is reached
_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
NAMES = {number: number.name for number in _ASKING}
# a closed terminal sends SIGHUP twice: what comes so soon after the first must not disturb the clearing up
_ONE_EVENT_SECONDS = 2.0


def exit_status(number: int) -> int:
    """The exit status that a shell expects of a process that a signal ended: 143 for SIGTERM."""
    return 128 + number


def heeded() -> list[signal.Signals]:
    """The signals of NAMES that this process heeds.

    One that is ignored when the process starts stays ignored, as `nohup` wants it. SIGINT is heeded all the same:
    shells start background jobs without it, and `kill -INT` is meant for the job that it names.
    """
    return [number for number in NAMES if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Within the block a signal raises SystemExit, so that temporary files are removed and child processes ended.

    SIGINT raises KeyboardInterrupt, as Python has it where the signal is not ignored at the start.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = float("-inf")

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > _ONE_EVENT_SECONDS:
            raise SystemExit(exit_status(number))

    handlers = {signal.SIGINT: signal.default_int_handler}
    previous = {number: signal.signal(number, handlers.get(number, end)) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
