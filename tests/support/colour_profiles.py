"""Embedded colour profiles (ICC version 2) for the tests, written from the specification (ICC.1:2001-04)."""

import struct

import numpy as np

# columns X, Y, Z of the primaries red, green and blue, adapted to D50
SRGB = ((0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
PROPHOTO = ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249))
D50 = (0.9642, 1.0, 0.8249)


def _curve(gamma: float) -> bytes:
    """A tone curve; 0 is the curve of sRGB."""
    if gamma:
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    x = np.linspace(0, 1, 1024)
    y = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return b"curv" + bytes(4) + struct.pack(">I", 1024) + (y * 65535).round().astype(">u2").tobytes()


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def _text(words: str) -> bytes:
    ascii_words = words.encode() + b"\0"
    return b"desc" + bytes(4) + struct.pack(">I", len(ascii_words)) + ascii_words + bytes(78)


def _profile(space: bytes, pcs: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x02400000, kind, space, pcs)
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", *(round(value * 65536) for value in D50))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(primaries: tuple[tuple[float, ...], ...], gamma: float = 0, name: str = "a test's") -> bytes:
    """A matrix profile of RGB. gamma: of the tone curves; 0: those of sRGB, 1: linear."""
    tags = {b"desc": _text(name), b"wtpt": _xyz(D50)}
    for colour, column in zip(b"rgb", primaries, strict=True):
        tags[bytes([colour]) + b"XYZ"], tags[bytes([colour]) + b"TRC"] = _xyz(column), _curve(gamma)
    return _profile(b"RGB ", b"XYZ ", b"mntr", tags)


def grey_profile(gamma: float) -> bytes:
    """A profile of grey pictures with this tone curve."""
    return _profile(b"GRAY", b"XYZ ", b"mntr", {b"desc": _text("grey"), b"wtpt": _xyz(D50), b"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """A table profile of CMYK: lightness falls with the ink, cyan to blue-green, magenta to red, yellow to yellow."""
    ramp = bytes(range(256))
    cells = []
    for c, m, y, k in np.ndindex(2, 2, 2, 2):
        light = max(0.0, 1 - 0.3 * c - 0.3 * m - 0.1 * y - 0.9 * k)
        cells += [light * 255, 128 - 40 * c + 60 * m, 128 - 40 * c - 10 * m + 80 * y]
    table = np.clip(cells, 0, 255).round().astype(np.uint8).tobytes()
    matrix = struct.pack(">9i", *(65536 * int(i in (0, 4, 8)) for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * ramp + table + 3 * ramp
    return _profile(b"CMYK", b"Lab ", b"prtr", {b"desc": _text("inks"), b"wtpt": _xyz(D50), b"A2B0": lut})
