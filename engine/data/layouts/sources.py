"""Where image files come from: a folder with all its subfolders, or a zip. Both list sorted names and read by name."""

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InputError

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".avif",
})  # fmt: skip
MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells, without reading a file, that the file is still the same.

    size:     in bytes.
    modified: time of the last change in ns; for a member of a zip its CRC and the zip's time, mixed.
    changed:  time of the last change of the content or of its name and rights, in ns; for a member of a zip, the zip's.
    """

    size: int
    modified: int
    changed: int


class UnreadableFile(Exception):
    """One file cannot be read; the message says why. Other files of the source still can."""


class FolderSource:
    """The files below a folder. Symbolic links are followed; each real folder is entered once, so loops end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = root.resolve().name or str(root)

    def files(self) -> list[str]:
        """Sorted names relative to the root, with "/" between folders; dotfiles and __MACOSX left out."""
        listed: list[str] = []
        entered: set[tuple[int, int]] = set()
        for folder, subfolders, names in os.walk(self.root, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                subfolders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
            prefix = Path(folder).relative_to(self.root)
            listed += [(prefix / name).as_posix() for name in names if not _hidden(name)]
        return sorted(listed)

    def stamp(self, name: str) -> Stamp:
        """Size and times of a file. Raises UnreadableFile when the file is gone."""
        try:
            status = os.stat(self.root / name)
        except OSError as error:
            raise UnreadableFile(_reason(error)) from error
        return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises UnreadableFile."""
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise UnreadableFile(_reason(error)) from error


class ZipSource:
    """The members of a zip, read in place: nothing is extracted. Raises InputError for an encrypted or broken zip."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = root.name
        try:
            self._zip = zipfile.ZipFile(root)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            raise InputError(f"{root} is not a readable zip ({error}): make it again, or unpack it") from error
        members = [m for m in self._zip.infolist() if not m.is_dir() and not any(map(_hidden, m.filename.split("/")))]
        if any(member.flag_bits & 1 for member in members):
            raise InputError(f"{root} is encrypted: unpack it to a folder with its password, then give the folder")
        self._members = {member.filename: member for member in members}
        status = root.stat()
        self._changed = (status.st_mtime_ns, status.st_ctime_ns)

    def files(self) -> list[str]:
        """Sorted member names; folders, dotfiles and __MACOSX left out."""
        return sorted(self._members)

    def stamp(self, name: str) -> Stamp:
        """The member's size and CRC, and the times of the zip itself. Raises UnreadableFile when the zip is gone."""
        try:
            status = self.root.stat()
        except OSError as error:
            raise UnreadableFile(_reason(error)) from error
        member = self._members[name]
        return Stamp(member.file_size, (member.CRC << 32) ^ status.st_mtime_ns, status.st_ctime_ns)

    def read(self, name: str) -> bytes:
        """The bytes of a member. Raises UnreadableFile for a damaged member, or a zip changed since it was opened."""
        try:
            status = self.root.stat()
            if (status.st_mtime_ns, status.st_ctime_ns) != self._changed:
                raise UnreadableFile("the zip has changed since it was opened")
            return self._zip.read(self._members[name])
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise UnreadableFile(f"damaged zip member ({error})") from error
        except OSError as error:
            raise UnreadableFile(_reason(error)) from error


Source = FolderSource | ZipSource


def open_source(path: Path) -> Source:
    """The folder or zip at `path`. Raises InputError when nothing or something else is there."""
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise InputError(f"there is no folder or zip at {path}")
    if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
        return ZipSource(path)
    raise InputError(f"{path} is a file: give the folder that holds the images, or a zip of them")


def is_image_name(name: str) -> bool:
    """Whether the name has an image suffix (any case)."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _reason(error: OSError) -> str:
    return f"cannot be read: {error.strerror or error}"
