"""Shows how a run is doing: a progress bar in a terminal, one line every ten seconds in a log file."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import torch
from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10


class Progress:
    """Shows step, losses, images/s, time left, memory and the share of time spent waiting for data."""

    def __init__(self, start: int, total: int):
        self.total, self.text = total, ""
        self._bar = None
        self._printed, self._began, self._start = time.monotonic(), time.monotonic(), start
        if sys.stderr.isatty():
            layout = "{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
            self._bar = tqdm(total=total, initial=start, bar_format=layout, dynamic_ncols=True, smoothing=0.1)

    def show(self, step: int, text: str | None = None) -> None:
        """Call after each step; text: the readings to show from now on, None to keep the last ones."""
        if text is not None:
            self.text = text
        if self._bar is not None:
            if text is not None:
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif text is not None and (step == self.total or time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES):
            self._printed = time.monotonic()
            per_step = (self._printed - self._began) / max(1, step - self._start)
            left = tqdm.format_interval(per_step * (self.total - step))
            print(f"step {step}/{self.total}, {left} left, {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.clear()
        print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Within the block printing raises no OSError: a training outlives its terminal and who reads its output."""
    with contextlib.redirect_stdout(_Lasting(sys.stdout)), contextlib.redirect_stderr(_Lasting(sys.stderr)):
        yield


class _Lasting:
    """A text stream that leads nowhere once its terminal is closed or the program that reads it has ended."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            if error.errno in (errno.EIO, errno.EPIPE):
                # what the stream still holds is written again when it is closed, and would fail again
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


def memory_mb(device: torch.device) -> float:
    """Peak memory in MB: torch's allocations on a GPU, the process's resident memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
