"""The SHA-256 of a file that may be larger than memory."""

import hashlib
from pathlib import Path


def sha256(path: Path) -> str:
    """64 hexadecimal digits of the content, read in blocks. Raises OSError when the file cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
