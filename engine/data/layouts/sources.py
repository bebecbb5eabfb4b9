"""Where image files come from: a folder with all its subfolders, or a zip. Both list sorted names and read by name."""

import os
import zipfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipInfo

from engine.data.layouts import zip_members
from engine.errors import InputError
from engine.host import input_files
from engine.host.contained_paths import contained
from engine.host.input_files import MAX_FILE_BYTES, UnreadableFile, open_input, read_input, reason

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".avif",
})  # fmt: skip
_LEFT_BY_SYSTEMS = frozenset({"__macosx", "thumbs.db", "desktop.ini"})


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


class FolderSource:
    """The files below a folder. Symbolic links are followed; each real folder is entered once, so loops end.

    passed_over: after `files`, (name, reason) of the folders that cannot be listed and of the links that lead nowhere.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = root.resolve().name or str(root)
        self.passed_over: list[tuple[str, str]] = []

    def files(self) -> list[str]:
        """Sorted names relative to the root, with "/" between folders; dotfiles and what systems leave are left out.

        A folder that has links to it is listed by its own name where that lies below the root. Raises InputError where
        the root cannot be listed.
        """
        self.passed_over = []
        listed: list[str] = []
        entered: set[tuple[int, int]] = set()
        real, links = [""], deque[str]()  # folders yet to enter: those behind links only after all others
        while real or links:
            folder = real.pop() if real else links.popleft()
            for name, entry in self._entries(folder, entered):
                try:
                    is_folder = entry.is_dir()
                    if entry.is_symlink():
                        entry.stat()  # raises where it leads nowhere
                except OSError as error:
                    self.passed_over.append((name, reason(error)))
                    continue
                if is_folder:
                    (links if entry.is_symlink() else real).append(name)
                else:
                    listed.append(name)
        self.passed_over.sort()
        return sorted(listed)

    def _entries(self, folder: str, entered: set[tuple[int, int]]) -> list[tuple[str, os.DirEntry[str]]]:
        """Names and entries of a folder, sorted; none where it was entered before, which `entered` records."""
        try:
            status = os.stat(self.root / folder)
            if (status.st_dev, status.st_ino) in entered:
                return []
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(self.root / folder) as entries:
                return sorted((f"{folder}/{e.name}" if folder else e.name, e) for e in entries if not _hidden(e.name))
        except OSError as error:
            if not folder:
                raise InputError(f"{self.root} cannot be listed ({error.strerror}): check its rights") from error
            self.passed_over.append((folder, f"a folder that cannot be listed ({error.strerror}): check its rights"))
            return []

    def stamp(self, name: str) -> Stamp:
        """Size and times of a file. Raises UnreadableFile when the file is gone."""
        try:
            status = os.stat(contained(self.root, name))
        except OSError as error:
            raise UnreadableFile(reason(error)) from error
        return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """The bytes of a file. Raises UnreadableFile, also where it has more than `limit` bytes."""
        return read_input(contained(self.root, name), limit)

    def read_start(self, name: str, count: int) -> bytes:
        """The first `count` bytes of a file. Raises UnreadableFile."""
        return input_files.read_start(contained(self.root, name), count)


class ZipSource:
    """The members of a zip, read in place: nothing is extracted. Raises InputError for an encrypted or broken zip.

    passed_over: (name, reason) of the members that are not taken for files.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = root.name
        try:
            self._zip = zip_members.open_zip(open_input(root))
        except UnreadableFile as error:
            raise InputError(f"{root}: {error}") from error
        except Exception as error:  # a parser that meets arbitrary bytes may raise anything
            raise InputError(
                f"{root} is not a readable zip ({error}): copy it or make it again, or unpack it"
            ) from error
        self._members: dict[str, ZipInfo] = {}
        self.passed_over: list[tuple[str, str]] = []
        for name, member in zip_members.name_members(self._zip.infolist()):
            self._take(name, member)
        status = root.stat()
        self._changed = (status.st_mtime_ns, status.st_ctime_ns)

    def _take(self, written: str, member: ZipInfo) -> None:
        """Enter a member among the files or those passed over. Raises InputError where another tool is needed."""
        name = zip_members.plain_name(written)
        if any(map(_hidden, name.split("/"))) or zip_members.is_folder(written, member):
            return
        if member.flag_bits & zip_members.ENCRYPTED:
            raise InputError(f"{self.root} is encrypted: unpack it to a folder with its password, then give the folder")
        if member.volume:
            raise InputError(
                f"{self.root} is one of several parts of a zip: join them (zip -s 0 {self.name} --out whole.zip)"
            )
        if why := zip_members.why_not(written, member):
            self.passed_over.append((written, why))
            return
        if name in self._members:
            self.passed_over.append((name, "named twice in the zip; the last one counts, as when it is unpacked"))
        self._members[name] = member

    def files(self) -> list[str]:
        """Sorted member names; folders, dotfiles and what systems leave are left out."""
        return sorted(self._members)

    def stamp(self, name: str) -> Stamp:
        """The member's size and CRC, and the times of the zip itself. Raises UnreadableFile when the zip is gone."""
        try:
            status = self.root.stat()
        except OSError as error:
            raise UnreadableFile(reason(error)) from error
        member = self._members[name]
        return Stamp(member.file_size, (member.CRC << 32) ^ status.st_mtime_ns, status.st_ctime_ns)

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """The bytes of a member. Raises UnreadableFile for a damaged member, one that has more than `limit` bytes, or a
        zip changed since it was opened.
        """
        self._check_unchanged()
        return zip_members.read_member(self._zip, self._members[name], limit)

    def read_start(self, name: str, count: int) -> bytes:
        """The first `count` bytes of a member. Raises UnreadableFile as `read` does."""
        self._check_unchanged()
        return zip_members.read_start(self._zip, self._members[name], count)

    def _check_unchanged(self) -> None:
        try:
            status = self.root.stat()
        except OSError as error:
            raise UnreadableFile(reason(error)) from error
        if (status.st_mtime_ns, status.st_ctime_ns) != self._changed:
            raise UnreadableFile("the zip has changed since it was opened")


Source = FolderSource | ZipSource


def open_source(path: Path) -> Source:
    """The folder or zip at `path`. Raises InputError when nothing or something else is there."""
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise InputError(f"there is no folder or zip at {path}")
    if is_zip(path):
        return ZipSource(path)
    raise InputError(f"{path} is a file: give the folder that holds the images, or a zip of them")


def is_zip(path: Path) -> bool:
    """Whether the file at `path` is a zip, by its suffix or by its content. Raises InputError where it is no file."""
    if path.suffix.lower() == ".zip":
        return True
    try:
        with open_input(path) as file:
            return zipfile.is_zipfile(file)
    except UnreadableFile as error:
        raise InputError(f"{path}: {error}") from error


def is_image_name(name: str) -> bool:
    """Whether the name has an image suffix (any case)."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _hidden(part: str) -> bool:
    return (part.startswith(".") and part != "..") or part.lower() in _LEFT_BY_SYSTEMS
