"""What a viewer shows of an image file, by Pillow's own functions: the oracle for everything that reads pictures."""

import io
from functools import cache

import numpy as np
from PIL import Image, ImageCms, ImageOps

DEEP = {"I": 65535, "I;16": 65535, "I;16B": 65535}  # mode of grey -> its white


def shown(data: bytes, *, white: float | None = None) -> Image.Image:
    """The first frame: turned, in sRGB, laid over mid-grey; RGB, or L where the file is grey and opaque.

    white: the value of white in a file of grey that says so elsewhere than in its mode.
    """
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        profile = image.info.get("icc_profile")
        image = ImageOps.exif_transpose(image)
    transparent = "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBA", "RGBa")
    alpha = np.asarray(image.convert("RGBA"))[..., 3:] / 255 if transparent else np.float64(1)
    if image.mode == "I;16" and transparent:  # the PNG specification; Pillow compares the key with 8 bits
        alpha = (np.asarray(image)[..., None] != image.info["transparency"]).astype(np.float64)
    if image.mode in DEEP or image.mode == "F":
        values = np.asarray(image).astype(np.float64) * 255 / (white or DEEP[image.mode])
        image = Image.fromarray(values.round().astype(np.uint8))
    elif image.mode in ("1", "LA", "La"):
        image = image.convert("LA").getchannel("L")
    elif image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGBA" if transparent else "RGB").convert("RGB")
    colours = in_srgb(image, profile)
    if transparent:
        over = np.asarray(colours.convert("RGB")) * alpha + 128 * (1 - alpha)
        return Image.fromarray(over.round().astype(np.uint8))
    return colours.convert("L" if image.mode == "L" else "RGB")


def in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The image converted by its profile, as RGB; unchanged where there is none, or none that fits."""
    way = to_srgb(profile, image.mode) if profile else None
    return way.apply(image) if way else image


@cache
def to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform of a profile; None where it does not fit the mode, or is damaged."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
