"""Lets SIGINT and SIGTERM end a training run after its current step."""

import os
import signal
import threading
from types import FrameType

NAMES = {signal.SIGINT: "SIGINT", signal.SIGTERM: "SIGTERM"}


class StopRequest:
    """A context in which the first SIGINT or SIGTERM asks the run to stop; a second SIGINT ends the process at once."""

    def __init__(self, *, silent: bool = False) -> None:
        """silent: print nothing, because another process of the same run tells the user."""
        self._silent = silent
        self.number: int | None = None
        self._before: dict[int, object] = {}

    @property
    def status(self) -> int:
        """The exit status that a shell expects: 130 or 143; 0 before any signal."""
        return 0 if self.number is None else 128 + self.number

    @property
    def name(self) -> str:
        return "" if self.number is None else NAMES[self.number]

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in NAMES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            os.write(2, b"\nstopped at once; the checkpoints written so far are whole\n")
            os._exit(130)
        if self.number is None:
            self.number = number
            if not self._silent:
                os.write(2, b"\nstopping after this step (Ctrl-C again to quit at once) ...\n")
