"""Reads a picture, places it in the square that a network takes, and takes the result out of the square again.

Pictures are read as in data sets (engine.data.decoding.plain_images): EXIF rotation applied, embedded colour profiles
converted to sRGB, 16-bit and float grey scaled to 8 bits, palette and CMYK converted, transparency laid over mid-grey,
only the first frame of an animation.
Pictures are shrunk as the loaders shrink them, with antialiased linear interpolation; the network makes its pyramid of
nearest-neighbour copies from the shrunken square.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from engine.data.decoding.plain_images import Header, inspect, plain_image
from engine.data.decoding.stored_squares import central_square

FITS = ("crop", "pad", "stretch")
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Placement:
    """Which part of a picture lies where in the network's square.

    window:  left, top, right, bottom of the part, in pixels of the picture; it may reach beyond the picture
    content: left, top, right, bottom of the part's copy, in pixels of the square; padding lies around the copy
    """

    window: Box
    content: Box

    def landmarks(self, points: np.ndarray) -> np.ndarray:
        """Points (K, 2), x and y in pixels of the picture -> in pixels of the square; 0 is the centre of pixel 0."""
        window, content = np.array(self.window, np.float64), np.array(self.content, np.float64)
        scale = (content[2:] - content[:2]) / (window[2:] - window[:2])
        return ((points - window[:2] + 0.5) * scale - 0.5 + content[:2]).astype(np.float32)


def read(data: bytes) -> tuple[Image.Image, Header]:
    """The picture in a file's bytes as it is displayed, RGB or L with 8 bits, and what the file's header says.

    Raises engine.data.decoding.plain_images.BadImage with the reason in a few words.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about large files and odd EXIF blocks
        header = inspect(data)
        return plain_image(data), header


def place(size: tuple[int, int], resolution: int, fit: str, window: Box | None = None) -> Placement:
    """The placement of a picture of `size` (width, height) in a square of side `resolution`.

    fit:    "crop" takes the central square, "pad" pads to a square, "stretch" squeezes into a square
    window: the part of the picture to place; None places the whole picture
    """
    left, top, right, bottom = window or (0, 0, *size)
    width, height = right - left, bottom - top
    if fit == "crop":
        ((x, y),), (side,) = central_square(np.array([(width, height)]))
        left, top = left + int(x), top + int(y)
        width = height = int(side)
    content = (0, 0, resolution, resolution)
    if fit == "pad":
        scale = resolution / max(width, height)
        wide, high = max(1, round(width * scale)), max(1, round(height * scale))
        x, y = (resolution - wide) // 2, (resolution - high) // 2
        content = (x, y, x + wide, y + high)
    return Placement((left, top, left + width, top + height), content)


def to_square(image: Image.Image, placement: Placement, resolution: int, channels: int) -> np.ndarray:
    """The placed part as (channels, R, R) uint8; beyond the picture and in the padding its border is repeated."""
    mode = "RGB" if channels == 3 else "L"
    image, window = _reaching(image if image.mode == mode else image.convert(mode), placement.window)
    left, top, right, bottom = placement.content
    part = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=window)
    pixels = np.atleast_3d(np.asarray(part))
    around = ((top, resolution - bottom), (left, resolution - right), (0, 0))
    return np.ascontiguousarray(np.pad(pixels, around, mode="edge").transpose(2, 0, 1))


def _reaching(image: Image.Image, window: Box) -> tuple[Image.Image, Box]:
    """The picture with its border repeated as far as the window reaches, and the window in pixels of that picture."""
    left, top, right, bottom = window
    beyond = max(0, -left, -top, right - image.width, bottom - image.height)
    if not beyond:
        return image, window
    around = ((beyond, beyond), (beyond, beyond), (0, 0))
    pixels = np.pad(np.atleast_3d(np.asarray(image)), around, mode="edge")
    larger = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    return larger, (left + beyond, top + beyond, right + beyond, bottom + beyond)


def from_square(pixels: np.ndarray, placement: Placement, *, original_size: bool) -> Image.Image:
    """The picture in a square (channels, R, R) uint8, without padding.

    original_size: resize it to the size of the part that was placed
    """
    square = pixels.transpose(1, 2, 0)
    image = Image.fromarray(square if square.shape[2] == 3 else square[:, :, 0])
    image = image.crop(placement.content)
    if original_size:
        left, top, right, bottom = placement.window
        image = image.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    return image
