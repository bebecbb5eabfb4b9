"""Draws sample grids: one labelled row per kind of image, one column per fixed input."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from engine.data.pixel_values import picture_pixels
from engine.host import atomic_files

_SMALL_SIDE = 128  # pixels; a smaller image is enlarged to about this side, by a whole factor
_GAP = 2  # pixels between two images


def save_grid(rows: dict[str, Tensor], path: Path) -> None:
    """Write a PNG of the rows, top to bottom.

    rows: label -> (B, C, R, R) in [-1, 1], C = 1 or 3, the same B and R in each. Raises OSError.
    """
    grid = draw_grid(rows)
    with atomic_files.replacing(path) as temporary:
        grid.save(temporary, "PNG")


def draw_grid(rows: dict[str, Tensor]) -> Image.Image:
    """The grid of the rows as an RGB image, with the labels at its left; rows: as for `save_grid`."""
    first = next(iter(rows.values()))
    count, side = len(first), first.shape[-1]
    factor = max(1, _SMALL_SIDE // side)
    tile = side * factor
    font = ImageFont.load_default(size=14)
    margin = int(max(font.getlength(label) for label in rows)) + 16
    grid = Image.new("RGB", (margin + count * (tile + _GAP), len(rows) * (tile + _GAP)), "white")
    pen = ImageDraw.Draw(grid)
    for index, (label, images) in enumerate(rows.items()):
        top = index * (tile + _GAP)
        pen.text((8, top + tile // 2), label, fill="black", font=font, anchor="lm")
        for column, pixels in enumerate(picture_pixels(images)):
            small = Image.fromarray(pixels)
            enlarged = small.resize((tile, tile), Image.Resampling.NEAREST)
            grid.paste(enlarged, (margin + column * (tile + _GAP), top))
    return grid
