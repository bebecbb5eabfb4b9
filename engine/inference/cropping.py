"""Crops the largest face of each picture to a square, with the face where it is in given photos.

What is learned from two sets, or refined by a model of one, is then framed alike.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from engine.data.decoding.colour_profiles import Profile
from engine.data.decoding.plain_images import BadImage
from engine.data.layouts.sources import Source
from engine.errors import InputError
from engine.host import atomic_files
from engine.host.input_files import UnreadableFile
from engine.inference import marking, pictures, shipped
from engine.inference.exported import CONFIG
from engine.inference.faces import FaceFinder, Framing
from engine.inference.picture_files import Item, counted, list_input, list_work, say, say_profiles

_MEASURED = 64  # photos that a framing is measured on, spread evenly over their set
_MEASURED_SIDE = 128


@dataclass
class CropOptions:
    """The options of `kiln crop`."""

    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """Image, folder of images or zip of images."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder to write, with the names of INPUT as .png; for a single image, a folder or a file name."""
    like: Annotated[Path | None, tyro.conf.arg(metavar="{None}|PATH|NAME")] = None
    """Frame faces as in these photos (a folder or zip), or as in those of a run, an exported or a shipped model;
    without it, as in an aligned portrait."""
    size: int = 128
    """Side of the crops in pixels."""
    zoom: float = 1.0
    """Take so much less around the faces: fewer crops then reach beyond their picture, where its border is repeated."""

    def check(self) -> None:
        """Raise InputError for a size or a zoom that cannot work."""
        if not 8 <= self.size <= 4096:
            raise InputError(f"--size must be 8 to 4096, got {self.size}")
        if not 0.25 <= self.zoom <= 4:
            raise InputError(f"--zoom must be 0.25 to 4, got {self.zoom:g}")


@dataclass
class _Counts:
    """Of the images so far: cropped; without a face; unreadable; cropped and enlarged; with repeated border.

    profiles: the colour profiles of those that have one
    """

    cropped: int = 0
    faceless: int = 0
    unreadable: int = 0
    enlarged: int = 0
    reaching: int = 0
    profiles: list[Profile] = field(default_factory=list)


def framing_like(like: Path | None) -> Framing:
    """The framing that --like names. Raises InputError for photos in which fewer than 8 faces are found."""
    if like is None:
        return Framing()
    path = shipped.resolve(like)
    if path.is_dir() and any((folder / CONFIG).exists() for folder in (path, path.parent.parent)):
        return Framing.of(path)
    source, names = list_input(path, None, "kiln crop")
    squares = []
    for name in names[:: max(1, len(names) // _MEASURED)]:
        try:
            image, _ = pictures.read(source.read(name))
        except (BadImage, UnreadableFile) as why:
            say(f"kiln crop: note: --like: passed over {name}: {why}")
            continue
        squares.append(np.asarray(_square(image, None, _MEASURED_SIDE, channels=3)))
    framing = Framing.measure(np.stack(squares)) if squares else None
    if framing is None:
        raise InputError(f"--like {like}: fewer than 8 faces are found in {counted(len(squares))}; give other photos")
    return framing


def _square(image: Image.Image, window: pictures.Box | None, side: int, channels: int) -> Image.Image:
    """A part of an image, None: its central square, as a picture of this side."""
    placement = pictures.place(image.size, side, "crop", window)
    return pictures.from_square(pictures.to_square(image, placement, side, channels), placement, original_size=False)


def crop_files(options: CropOptions) -> str:
    """Crop what the options name, file by file; returns one line that says what was done.

    A picture in which no face is found is named and left out. Raises InputError for options that cannot work, when no
    face is found at all, and after the last image when some could not be read.
    """
    options.check()
    source, items = list_work(options.input, options.output, "png", "kiln crop")
    finder, framing = FaceFinder(), framing_like(options.like).zoomed(options.zoom)
    counts = _Counts(unreadable=len(source.passed_over))
    for item in tqdm(items, unit=" images", disable=None, dynamic_ncols=True):
        _crop(source, item, finder, framing, options.size, counts)
    say_profiles(counts.profiles, "kiln crop")
    total = len(items) + len(source.passed_over)
    if not counts.cropped:
        raise InputError(f"no face was found in {options.input} ({counted(total)}); nothing was written")
    done = f"{counted(counts.cropped)} of {total} cropped to {options.size}x{options.size}: {options.output}"
    if counts.unreadable:
        raise InputError(f"{counted(counts.unreadable)} could not be read (named above); {done}")
    remarks = [
        f"{count} {what}"
        for count, what in (
            (counts.faceless, "left out without a face"),
            (counts.enlarged, "enlarged"),
            (counts.reaching, "reach beyond the picture, whose border is repeated"),
        )
        if count
    ]
    return "; ".join([done, *remarks])


def _crop(source: Source, item: Item, finder: FaceFinder, framing: Framing, side: int, counts: _Counts) -> None:
    """Crop one image, and count what happened to it. Raises OSError when the crop cannot be written."""
    try:
        image, header = pictures.read(source.read(item.name))
    except (BadImage, UnreadableFile) as why:
        say(f"kiln crop: skipped {item.name}: {why}")
        counts.unreadable += 1
        return
    if header.frame:
        say(f"kiln crop: note: {item.name}: {header.frame} cropped")
    if header.profile:
        counts.profiles.append(header.profile)
    window = finder.portrait(np.asarray(image), framing)
    if window is None:
        say(f"kiln crop: note: left out {item.name}: no face found")
        counts.faceless += 1
        return
    encoded = io.BytesIO()
    square = _square(image, window, side, 1 if image.mode == "L" else 3)
    square.save(encoded, marking.FORMATS[item.target.suffix.lower()], quality=95)
    atomic_files.write_bytes(item.target, encoded.getvalue())
    left, top, right, bottom = window
    counts.cropped += 1
    counts.enlarged += right - left < side
    counts.reaching += left < 0 or top < 0 or right > image.width or bottom > image.height
