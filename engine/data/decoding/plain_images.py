"""What Pillow reads: the headers of files, and a plain form of files that DALI does not read as people see them."""

import io
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MIN_SIDE = 8
BACKDROP = 128  # mid-grey behind transparent pixels
_AS_IS = {"RGB", "L", "1", "P", "YCbCr"}  # modes that DALI decodes as Pillow does
_DALI_FORMATS = {"JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "PPM"}  # DALI 2.4 crashes on damaged JPEG 2000 files
_DAMAGE = Exception  # a parser that meets arbitrary bytes may raise anything
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
_ORIENTATION = 0x0112


class BadImage(Exception):
    """The file cannot be used; the message says why, in a few words."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of an image file says.

    format, mode:  as Pillow names them.
    width, height: in pixels as displayed (after EXIF rotation).
    convert:       why DALI must be given Pillow's rendition instead of the file; "" when DALI reads the file itself.
    """

    format: str
    mode: str
    width: int
    height: int
    convert: str


def inspect(data: bytes) -> Header:
    """What the header of a file says; only the header is read, and the alpha channel where there is one.

    Raises BadImage.
    """
    image = _open(data)
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise BadImage(f"too small ({width}x{height}; at least {MIN_SIDE}x{MIN_SIDE})")
    try:
        turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    except _DAMAGE:
        turned = False
    try:
        convert = _why_convert(image)
    except _DAMAGE as error:
        raise _damaged(error) from error
    return Header(image.format or "?", image.mode, *((height, width) if turned else (width, height)), convert)


def plain_bytes(data: bytes) -> bytes:
    """The first frame of a file, upright, opaque, 8-bit RGB or grey, as PPM or PGM bytes.

    Raises BadImage when the file is damaged.
    """
    image = _open(data)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        image = _opaque(_eight_bit(image))
        if image.mode != "L":
            image = image.convert("RGB")
        out = io.BytesIO()
        image.save(out, "PPM")
    except Image.DecompressionBombError as error:
        raise BadImage(_too_large(error)) from error
    except _DAMAGE as error:
        raise _damaged(error) from error
    return out.getvalue()


def _open(data: bytes) -> Image.Image:
    if not data:
        raise BadImage("empty file (0 bytes)")
    try:
        return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BadImage(_too_large(error)) from error
    except UnidentifiedImageError as error:
        raise BadImage("not an image (no known format recognised)") from error
    except _DAMAGE as error:
        raise _damaged(error) from error


def _why_convert(image: Image.Image) -> str:
    """Why DALI must be given Pillow's rendition of this image; "" when DALI reads the file as people see it."""
    if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
        return f"first of {frames} frames"
    if image.format not in _DALI_FORMATS:
        return f"{image.format} file"
    if "transparency" in image.info or image.mode in _ALPHA_MODES:
        return "" if _alpha_is_full(image) else "transparent pixels"
    return "" if image.mode in _AS_IS else f"mode {image.mode}"


def _alpha_is_full(image: Image.Image) -> bool:
    try:
        return image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
    except _DAMAGE:
        return False


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey images of 16 bits, 32 bits or floats, scaled to 8 bits. Raises ValueError for a range with no meaning."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("grey values outside 16 bits")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
            raise ValueError("float grey values outside 0..1 and 0..255")
        return Image.fromarray((values * (255 if values.max() <= 1 else 1)).round().astype(np.uint8))
    return image


def _opaque(image: Image.Image) -> Image.Image:
    """The image laid over mid-grey where it is transparent."""
    if "transparency" not in image.info and image.mode not in _ALPHA_MODES:
        return image
    image = image.convert("RGBA")
    backdrop = Image.new("RGBA", image.size, (BACKDROP, BACKDROP, BACKDROP, 255))
    return Image.alpha_composite(backdrop, image).convert("RGB")


def _too_large(error: Exception) -> str:
    pixels = re.search(r"\d+", str(error))
    given = f"{int(pixels.group()) / 1e6:,.0f} Mpx; " if pixels else ""
    return f"too large ({given}limit {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:,.0f} Mpx)"


def _damaged(error: Exception) -> BadImage:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    return BadImage(f"truncated or damaged ({first_line})")
