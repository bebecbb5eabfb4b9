"""Zips written byte by byte (APPNOTE.TXT of PKWARE), as no writer of Python would make them."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One member of a zip.

    name, extra: as they are stored.
    content:     what stands in the zip, compressed by `method`.
    size, crc:   of the plain content, as the zip claims; None: those of `content`.
    mode:        of a Unix file, 0 for none. disk: on which its header lies.
    """

    name: bytes
    content: bytes = b""
    method: int = 0
    flags: int = 0
    mode: int = 0
    extra: bytes = b""
    size: int | None = None
    crc: int | None = None
    disk: int = 0


def deflated(name: bytes, content: bytes, **fields) -> Member:
    """A member whose content is deflated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(content) + packer.flush()
    fields = {"size": len(content), "crc": zlib.crc32(content)} | fields
    return Member(name, packed, method=8, **fields)


def unicode_path(name: bytes, utf8: bytes) -> bytes:
    """Info-ZIP's extra field with the UTF-8 form of a name."""
    body = b"\1" + struct.pack("<L", zlib.crc32(name)) + utf8
    return struct.pack("<HH", 0x7075, len(body)) + body


def raw_zip(members: Sequence[Member], comment: bytes = b"") -> bytes:
    """The bytes of a zip of these members, in this order."""
    body, listed = b"", b""
    for one in members:
        crc = zlib.crc32(one.content) if one.crc is None else one.crc
        size = len(one.content) if one.size is None else one.size
        head = struct.pack("<HHHHHLLLHH", 20, one.flags, one.method, 0, 33, crc, len(one.content), size,
                           len(one.name), len(one.extra))  # fmt: skip
        rest = struct.pack("<HHHLL", 0, one.disk, 0, one.mode << 16, len(body))
        listed += b"PK\1\2" + struct.pack("<BB", 20, 3) + head + rest + one.name + one.extra
        body += b"PK\3\4" + head + one.name + one.extra + one.content
    end = struct.pack("<HHHHLLH", 0, 0, len(members), len(members), len(listed), len(body), len(comment))
    return body + listed + b"PK\5\6" + end + comment
