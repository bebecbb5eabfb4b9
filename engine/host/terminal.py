"""Shows names and texts that others wrote: what in them would steer the terminal is escaped."""

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast

# how progress bars move: a return around a line, or steps upwards and nothing else
_LINE_OF_A_BAR = re.compile(r"(\r)(.*?)(\r?)", re.DOTALL)
_STEPS_OF_A_BAR = re.compile(r"(\x1b\[A)+")


def printable(text: str, kept: str = "") -> str:
    r"""The text, with every character that cannot be read as repr shows it: \x1b, \n, \u202e, \udcff.

    These are control characters, line ends too, marks that turn the direction of writing, and bytes that are no UTF-8.
    kept: characters that stay as they are.
    """
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


class Escaping:
    """A text stream that shows its lines `printable`, in any encoding; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write lines; returns the number of their characters."""
        if not _STEPS_OF_A_BAR.fullmatch(text):
            bar = _LINE_OF_A_BAR.fullmatch(text)
            start, line, end = bar.groups() if bar else ("", text, "")
            text = start + printable(line, "\n\t") + end
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts one after another."""
        for line in lines:
            self.write(line)


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """Within the block standard output and standard error are Escaping."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _escaping(sys.stdout), _escaping(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def plain(stream: TextIO) -> TextIO:
    """The stream without escapes, for a page whose every word is Kiln's own, and coloured."""
    return stream.stream if isinstance(stream, Escaping) else stream


def _escaping(stream: TextIO | None) -> TextIO:
    """The stream, Escaping; a process that was started without it writes nowhere."""
    if stream is None:
        stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    return stream if isinstance(stream, Escaping) else cast(TextIO, Escaping(stream))


def occupy_descriptors() -> None:
    """Open the null device in the place of standard input, output and error that the process was started without.

    Else the next file that is opened would have their number, and get what libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest free number
