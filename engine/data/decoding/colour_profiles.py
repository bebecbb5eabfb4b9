"""Embedded colour profiles (ICC): what one means for the colours of a picture, and the way of its colours to sRGB."""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_MAX_BYTES = 8 << 20  # of a profile; those of printing presses have up to three million
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}  # a profile's colour space -> mode of such pictures
_DAMAGE = Exception  # a parser that meets arbitrary bytes may raise anything


@dataclass(frozen=True, slots=True)
class Profile:
    """What an embedded profile means for pictures of one mode.

    name:      its description in a few printable characters, or "unnamed".
    usable:    False for a profile that is damaged or made for other colours; the picture is shown as without it.
    transform: to sRGB; None where the profile is not usable, and where no colour would change by more than 1 of 255.
    """

    name: str
    usable: bool
    transform: ImageCms.ImageCmsTransform | None = None


_UNUSABLE = Profile("unnamed", False)


@lru_cache(maxsize=32)
def read_profile(data: bytes, mode: str) -> Profile:
    """The meaning of a profile's bytes for pictures of the mode L, RGB, CMYK or LAB."""
    if len(data) > _MAX_BYTES:
        return _UNUSABLE
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(data))
        made_for = _MODES[opened.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), made_for, "RGB")
        changed = _changed(transform, made_for, greys_only=mode == "L")
    except _DAMAGE:
        return _UNUSABLE
    if made_for == mode:
        return Profile(_name(opened), True, transform if changed else None)
    # many grey pictures carry a profile of RGB, which mostly shows grey as it is without one
    return Profile(_name(opened), usable=(made_for, mode) == ("RGB", "L") and not changed)


def _changed(transform: ImageCms.ImageCmsTransform, mode: str, *, greys_only: bool) -> bool:
    """Whether a transform gives some colour (or grey) another value than it has in a picture without a profile."""
    colours = np.repeat(np.arange(256, dtype=np.uint8).reshape(4, 64, 1), 3, axis=2)
    if not greys_only:
        levels = np.linspace(0, 255, 16).round().astype(np.uint8)
        cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
        colours = np.concatenate([colours, cube.reshape(64, 64, 3)])
    given = Image.fromarray(colours).convert(mode)
    shown = np.asarray(transform.apply(given)).astype(np.int16)
    return bool(np.abs(shown - np.asarray(given.convert("RGB"))).max() > 1)


def _name(profile: ImageCms.ImageCmsProfile) -> str:
    try:
        words = ImageCms.getProfileDescription(profile).split()
    except _DAMAGE:
        words = []
    return "".join(c for c in " ".join(words) if c.isprintable())[:40] or "unnamed"
