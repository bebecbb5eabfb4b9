"""Which layout a source has, and what the layout tells of its images."""

from engine.data.layouts.celeba import list_celeba
from engine.data.layouts.listing import Listing
from engine.data.layouts.manifest import MANIFEST, list_manifest
from engine.data.layouts.pose_pairs import add_plain_pairs, list_fashion
from engine.data.layouts.sources import Source, is_image_name

LAYOUTS = (list_manifest, list_celeba, list_fashion)
"""Tried in this order: the first that returns a Listing is the layout. Where none does, every image file is listed."""


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
        nested = sorted(name[: -len(MANIFEST) - 1] for name in files if name.endswith("/" + MANIFEST))
        listing = Listing(sorted(images), nested=nested)
    if listing.pairs is None:
        add_plain_pairs(listing, source, every_file)
    listing.ignored = len(files) - len(listing.names)
    listing.archives = [name for name in files if name.lower().endswith(".zip")]
    return listing
