"""Lets a signal end a training run after its current step."""

import contextlib
import os
import signal
import threading
from types import FrameType

from engine.host.stop_signals import NAMES, exit_status, heeded


class StopRequest:
    """A context in which a first signal asks the run to stop; a SIGINT after it ends the process at once."""

    def __init__(self, *, silent: bool = False) -> None:
        """silent: print nothing, because another process of the same run tells the user."""
        self._silent = silent
        self.number: int | None = None
        self._before: dict[int, object] = {}

    @property
    def status(self) -> int:
        """The exit status that a shell expects, as 130 or 143; 0 before any signal."""
        return 0 if self.number is None else exit_status(self.number)

    @property
    def name(self) -> str:
        return "" if self.number is None else NAMES[signal.Signals(self.number)]

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in heeded()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            _tell("stopped at once; the checkpoints written so far are whole")
            os._exit(exit_status(number))
        if self.number is None:
            self.number = number
            if not self._silent:
                _tell("stopping after this step (Ctrl-C again to quit at once) ...")


def _tell(text: str) -> None:
    """Write a line to standard error from a signal's handler; the terminal may be gone."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
