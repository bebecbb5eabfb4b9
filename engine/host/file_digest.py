"""The SHA-256 of a file that may be larger than memory."""

import hashlib
from pathlib import Path

from engine.host.input_files import UnreadableFile, open_input, reason


def sha256(path: Path) -> str:
    """64 hexadecimal digits of the content, read in blocks. Raises UnreadableFile when the file cannot be read."""
    digest = hashlib.sha256()
    with open_input(path) as file:
        try:
            while block := file.read(1 << 20):
                digest.update(block)
        except OSError as error:
            raise UnreadableFile(reason(error)) from error
    return digest.hexdigest()
