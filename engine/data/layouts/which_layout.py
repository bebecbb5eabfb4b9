"""Which layout a source has, and what the layout tells of its images."""

import re

from engine.data.layouts.celeba import list_celeba
from engine.data.layouts.listing import Listing
from engine.data.layouts.manifest import MANIFEST, list_manifest
from engine.data.layouts.names import last_part
from engine.data.layouts.pose_pairs import add_plain_pairs, list_fashion
from engine.data.layouts.sources import Source, is_image_name
from engine.data.layouts.tables import is_table_name

LAYOUTS = (list_manifest, list_celeba, list_fashion)
"""Tried in this order: the first that returns a Listing is the layout. Where none does, every image file is listed."""
_TABLE = re.compile(r".+\.(?:csv|tsv|xlsx?|ods|parquet)", re.IGNORECASE)
_ARRAY = re.compile(r"(?:landmarks|keypoints)_?\d*\.np[yz]", re.IGNORECASE)


def list_images(source: Source, files: list[str] | None = None) -> Listing:
    """What the layout of the source lists; every image file where there is no layout; and the pairs of a pairs.csv.

    files: what source.files() returned, when that is known.
    Raises InputError for tables that cannot be understood.
    """
    files = source.files() if files is None else files
    every_file, images = set(files), {name for name in files if is_image_name(name)}
    listings = (layout(source, every_file, images) for layout in LAYOUTS)
    listing = next((listing for listing in listings if listing is not None), None)
    if listing is None:
        nested = sorted(name.rpartition("/")[0] for name in files if "/" in name and is_table_name(name, MANIFEST))
        listing = Listing(sorted(images), nested=nested)
    if listing.pairs is None:
        add_plain_pairs(listing, source, every_file)
    listing.unused = [(name, _why_unused(name)) for name in files if _may_tell(name) and name not in listing.tables]
    listing.ignored = len(files) - len(listing.names)
    listing.archives = [name for name in files if name.lower().endswith(".zip")]
    return listing


def _may_tell(name: str) -> bool:
    """Whether people may expect that a file says something of the images."""
    return bool(_TABLE.fullmatch(last_part(name)) or _ARRAY.fullmatch(last_part(name)))


def _why_unused(name: str) -> str:
    if _ARRAY.fullmatch(last_part(name)):
        return f"no column landmarks_row of a {MANIFEST} beside it says which image each row belongs to"
    return "no layout has a table of this name here"
