"""From a path to an ImageSet: find the layout, list the images, validate each file."""

from pathlib import Path

from engine.data.dataset import ImageSet
from engine.data.decoding.stored_squares import unlike_displayed
from engine.data.layouts.landmark_video import find_videos, left_out, prepare_videos
from engine.data.layouts.listing import Listing
from engine.data.layouts.sources import open_source
from engine.data.layouts.which_layout import list_images
from engine.data.validation import FileRecord, validate
from engine.errors import InputError


def read_set(path: Path, *, name: str | None = None, progress: bool = True, fresh: bool = False) -> ImageSet:
    """List and validate the images at `path`, a folder or zip of any layout.

    name:     of the set in messages; None: the name of the folder or zip.
    progress: bars on standard error.
    fresh:    decode every file, also those that have not changed since they were validated.
    returns:  the usable images, which may be none; the others are its `quarantined`.
    Raises InputError when there is nothing to validate.
    """
    source = open_source(path)
    name, files = name or source.name, source.files()
    left_aside = source.passed_over
    videos = find_videos(source, files)
    if videos:
        source = prepare_videos(source, videos, progress)
        files, left_aside = source.files(), left_aside + left_out(source)
    listing = list_images(source, files)
    if videos:
        listing.layout, listing.ignored, listing.unused = "landmark videos", 0, []
    if not listing.names and not listing.missing:
        content = _content(listing, left_aside)
        raise InputError(f"no image file in {path} ({content}); expected .jpg, .png, .webp, .bmp, .tif, .gif ...")
    records = validate(source, listing.names, progress=progress, fresh=fresh)
    bad = [(record.name, record.problem) for record in records if record.problem]
    usable = [record for record in records if not record.problem]
    _unmark_turned(listing, usable)
    return ImageSet(source, listing, usable, bad + listing.missing + left_aside, name=name, root=path)


def _unmark_turned(listing: Listing, records: list[FileRecord]) -> None:
    """Take the landmarks from images that they fit only as stored, not as displayed, and say so in `unmarked`."""
    for record in records:
        if record.name in listing.landmarks:
            size = record.width, record.height
            if why := unlike_displayed(listing.landmarks[record.name], size, record.orientation):
                del listing.landmarks[record.name]
                listing.unmarked[record.name] = why


def _content(listing: Listing, left_aside: list[tuple[str, str]]) -> str:
    """What there is in a place without images, for messages."""
    if left_aside:
        name, why = left_aside[0]
        return f"{len(left_aside):,} left out, the first: {name}: {why}"
    if listing.archives:
        return f"but the zip {listing.archives[0]}: give that one"
    return f"{listing.ignored} other files" if listing.ignored else "it is empty"
