"""ImageSet: the usable images of a folder, a zip or the embedded avatars, validated before anything trains on them."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.data.decoding.plain_images import BadImage, plain_bytes
from engine.data.landmarks import MIRROR_ORDERS, points_name
from engine.data.layouts.listing import Listing
from engine.data.layouts.sources import Source
from engine.data.validation import FileRecord, forget_verdicts, write_quarantine
from engine.errors import InputError
from engine.host.input_files import UnreadableFile


class ImageSet:
    """Validated images, sorted by name; where there are clips, the images of each clip lie together, in frame order.

    name, root   str and Path of the folder or zip
    source       FolderSource or ZipSource that the files are read from
    listing      Listing, what the layout tells of the images
    paths        list of names relative to the root
    records      list of FileRecord, one for each image
    sizes        (N, 2) int64, width and height as displayed
    orientations (N,) int64, 1 to 8 as EXIF counts, how the pixels that `read` gives must be turned
    points       68 or 18, how many points each image has; 0: none, or other ones that nothing here uses
    landmarks    (N, points, 2) float32, x and y in pixels of each file as displayed; None unless every image has them.
                 A missing key point (of 18) is NaN
    clips        (N,) int64, number of each image's clip, -1 for those in none; None where there is no clip. A clip is
                 two or more frames of one video
    pairs        (P, 2) int64, source and target as indices of images; None where the layout has no pairs
    splits       list of "train", "val", "test" or what else the layout says, "" for none; None where it has no splits
    identities   (N,) int64, number of the person, -1 unknown; None where the layout tells none
    attributes   attribute -> (N,) bool; empty where the layout has none
    digest       sha256 of names, contents, landmarks, clips and pairs: equal for a folder and a zip of it
    quarantined  list of (name, reason)
    """

    def __init__(
        self,
        source: Source,
        listing: Listing,
        records: list[FileRecord],
        quarantined: list[tuple[str, str]],
        *,
        name: str | None = None,
        root: Path | None = None,
    ) -> None:
        self.source = source
        self.name = name or source.name
        self.root = root or source.root
        self.listing = listing
        self.quarantined = quarantined
        self.records = _in_clip_order(records, listing.frames)
        self.paths = [record.name for record in self.records]
        self.sizes = np.array([(r.width, r.height) for r in self.records], np.int64).reshape(-1, 2)
        # what is converted is upright
        self.orientations = np.array([1 if r.convert else r.orientation for r in self.records], np.int64)
        points = [listing.landmarks.get(name) for name in self.paths]
        marked = listing.points in MIRROR_ORDERS and points and all(p is not None for p in points)
        self.points = listing.points if marked else 0
        self.landmarks = np.stack(points) if marked else None
        self.clips = _clip_numbers(self.paths, listing.frames)
        self.pairs = None if listing.pairs is None else _pair_indices(self.paths, listing.pairs)
        self.splits = [listing.splits.get(name, "") for name in self.paths] if listing.splits else None
        self.identities = None
        if listing.identities:
            self.identities = np.array([listing.identities.get(name, -1) for name in self.paths], np.int64)
        self.attributes: dict[str, np.ndarray] = {}
        if listing.attributes and self.paths:
            table = np.stack([listing.attributes[name] for name in self.paths])
            self.attributes = dict(zip(listing.attribute_names, table.T, strict=True))
        self.digest = self._digest()

    def subset(self, keep: np.ndarray, quarantined: Sequence[tuple[str, str]] = ()) -> "ImageSet":
        """Some of the images, as a set of their own.

        keep:        (N,) bool, true for the images that stay.
        quarantined: (name, reason) of the images that are left out because they cannot be used.
        """
        records = [record for record, kept in zip(self.records, keep, strict=True) if kept]
        bad = [*self.quarantined, *quarantined]
        return ImageSet(self.source, self.listing, records, bad, name=self.name, root=self.root)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> bytes | bytearray:
        """The bytes that DALI is given for image `index`.

        Raises InputError when the file is no longer the one that was validated.
        """
        record = self.records[index]
        try:
            data = self.source.read(record.name)
        except UnreadableFile as error:
            raise InputError(f"{self.root}: {record.name} vanished after validation ({error}); start again") from error
        if len(data) != record.size or hashlib.sha256(data).hexdigest() != record.sha256:
            forget_verdicts(self.source)
            raise InputError(
                f"{self.root}: {record.name} changed after it was validated; start again to validate it anew"
            )
        if not record.convert:
            return data
        try:
            return plain_bytes(data)
        except BadImage as error:
            raise InputError(f"{self.root}: {record.name}: {error}") from error

    def summary(self) -> str:
        """One line: how many images, of which sizes, with landmarks or not, how many quarantined."""
        sizes = Counter(map(tuple, self.sizes.tolist()))
        (width, height), most = sizes.most_common(1)[0]
        shape = f"{width}x{height}" if most == len(self) else f"{len(sizes)} sizes, mostly {width}x{height}"
        parts = [f"{self.name}: {len(self):,} images", shape]
        if self.landmarks is not None:
            parts.append(points_name(self.points))
        if self.clips is not None:
            parts.append(f"{self.clips.max() + 1:,} clips")
        if self.pairs is not None:
            parts.append(f"{len(self.pairs):,} pairs")
        if converted := sum(bool(record.convert) for record in self.records):
            parts.append(f"{converted:,} converted")
        if self.quarantined:
            parts.append(f"{len(self.quarantined):,} quarantined")
        return ", ".join(parts) + f", digest {self.digest[:12]}"

    def write_quarantine(self, path: Path) -> None:
        """CSV of file and reason; never put it into the user's data folder. Raises OSError."""
        write_quarantine(path, self.quarantined)

    def _digest(self) -> str:
        """Checkpoints hold this digest: a resumed run must find the same one for the same data."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(f"{record.name}\0{record.sha256}\n".encode("utf-8", "surrogateescape"))
        if self.landmarks is not None:
            digest.update(np.ascontiguousarray(self.landmarks, "<f4").tobytes())
        for what, numbers in (("clips", self.clips), ("pairs", self.pairs)):
            if numbers is not None:
                digest.update(what.encode() + np.ascontiguousarray(numbers, "<i8").tobytes())
        return digest.hexdigest()


def _in_clip_order(records: list[FileRecord], frames: dict[str, tuple[str, int]]) -> list[FileRecord]:
    """Records sorted by name; a clip's images lie together, by frame number, where the first of their names stands."""
    first: dict[str, str] = {}
    for name in sorted(record.name for record in records):
        if name in frames:
            first.setdefault(frames[name][0], name)

    def place(record: FileRecord) -> tuple[str, int, str]:
        clip, frame = frames.get(record.name, ("", 0))
        return first.get(clip, record.name), frame, record.name

    return sorted(records, key=place)


def _clip_numbers(paths: list[str], frames: dict[str, tuple[str, int]]) -> np.ndarray | None:
    """(N,) int64, clips numbered as they follow each other in `paths`, -1 for images in none; None without a clip."""
    lengths = Counter(frames[path][0] for path in paths if path in frames)
    numbers: dict[str, int] = {}
    clips = np.full(len(paths), -1, np.int64)
    for index, path in enumerate(paths):
        if path in frames and lengths[clip := frames[path][0]] > 1:
            clips[index] = numbers.setdefault(clip, len(numbers))
    return clips if numbers else None


def _pair_indices(paths: list[str], pairs: list[tuple[str, str]]) -> np.ndarray:
    """(P, 2) int64 indices into `paths`, of the pairs whose images are both there."""
    index = {path: i for i, path in enumerate(paths)}
    both = [(index[first], index[second]) for first, second in pairs if first in index and second in index]
    return np.array(both, np.int64).reshape(-1, 2)
