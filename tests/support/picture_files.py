"""Files of every format, mode, depth, orientation and colour profile, 24 x 16 pixels of noise."""

import io
import itertools
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.support.colour_profiles import P3, PROPHOTO, SRGB, cmyk_profile, grey_profile, rgb_profile
from tests.support.data_images import encoded, picture

WIDTH, HEIGHT = 24, 16  # the central square is 16 x 16, and a loader of that resolution does not resize it
ORIENTATIONS = range(1, 9)
PROFILES = {
    "none": None,
    "srgb": rgb_profile(SRGB),
    "p3": rgb_profile(P3, name="Display P3"),
    "prophoto": rgb_profile(PROPHOTO, 1.8),
    "linear": rgb_profile(SRGB, 1),
    "grey": grey_profile(1.8),
    "inks": cmyk_profile(),
    "broken": rgb_profile(P3)[:200],
}
FORMATS = {
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
    "TIFF": {},
    "BMP": {},
    "PPM": {},
    "GIF": {},
    "JPEG": {"quality": 95},
    "AVIF": {"speed": 10, "max_threads": 1},
    "JPEG2000": {},
}
TURNED = {"PNG", "WEBP", "TIFF", "JPEG", "AVIF"}  # say how they are turned, and carry profiles
MODES = ("1", "L", "P", "RGB", "LA", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "F")
TURNS_AND_PROFILES = [*((turn, "none") for turn in ORIENTATIONS), *((6, icc) for icc in PROFILES if icc != "none")]
SUFFIXES = {"JPEG": "jpg", "JPEG2000": "jp2", "TIFF": "tif"}


def pixels(mode: str) -> Image.Image:
    """Noise, the hardest case for grey made of clipped colours, with a transparent part where the mode has one."""
    noise = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 200 + noise[..., 1])
    if mode == "F":
        return Image.fromarray(noise[..., 0] / np.float32(255))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(np.repeat(noise[:, :1, 0], WIDTH, axis=1)))
    return image.quantize(16) if mode == "P" else image.convert(mode)


def exif(orientation: int) -> dict[str, bytes]:
    block = Image.Exif()
    block[0x0112] = orientation
    return {"exif": block.tobytes()} if orientation > 1 else {}


def raw_png(depth: int, colour_type: int, *before: bytes) -> bytes:
    """A PNG of noise. colour_type: as IHDR has it. before: chunks ahead of the pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    rows = np.random.default_rng(depth).integers(0, 256, (HEIGHT, WIDTH * channels * depth // 8), dtype=np.uint8)
    if colour_type in (4, 6):
        rows.reshape(HEIGHT, WIDTH, -1)[..., -(depth // 8) :] = 255
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour_type, 0, 0, 0))
    content = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + content + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def portable(kind: int, top: int) -> bytes:
    """A PPM, PGM or PBM of noise. kind: the number of its magic, 1 to 6. top: the value of white."""
    shape = (HEIGHT, WIDTH, 3 if kind in (3, 6) else 1)
    values = np.random.default_rng(top).integers(0, top + 1, shape)
    header = b"P%d %d %d" % (kind, WIDTH, HEIGHT) + (b"" if kind in (1, 4) else b" %d" % top) + b"\n"
    if kind <= 3:
        return header + b" ".join(b"%d" % value for value in values.reshape(-1))
    if kind == 4:
        return header + np.packbits(values[..., 0].astype(np.uint8), axis=1).tobytes()
    return header + values.astype(np.uint8 if top < 256 else ">u2").tobytes()


def tiff12() -> bytes:
    """A TIFF of grey with 12 bits: the ramp from black to white, two pixels in three bytes."""
    values = np.linspace(0, 4095, WIDTH * HEIGHT).round().astype(int).reshape(-1, 2)
    first, second = values.T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()
    tags = {256: WIDTH, 257: HEIGHT, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: HEIGHT, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)


def depths() -> Iterator[tuple[str, bytes]]:
    """(name, file) of other depths and maxima, of PNG's chunks that speak of tones, and of storage few programs use."""
    gammas = [chunk(b"gAMA", struct.pack(">I", value)) for value in (45455, 100000)]
    palette = chunk(b"PLTE", np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    for depth, colour_type in itertools.product((1, 2, 4, 8, 16), (0, 2, 3, 4, 6)):
        if depth < 8 <= 8 * (colour_type not in (0, 3)) or (depth == 16 and colour_type == 3):
            continue
        ahead = (chunk(b"PLTE", palette[8 : 8 + 3 * 2**depth]),) if colour_type == 3 else ()
        for number, tone in enumerate((b"", chunk(b"sRGB", b"\0"), *gammas)):
            yield f"depth{depth}-{colour_type}-{number}.png", raw_png(depth, colour_type, tone, *ahead)
    key = chunk(
        b"tRNS", struct.pack(">H", np.random.default_rng(16).integers(0, 256, 2, dtype=np.uint8).view(">u2")[0])
    )
    yield "key16.png", raw_png(16, 0, key)
    for kind, top in [(1, 1), (4, 1), *itertools.product((2, 3, 5, 6), (1, 15, 100, 255, 1023, 65535))]:
        yield f"portable{kind}-{top}.ppm", portable(kind, top)
    yield "12-bits.tif", tiff12()
    yield "big-endian.tif", encoded(Image.fromarray(np.asarray(pixels("I;16")).astype(">u2")), "TIFF")
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        yield f"{compression}.tif", encoded(pixels("RGB"), "TIFF", compression=compression)
    yield "interlaced.gif", encoded(pixels("P"), "GIF", interlace=1)
    yield "rgb.jpg", encoded(pixels("RGB"), "JPEG", keep_rgb=True)
    yield "halved.jpg", encoded(picture(3, WIDTH, HEIGHT), "JPEG", subsampling=2)
    yield "progressive.jpg", encoded(pixels("RGB"), "JPEG", progressive=True)
    yield "rle.bmp", encoded(pixels("P"), "BMP")
    for value in (3, bytes(range(0, 256, 16))):  # one transparent colour; an alpha for each
        yield f"hole-{type(value).__name__}.png", encoded(pixels("P"), "PNG", transparency=value)
    yield "hole.gif", encoded(pixels("P"), "GIF", transparency=3)
    yield "float255.tif", encoded(Image.fromarray(np.asarray(pixels("L")).astype(np.float32)), "TIFF")
    yield "int32.tif", encoded(Image.fromarray(np.asarray(pixels("I;16")).astype(np.int32)), "TIFF")
    yield "late.png", late_exif()
    yield "xmp.jpg", encoded(pixels("RGB"), "JPEG", quality=95, extra=xmp_segment(6))


def late_exif() -> bytes:
    """A PNG whose EXIF block stands behind the pixels."""
    data, block = encoded(pixels("RGB"), "PNG"), exif(6)["exif"].removeprefix(b"Exif\0\0")
    return data[:-12] + chunk(b"eXIf", block) + data[-12:]


def xmp_segment(orientation: int) -> bytes:
    """The segment of a JPEG file whose XMP says how it is turned, where no EXIF does."""
    words = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{orientation}"/></x:xmpmeta>'
    content = b"http://ns.adobe.com/xap/1.0/\0" + words.encode()
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


WHITES = {"12-bits.tif": 4095, "float255.tif": 255}


def product(every: int = 1) -> Iterator[tuple[str, bytes]]:
    """(name, file) of the combinations that Pillow can write; of each seventh one for every=7."""
    combinations = itertools.product(FORMATS.items(), MODES, TURNS_AND_PROFILES)
    for (kind, options), mode, (turn, icc) in itertools.islice(combinations, 0, None, every):
        if kind not in TURNED and (turn, icc) != (1, "none"):
            continue
        if kind == "AVIF" and mode not in ("L", "RGB", "RGBA"):  # all it has, and encoding takes long
            continue
        said = {"tiffinfo": {274: turn}} if kind == "TIFF" else exif(turn)
        if icc != "none":
            said["icc_profile"] = PROFILES[icc]
        try:
            data = encoded(pixels(mode), kind, **options, **said)
            if mode == "YCbCr":  # Pillow up to 12.0 writes TIFF files of it that it does not read
                Image.open(io.BytesIO(data)).load()
        except (OSError, ValueError, KeyError):  # the format has no such mode
            continue
        yield f"{kind}-{mode.replace(';', '_')}-{turn}-{icc}.{SUFFIXES.get(kind, kind.lower())}", data
