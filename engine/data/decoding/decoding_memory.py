"""A limit on the memory that pictures take while Pillow decodes them: of one picture, and of all at one time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

LIMIT = 1_000_000_000  # bytes


class DecodingMemory:
    """Bytes that threads share: each waits until what it needs is there.

    limit: in bytes; nobody may ask for more.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, needed: int) -> Iterator[None]:
        """Hold so many bytes inside the block; waits for other threads to leave theirs."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= needed)
            self._free -= needed
        try:
            yield
        finally:
            with self._changed:
                self._free += needed
                self._changed.notify_all()


MEMORY = DecodingMemory(LIMIT)
