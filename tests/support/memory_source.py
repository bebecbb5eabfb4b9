"""A source of files that stands in memory, for tests of layouts that decode no picture."""

import io
from pathlib import Path

import numpy as np

from engine.data.layouts.sources import Stamp
from engine.host.input_files import UnreadableFile


class MemorySource:
    """Files by name, read as FolderSource reads them; an image may be empty, because layouts do not open it."""

    def __init__(self, files: dict[str, bytes], root: str = "/home/me/my set") -> None:
        self.root = Path(root)
        self.name = self.root.name
        self._files = files

    def files(self) -> list[str]:
        return sorted(self._files)

    def stamp(self, name: str) -> Stamp:
        return Stamp(len(self._files[name]), 0, 0)

    def read(self, name: str, limit: int = 0) -> bytes:
        if name not in self._files:
            raise UnreadableFile("cannot be read: No such file or directory")
        return self._files[name]


def npy(array: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()
