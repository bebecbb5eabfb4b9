"""Which layout a source has, and what it lists."""

from collections.abc import Collection

from engine.data.layouts.celeba import list_celeba
from engine.data.layouts.listing import Listing
from engine.data.layouts.manifest import MANIFEST, list_manifest
from engine.data.layouts.pose_pairs import PAIRS, add_plain_pairs, list_fashion
from engine.data.layouts.sources import Source, is_image_name


def list_images(source: Source, files: list[str] | None = None) -> Listing:
    """The images of the layout that is there: a manifest, CelebA, DeepFashion, pairs.csv; else every image.

    files: what source.files() returned, when that is known. Raises InputError for tables that cannot be understood.
    """
    files = source.files() if files is None else files
    there = set(files)
    images = {name for name in files if is_image_name(name)}
    manifest, pairs = _base(files, MANIFEST), _base(files, PAIRS)
    listing = None
    if manifest is not None:
        listing = list_manifest(source, there, images, manifest)
    listing = listing or list_celeba(source, there, images) or list_fashion(source, there, images)
    if listing is None:
        nested = sorted(name[: -len(MANIFEST) - 1] for name in files if name.endswith("/" + MANIFEST))
        listing = Listing(sorted(images), nested=nested)
    if pairs is not None and listing.pairs is None:
        add_plain_pairs(listing, source, there, pairs)
    listing.ignored = len(files) - len(listing.names)
    return listing


def _base(files: Collection[str], table: str) -> str | None:
    """The prefix of a table: the root, or the one top-level folder (a zipped folder has its name in front)."""
    if table in files:
        return ""
    tops = {name.split("/", 1)[0] for name in files}
    if len(tops) == 1 and f"{next(iter(tops))}/{table}" in files:
        return next(iter(tops)) + "/"
    return None
