"""One rendering process of `write`: `python -m engine.data.avatars.worker FOLDER COUNT FRAMES SIZE SEED SHARE SHARES`.

It writes the pictures of its share, and for each frame one record to standard output.
"""

import errno
import os
import sys
from pathlib import Path

from engine.data.avatars import record
from engine.data.avatars.writing import render_share


def main(arguments: list[str]) -> int:
    """Render one share. The exit status is 1 when a file cannot be written, which is told, or the parent has gone."""
    folder, numbers = Path(arguments[0]), [int(a) for a in arguments[1:]]
    try:
        for row, marks in render_share(folder, *numbers):
            if not _told(record.pack(row, marks)):
                return 1
    except KeyboardInterrupt:
        return 1
    except OSError as error:
        _told(record.failure(error.errno or errno.EIO))
        return 1
    except MemoryError:
        _told(record.failure(errno.ENOMEM))
        return 1
    return 0


def _told(packed: bytes) -> bool:
    """Whether the parent has a record; a pipe takes so few bytes at once or not at all."""
    try:
        return os.write(1, packed) == len(packed)
    except BrokenPipeError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
