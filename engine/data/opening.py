"""open_dataset and open_loader: the usable images at a path, or the embedded avatars, and a loader for them."""

import sys
from pathlib import Path

from engine.data import avatars
from engine.data.cache import cache_folder, make_once
from engine.data.dataset import ImageSet
from engine.data.decoding.stored_squares import check_resolution
from engine.data.inventory import unused_text
from engine.data.loader import Loader, LoaderOptions
from engine.data.reading import read_set
from engine.data.resident import ResidentLoader
from engine.data.selection import held_out, in_groups, of_split, with_points
from engine.data.streaming import StreamingLoader
from engine.data.validation import default_quarantine_file
from engine.distributed import torchrun
from engine.errors import InputError
from engine.host.free_memory import free_bytes
from engine.host.terminal import printable

AVATAR_COUNT = 1200
AVATAR_SEED = 0
CLIP_COUNT, CLIP_FRAMES = 150, 8
"""Avatars where samples of several images are wanted: so many identities, and frames of each."""


def open_dataset(
    path: Path | None,
    *,
    channels: int,
    resolution: int,
    points: int = 0,
    members: int = 1,
    split: str = "",
    hold_out: int = 0,
    held: bool = False,
    look: str = "photo",
    progress: bool = True,
) -> ImageSet:
    """The images at `path` (a folder or zip of any layout), or the embedded avatars (None).

    channels, resolution  of the batches to come: 1 or 3; a power-of-two multiple of 8 from 16 to 256
    points    68 or 18: leaves out images without so many landmarks
    members   images of one sample: 2 needs pairs, or clips of two frames, 3 clips of three; others are left out
    split     only the images of this split; "" = all
    hold_out, held  without every so many-th image, or with held only these; 0 = all (engine.data.selection.held_out)
    look      "photo" or "game", of the embedded avatars; with several members they are rendered as clips
    progress  bars on standard error
    Everything is decoded once before it returns (a second start finds the verdicts in the cache folder). Files that
    cannot be used are left out, counted on standard error and listed in a quarantine.csv in the cache folder.
    Raises InputError when nothing usable remains.
    """
    check_resolution(resolution, channels)
    if path is None:
        folder = _avatar_folder(128 if resolution <= 128 else 256, clips=members > 1, progress=progress)
        images = read_set(folder / look, name="avatars" if look == "photo" else f"avatars ({look})", progress=progress)
    else:
        images = read_set(Path(path), progress=progress)
        for remark in images.listing.remarks:
            print(f"kiln: {images.name}: {remark}", file=sys.stderr)
        if images.listing.unused:
            print(f"kiln: {images.name}: not used: {unused_text(images.listing.unused)}", file=sys.stderr)
    images = held_out(of_split(images, split), hold_out, held=held)
    if points:
        images = with_points(images, points)
    if not len(images):
        name, reason = images.quarantined[0]
        raise InputError(
            f"no usable image in {path}: all {len(images.quarantined)} files are bad, the first: {name}: {reason}"
        )
    if images.quarantined:
        _report_quarantine(images)
    return in_groups(images, members)


def open_loader(dataset: ImageSet, **options) -> Loader:
    """An endless stream of batches of the images that open_dataset returned.

    options: the fields of LoaderOptions, by keyword. batch_size, resolution, channels, device and seed are required.
    Raises InputError for options that cannot work, for a set that cannot fill a batch, and when DALI is not installed.
    """
    chosen = LoaderOptions(**options)
    needed = len(dataset) * chosen.stored**2 * chosen.channels
    limit = free_bytes(chosen.device) // 4 // (torchrun.local_size() if chosen.device.type == "cpu" else 1)
    resident, reason = chosen.loader == "resident", "as asked"
    if chosen.loader == "auto":
        resident = needed <= limit
        reason = f"{_bytes(needed)} {'<=' if resident else '>'} a quarter of free memory, {_bytes(limit)}"
    kind = ResidentLoader if resident else StreamingLoader
    return kind(dataset, chosen, reason)


def _avatar_folder(size: int, *, clips: bool, progress: bool) -> Path:
    """The folder of the embedded avatars, rendered on first use; concurrent processes wait for the first one.

    size: pixels a side. The folder's name holds all that the pictures depend on.
    """
    count, frames, clip = (CLIP_COUNT, CLIP_FRAMES, f"_f{CLIP_FRAMES}") if clips else (AVATAR_COUNT, 1, "")
    name = f"v{avatars.VERSION}_n{count}{clip}_s{size}_seed{AVATAR_SEED}"
    folder = cache_folder() / "avatars" / name

    def make(out: Path) -> None:
        if progress:
            print(f"kiln: rendering {count * frames:,} avatars into {folder} (once)", file=sys.stderr)
        shown = progress and sys.stderr.isatty()
        avatars.write(out, count, size, AVATAR_SEED, frames=frames, progress=shown)

    return make_once(folder, make, "the avatars")


def _report_quarantine(images: ImageSet) -> None:
    """One line on standard error: how many files are left out, and where they are listed."""
    place = default_quarantine_file(images.source)
    try:
        images.write_quarantine(place)
        where = f"listed in {place}"
    except OSError:
        name, reason = images.quarantined[0]
        where = printable(f"the first: {name}: {reason}")
    counts = f"{len(images.quarantined):,} files left out, {len(images):,} used"
    print(f"kiln: {images.name}: {counts}; {where}", file=sys.stderr)


def _bytes(count: int) -> str:
    """A number of bytes for messages: "1.2 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
