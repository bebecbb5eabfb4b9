"""The images of a set that a system can use: of one split, with the points it needs, in pairs or clips."""

import sys

import numpy as np

from engine.data.dataset import ImageSet
from engine.data.landmarks import points_name, turned_text
from engine.errors import InputError

_NUMERALS = {2: "two", 3: "three"}


def of_split(images: ImageSet, split: str) -> ImageSet:
    """The images of the split, or of its numbered parts ("test": also test1, test2 ...); "" = all.

    Raises InputError where there is no such split, naming those there are.
    """
    if not split:
        return images
    if images.splits is None:
        raise InputError(f"{images.root} has no splits (a column split in manifest.csv): leave out the split {split!r}")
    keep = np.array([name == split or name.rstrip("0123456789") == split for name in images.splits], bool)
    if not keep.any():
        there = ", ".join(sorted(set(filter(None, images.splits)))) or "none"
        raise InputError(f"{images.root} has no split {split!r}; its splits: {there}")
    return images.subset(keep)


def held_out(images: ImageSet, every: int, *, held: bool) -> ImageSet:
    """The images that a training holds out to measure on, or the others.

    every: the first of every so many images is held out, with all images of the same person, of its clip and of its
           pairs; 0 holds out none
    held:  True gives the images that are held out, False the others
    Raises InputError where one of the two parts would be empty.
    """
    if not every:
        return images
    groups = _together(images)
    keep = (groups % every == 0) == held
    if keep.all() or not keep.any():
        raise InputError(
            f"{images.root}: of {int(groups.max(initial=-1)) + 1:,} separate images, people or clips, holding out "
            f"every {every}th leaves none to {'measure on' if held else 'train on'}; take another number"
        )
    return images.subset(keep)


def _together(images: ImageSet) -> np.ndarray:
    """(N,) int64, from 0: the same number for images that show the same person, or are of one clip or pair."""
    parent = np.arange(len(images))

    def first_of(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    links = [] if images.pairs is None else [tuple(pair) for pair in images.pairs.tolist()]
    for numbers in (images.identities, images.clips):
        seen: dict[int, int] = {}
        for index, number in enumerate(() if numbers is None else numbers.tolist()):
            if number >= 0:
                links.append((seen.setdefault(number, index), index))
    for a, b in links:
        a, b = sorted((first_of(a), first_of(b)))
        parent[b] = a
    return np.unique([first_of(index) for index in range(len(images))], return_inverse=True)[1]


def with_points(images: ImageSet, points: int) -> ImageSet:
    """The images that have landmarks; the others are quarantined.

    points: how many landmarks are needed for each image, 68 or 18.
    Raises InputError where the set has no landmarks, or another number of them.
    """
    listing, needed = images.listing, points_name(points)
    if not listing.landmarks:
        hint = f"; try {images.root / listing.nested[0]}" if listing.nested else ""
        array = "keypoints_18.npy" if points == 18 else f"landmarks_{points}.npy"
        raise InputError(f"{images.root} has no landmarks (manifest.csv with landmarks_row, {array}){hint}")
    if listing.points != points:
        given = points_name(listing.points)
        raise InputError(f"{images.root} has {given} for each image, this needs {needed}: give a set that has them")
    marked = np.array([name in listing.landmarks for name in images.paths], bool)
    if turned := sum(record.orientation > 1 and has for record, has in zip(images.records, marked, strict=True)):
        print(f"kiln: {images.name}: {turned_text(turned)}", file=sys.stderr)
    without = [images.paths[index] for index in np.flatnonzero(~marked)]
    return images.subset(marked, [(name, listing.unmarked.get(name, "no landmarks")) for name in without])


def in_groups(images: ImageSet, members: int) -> ImageSet:
    """The images that can be part of a sample of `members` images.

    members: 1, all images; 2, the images in pairs where the set has pairs; 2 without pairs, and 3, the images in clips
             of at least so many frames.
    Says on standard error how many images are left out. Raises InputError when none remains.
    """
    if members == 1:
        return images
    if members == 2 and images.pairs is not None:
        if not len(images.pairs):
            raise InputError(f"{images.root}: its pairs file names no two images that can be used")
        keep = np.zeros(len(images), bool)
        keep[images.pairs] = True
        lacking = "are in no pair"
    else:
        keep, lacking = _in_long_clips(images, members), f"are in no clip of {_NUMERALS[members]} frames"
    if not keep.all():
        count = int((~keep).sum())
        print(f"kiln: {images.name}: {count:,} images {lacking} and left out, {keep.sum():,} used", file=sys.stderr)
        images = images.subset(keep)
    return images


def _in_long_clips(images: ImageSet, members: int) -> np.ndarray:
    """(N,) bool, whether an image is in a clip of at least `members` frames. Raises InputError when none is."""
    frames = f"{_NUMERALS[members]} frames"
    if images.clips is None and not images.listing.frames:
        has = "has pairs but no clips" if images.pairs is not None else "has no clips"
        pairs = ", or a pairs.csv" if members == 2 else ""
        raise InputError(
            f"{images.root} {has}, this needs {frames} of one video: give a manifest.csv with the columns video (or "
            f"identity) and frame{pairs}"
        )
    clips = np.full(len(images), -1) if images.clips is None else images.clips
    lengths = np.bincount(clips[clips >= 0], minlength=1)
    if lengths.max() < members:
        raise InputError(f"{images.root}: all its clips are shorter than {frames} (longest: {max(lengths.max(), 1)})")
    return (clips >= 0) & (lengths[clips] >= members)
