"""One rendering process of `write`: `python -m engine.data.avatars.worker FOLDER COUNT FRAMES SIZE SEED SHARE SHARES`.

It writes the pictures of its share, and for each frame one record to standard output: the row as int32, then the
landmarks (68, 2) as float32.
"""

import os
import sys
from pathlib import Path

from engine.data.avatars.writing import render_share


def main(arguments: list[str]) -> int:
    """Render one share. The exit status is 1 when a file cannot be written (with one line) or the parent has gone."""
    folder, numbers = Path(arguments[0]), [int(a) for a in arguments[1:]]
    try:
        for row, marks in render_share(folder, *numbers):
            record = row.to_bytes(4, "little") + marks.astype("<f4").tobytes()
            if os.write(1, record) != len(record):
                return 1
    except (BrokenPipeError, KeyboardInterrupt):
        return 1
    except OSError as error:
        print(f"kiln: avatars: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
