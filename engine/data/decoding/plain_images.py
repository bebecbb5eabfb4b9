"""What Pillow reads: the headers of files, and a plain form of files that DALI does not read as people see them.

The plain form of a picture is its first frame, upright, in the colours of sRGB, opaque, with 8 bits a channel.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from engine.data.decoding.colour_profiles import Profile, read_profile
from engine.data.decoding.decoding_memory import LIMIT, MEMORY
from engine.data.decoding.stored_squares import FIRST_SIDEWAYS

MIN_SIDE, MAX_SIDE = 8, 1 << 20  # DALI decodes no larger side
BACKDROP = 128  # mid-grey behind transparent pixels
# Format -> (mode, storage), both in Pillow's names, of the files that DALI shows as Pillow does. Of TIFF and BMP there
# are too many kinds; DALI 2.4 crashes on damaged JPEG 2000 files, and shows PPM of another maximum than 255 too dark.
_AS_IS = {
    "JPEG": {("L", "L"), ("RGB", "RGB")},
    "MPO": {("L", "L"), ("RGB", "RGB")},
    "PNG": {(mode, mode) for mode in ("1", "L", "P", "RGB", "LA", "RGBA")},
    "WEBP": {("RGB", "RGB"), ("RGB", "RGBX"), ("RGBA", "RGBA")},
    "PPM": {("1", "1;I"), ("L", "L"), ("RGB", "RGB")},
}
_UNCOUNTED, _COUNTED_BYTES = {"GIF", "TIFF"}, 4 << 20  # a file tells how many frames it has only when it is read whole
_PLAIN_CODECS = {"jpeg", "raw", "zip"}  # Pillow's decoders that store pixels as they find them
# Ghostscript, a program, draws EPS files; the others hold pictures of their own, whose sizes their headers do not tell
_REFUSED = {"EPS", "ICNS", "ICO", "CUR"}
_DAMAGE = Exception  # a parser that meets arbitrary bytes may raise anything
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # grey with more than 8 bits
_COLOURS = {"1": "L", "L": "L", "LA": "L", "La": "L", **dict.fromkeys(_DEEP_MODES, "L"), "CMYK": "CMYK", "LAB": "LAB"}
_ORIENTATION = 0x0112
_TIFF_SIZE, _TIFF_BITS = (256, 257), 258  # tags
_UPRIGHT = {  # orientation -> the way to upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRIP = 1 << 20  # pixels that are brought into the plain form together
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}  # per pixel in Pillow's memory; 4 in every other mode
_CODEC_BYTES = {"AVIF": 12, "JPEG2000": 16, "WEBP": 12, "PPM": 8}  # per pixel in the codec's own memory
_PROGRESSIVE_BYTES = 6  # per pixel: the coefficients of a progressive JPEG file


class BadImage(Exception):
    """The file cannot be used; the message says why, in a few words."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of an image file says.

    format, mode:  as Pillow names them.
    width, height: in pixels as displayed (after EXIF rotation).
    orientation:   1 to 8, as EXIF counts: how the pixels that are stored must be turned.
    convert:       why DALI must be given Pillow's rendition instead of the file; "" when DALI reads the file itself.
    frame:         which frame is used, "first of 3 frames"; "" where there is one only.
    profile:       what the embedded colour profile means; None where there is none.
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int
    convert: str
    frame: str
    profile: Profile | None


def inspect(data: bytes) -> Header:
    """What the header of a file says; only the header is read, and the alpha channel where there is one.

    Raises BadImage.
    """
    with _open(data) as image:
        stored, storage = _stored_size(image), _storage(image)
        _check_sides(image)
        _read_late_words(image, data)
        orientation = _orientation(image)
        width, height = stored[::-1] if orientation >= FIRST_SIDEWAYS else stored
        frame, profile = _frame(image, data), _profile(image)
        convert = _why_convert(image, storage, frame, profile)
        _needed_bytes(image, rendered=bool(convert))
        return Header(image.format or "?", image.mode, width, height, orientation, convert, frame, profile)


def plain_bytes(data: bytes) -> bytearray:
    """The plain form of a file, RGB or grey, as PPM or PGM bytes. Raises BadImage when the file is damaged."""
    with _plain(data) as (mode, (width, height), strips):
        kind, channels = (b"P6", 3) if mode == "RGB" else (b"P5", 1)
        header = b"%s\n%d %d\n255\n" % (kind, width, height)
        out, at = bytearray(len(header) + width * height * channels), len(header)
        out[:at] = header
        for strip in strips:
            pixels = strip.tobytes()
            out[at : at + len(pixels)] = pixels
            at += len(pixels)
    return out


def plain_image(data: bytes) -> Image.Image:
    """The plain form of a file, in the mode RGB or L. Raises BadImage when the file is damaged."""
    with _plain(data) as (mode, size, strips):
        image, top = Image.new(mode, size), 0
        for strip in strips:
            image.paste(strip, (0, top))
            top += strip.height
    return image


@contextmanager
def _plain(data: bytes) -> Iterator[tuple[str, tuple[int, int], Iterator[Image.Image]]]:
    """The plain form of a file: its mode, its size, and its strips from top to bottom, to be used inside the block."""
    with _open(data) as image, MEMORY.reserved(_needed_bytes(image, rendered=True)):
        image.load()
        profile, white = _profile(image), _white(image)
        orientation = _orientation(image)  # a TIFF file has turned itself when it was loaded
        if orientation > 1:
            turned = image.transpose(_UPRIGHT[orientation])
            image.close()  # frees the pixels, which the block above still refers to
            image = turned
        mode = "L" if _colours(image) == "L" and not _may_be_transparent(image) else "RGB"
        yield mode, image.size, (_plain_strip(strip, mode, profile, white) for strip in _strips(image))


@contextmanager
def _open(data: bytes) -> Iterator[Image.Image]:
    """The file, opened but not decoded. Whatever a parser raises inside the block becomes BadImage."""
    if not data:
        raise BadImage("empty file (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            yield image
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(_too_large(error)) from error
    except UnidentifiedImageError as error:
        raise BadImage("not an image (no known format recognised)") from error
    except MemoryError as error:
        raise BadImage("too large to decode (no memory is left)") from error
    except _DAMAGE as error:
        raise _damaged(error) from error


@cache
def _formats() -> tuple[str, ...]:
    """The formats that are read: those that Pillow knows, and its plugins, without the refused ones."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _REFUSED)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height before turning. Pillow 12 and newer give those of a TIFF file as displayed."""
    if image.format != "TIFF":
        return image.size
    width, height = (int(image.tag_v2[tag]) for tag in _TIFF_SIZE)
    return width, height


def _check_sides(image: Image.Image) -> None:
    """Raises BadImage for a picture of which nothing can be made because it is too small or too long."""
    sides = f"{image.width}x{image.height}"
    if min(image.size) < MIN_SIDE:
        raise BadImage(f"too small ({sides}; at least {MIN_SIDE}x{MIN_SIDE})")
    if max(image.size) > MAX_SIDE:
        raise BadImage(f"too large to decode ({sides}; at most {MAX_SIDE} pixels a side)")


def _orientation(image: Image.Image) -> int:
    """1 to 8, as Pillow finds it in EXIF or XMP; 1 where nothing (or nothing legible) is said."""
    try:
        # the method of PNG images would decode the whole file first
        value = Image.Image.getexif(image).get(_ORIENTATION)
        return int(value) if value in _UPRIGHT else 1
    except _DAMAGE:
        return 1


def _read_late_words(image: Image.Image, data: bytes) -> None:
    """Decode a PNG file that may have EXIF or XMP behind its pixels: Pillow reads them only then."""
    pixels = data.find(b"IDAT") if image.format == "PNG" else -1
    if pixels >= 0 and any(data.find(name, pixels) >= 0 for name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")):
        with MEMORY.reserved(_needed_bytes(image, rendered=True)):
            image.load()


def _frame(image: Image.Image, data: bytes) -> str:
    """Which frame of the file is used, in words; "" where there is one only, as in a phone's MPO file of many sizes."""
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return ""
    if image.format in _UNCOUNTED and len(data) > _COUNTED_BYTES:
        return "first of several frames"
    return f"first of {image.n_frames} frames"


def _profile(image: Image.Image) -> Profile | None:
    """What the embedded colour profile means; None where there is none."""
    if "icc_profile" not in image.info:
        return None
    data = image.info["icc_profile"]  # None where Pillow found a damaged one
    return read_profile(data if isinstance(data, bytes) else b"", _colours(image))


def _why_convert(image: Image.Image, storage: str, frame: str, profile: Profile | None) -> str:
    """Why DALI must be given Pillow's rendition of this image; "" when DALI reads the file as people see it."""
    reasons = []
    if frame:
        reasons.append(frame)
    elif image.format not in _AS_IS:
        reasons.append(f"{image.format} file")
    elif (image.mode, storage) not in _AS_IS[image.format]:
        known = any(mode == image.mode for mode, _ in _AS_IS[image.format])
        reasons.append(f"stored as {storage}" if known else f"mode {image.mode}")
    elif _may_be_transparent(image) and not _is_opaque(image):
        reasons.append("transparent pixels")
    if profile and profile.transform:
        reasons.append(f"colour profile {profile.name}")
    elif profile and not profile.usable:
        reasons.append("unusable colour profile")
    return ", ".join(reasons)


def _storage(image: Image.Image) -> str:
    """How the file holds the pixels: Pillow's raw mode, or the name of a decoder that does more than unpack them.

    Ask before the image is decoded; "" for a format whose images do not tell.
    """
    if image.format == "WEBP":
        return image.rawmode
    if not getattr(image, "tile", None):
        return ""
    codec, _, _, arguments = image.tile[0]
    if codec not in _PLAIN_CODECS:
        return codec
    return arguments if isinstance(arguments, str) else arguments[0]


def _needed_bytes(image: Image.Image, *, rendered: bool) -> int:
    """The bytes that decoding takes at most, of which four a pixel are the result. Raises BadImage above the limit.

    rendered: by Pillow, and brought into the plain form; False: by DALI.
    """
    held = _BYTES.get(image.mode, 4)
    each = 4 + (held if rendered else 0) + _CODEC_BYTES.get(image.format or "", 0)
    if image.info.get("progressive"):
        each += _PROGRESSIVE_BYTES
    pixels = image.width * image.height
    if pixels * each > LIMIT:
        size, needed = f"{pixels / 1e6:,.0f} Mpx, mode {image.mode}", f"{pixels * each / 1e9:.1f} GB"
        raise BadImage(f"too large to decode ({size}, takes {needed}; limit {LIMIT / 1e9:.1f} GB)")
    return pixels * each


def _may_be_transparent(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in _ALPHA_MODES


def _is_opaque(image: Image.Image) -> bool:
    with MEMORY.reserved(_needed_bytes(image, rendered=True)):
        image.load()
        return all(_alpha(strip).getextrema() == (255, 255) for strip in _strips(image))


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """Parts of the whole width, from top to bottom."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _plain_strip(strip: Image.Image, mode: str, profile: Profile | None, white: int) -> Image.Image:
    """A strip in the plain form, in the mode RGB or L."""
    alpha = _alpha(strip) if _may_be_transparent(strip) else None
    strip.info.pop("transparency", None)  # else Pillow carries it into the next mode, or warns that it cannot
    colours = _eight_bit(strip, white) if strip.mode in _DEEP_MODES else strip
    if strip.mode in ("La", "RGBa"):
        colours = colours.convert(strip.mode.upper())
    colours = colours.convert(_colours(strip))
    if profile and profile.transform:
        colours = profile.transform.apply(colours)
    if alpha is not None:
        backdrop = Image.new("RGB", strip.size, (BACKDROP, BACKDROP, BACKDROP))
        colours = Image.composite(colours.convert("RGB"), backdrop, alpha)
    return colours.convert(mode)


def _colours(image: Image.Image) -> str:
    """The mode of an image's colours, without alpha, with 8 bits: L, RGB, CMYK or LAB."""
    return _COLOURS.get(image.mode, "RGB")


def _alpha(image: Image.Image) -> Image.Image:
    """The alpha channel, in the mode L, of an image that may be transparent."""
    if image.mode in _DEEP_MODES:
        return Image.fromarray(np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8))
    return (image if image.mode in _ALPHA_MODES else image.convert("RGBA")).getchannel("A")


def _white(image: Image.Image) -> int:
    """The value that white has in a file of grey with more than 8 bits."""
    if image.mode == "F":
        return 1 if image.getextrema()[1] <= 1 else 255
    return 4095 if image.format == "TIFF" and image.tag_v2.get(_TIFF_BITS) == (12,) else 65535


def _eight_bit(image: Image.Image, white: int) -> Image.Image:
    """Grey of integers or floats as 8 bits. Raises ValueError for a range with no meaning."""
    values = np.asarray(image)
    if image.mode == "F":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
            raise ValueError("float grey values outside 0..1 and 0..255")
        return Image.fromarray((values * (255 // white)).round().astype(np.uint8))
    values = values.astype(np.int64)
    if values.min() < 0 or values.max() > white:
        raise ValueError("grey values outside 16 bits")
    return Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))


def _too_large(error: Exception) -> str:
    pixels = re.search(r"\d+", str(error))
    given = f"{int(pixels.group()) / 1e6:,.0f} Mpx; " if pixels else ""
    return f"too large ({given}limit {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:,.0f} Mpx)"


def _damaged(error: Exception) -> BadImage:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    legible = "".join(c if c.isprintable() else "?" for c in first_line)  # it may quote the file
    return BadImage(f"truncated or damaged ({legible})")
