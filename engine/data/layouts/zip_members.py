"""What a zip lists, whichever program wrote it: its members by the names that they would have in a folder."""

import copy
import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import IO
from zipfile import ZipFile, ZipInfo

from engine.host.contained_paths import leads_out
from engine.host.input_files import LFS_POINTER, UnreadableFile, is_lfs_pointer, megabytes, reason, too_large

MAX_LIST_BYTES = 1 << 27  # of a zip's list of members, which is held in memory: some two million names
ENCRYPTED = 0x41  # flag bits: a member, or the whole list, needs a password
_UTF8 = 0x800  # flag bit: the name is UTF-8
_UNICODE_PATH = 0x7075  # extra field of Info-ZIP: the name in UTF-8, beside one in the code page of the writer
_DRIVE = re.compile(r"[A-Za-z]:/")
_FOLDER = 0x10  # attribute of MS-DOS
_METHODS = {6: "Implode", 9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 98: "PPMd"}
_STEP = 1 << 20  # bytes that are unpacked at a time


def open_zip(file: io.BufferedReader) -> ZipFile:
    """The zip in a file. Raises whatever zipfile raises for a damaged one."""
    return ZipFile(_ListReader(file.detach()))


class _ListReader(io.BufferedReader):
    """A file in which no list of members is read that is longer than MAX_LIST_BYTES: zipfile reads it at once."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_LIST_BYTES:
            raise zipfile.BadZipFile(
                f"its list of members has {megabytes(size)}; Kiln reads up to {megabytes(MAX_LIST_BYTES)}"
            )
        return super().read(size)


def name_members(members: Iterable[ZipInfo]) -> Iterator[tuple[str, ZipInfo]]:
    """Each member with its name: "/" between folders, also where a tool of Windows wrote backslashes."""
    for member in members:
        yield _stored_name(member).replace("\\", "/"), member


def plain_name(name: str) -> str:
    """The name without what means nothing in it: `.` and doubled slashes."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def is_folder(name: str, member: ZipInfo) -> bool:
    """Whether a member is a folder without content; its files are members of their own."""
    named = name.endswith("/") or stat.S_ISDIR(member.external_attr >> 16) or member.external_attr & _FOLDER
    return bool(named) and not member.file_size


def why_not(name: str, member: ZipInfo) -> str:
    """Why a member is not taken for a file; "" for one that is."""
    if why := leads_out(name):
        return f"{why}: no file of this zip"
    if _DRIVE.match(name):
        return "has a drive in its name: no file of this zip"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a symbolic link, which is not followed in a zip: zip what it stands for, or unpack the zip"
    if name.endswith("/") or kind == stat.S_IFDIR:
        return "a folder that has content of its own"
    if kind not in (0, stat.S_IFREG):
        return "neither a file nor a folder"
    return "" if plain_name(name) else "has no name"


def read_member(archive: ZipFile, member: ZipInfo, limit: int) -> bytes:
    """The bytes of a member. Raises UnreadableFile, also where it has more than `limit` bytes, or other than listed."""
    if member.file_size > limit:
        raise UnreadableFile(too_large(member.file_size, limit))
    data = read_start(archive, member, member.file_size)
    if len(data) != member.file_size:
        raise UnreadableFile(f"damaged zip member ({len(data):,} of {member.file_size:,} bytes)")
    if zlib.crc32(data) != member.CRC:
        raise UnreadableFile("damaged zip member (its bytes do not have the checksum that the zip lists)")
    if is_lfs_pointer(data):
        raise UnreadableFile(LFS_POINTER)
    return data


def read_start(archive: ZipFile, member: ZipInfo, count: int) -> bytes:
    """The first `count` bytes of a member, unpacked in steps, so that no more is held. Raises UnreadableFile."""
    pieces, left = [], count
    try:
        with _open(archive, member) as file:
            while left and (piece := file.read(min(_STEP, left))):
                pieces.append(piece)
                left -= len(piece)
        return b"".join(pieces)
    except (NotImplementedError, RuntimeError, ImportError) as error:
        method = _METHODS.get(member.compress_type, f"method {member.compress_type}")
        raise UnreadableFile(
            f"compressed with {method}, which this Python cannot read ({error}): unpack it, or zip it with Deflate"
        ) from error
    except (OSError, MemoryError) as error:
        raise UnreadableFile(reason(error)) from error
    except Exception as error:  # a parser that meets arbitrary bytes may raise anything
        raise UnreadableFile(f"damaged zip member ({error})") from error


def _open(archive: ZipFile, member: ZipInfo) -> IO[bytes]:
    """A member as a file that unpacks no more than is read of it."""
    if member.compress_type not in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        return archive.open(member)
    # zipfile unpacks at once whatever some KB of these hold, which may be GB
    packed = copy.copy(member)
    packed.compress_type, packed.file_size, packed.CRC = zipfile.ZIP_STORED, member.compress_size, None
    file = archive.open(packed)
    if member.compress_type == zipfile.ZIP_BZIP2:
        import bz2  # here, because a Python may lack it

        return bz2.BZ2File(file)
    import lzma  # as bz2

    _, size = struct.unpack("<HH", file.read(4))
    numbers, dictionary = struct.unpack("<BL", file.read(size))
    options = {"lc": numbers % 9, "lp": numbers // 9 % 5, "pb": numbers // 45, "dict_size": dictionary}
    return lzma.LZMAFile(file, format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1} | options])


def _stored_name(member: ZipInfo) -> str:
    """The name as it was written: UTF-8 where it is said to be, or is valid as such, else in code page 437."""
    if member.flag_bits & _UTF8:
        return member.orig_filename
    stored = member.orig_filename.encode("cp437")  # zipfile's reading of a name without the flag
    try:
        return _unicode_path(member.extra, stored) or stored.decode()
    except UnicodeDecodeError:
        return member.orig_filename


def _unicode_path(extra: bytes, stored: bytes) -> str:
    """The name in the field of Info-ZIP, where there is one that belongs to the stored name; else ""."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and field[:5] == b"\1" + struct.pack("<L", zlib.crc32(stored)):
            return field[5:].decode()
    return ""
