"""ImageSet: the usable images of a folder, a zip or the embedded avatars, validated before anything trains on them."""

import fcntl
import hashlib
import importlib
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from engine.data.cache import cache_folder
from engine.data.geometry import check_resolution
from engine.data.manifest import Listing, list_images
from engine.data.normalise import BadImage, plain_bytes
from engine.data.sources import Source, UnreadableFile, open_source
from engine.data.validate import FileRecord, default_quarantine_file, forget_verdicts, validate, write_quarantine
from engine.errors import InputError

AVATAR_COUNT = 1200
AVATAR_SEED = 0


class ImageSet:
    """Validated images, sorted by name.

    name, root   str and Path of the folder or zip
    paths        list of names relative to the root
    records      list of FileRecord, one for each image
    sizes        (N, 2) int64, width and height as displayed
    landmarks    (N, 68, 2) float32, x and y in pixels of each file as displayed; None unless every image has them
    digest       sha256 of names, contents and landmarks: equal for a folder and a zip of it
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
    ) -> None:
        self.source = source
        self.name = name or source.name
        self.root = source.root
        self.listing = listing
        self.quarantined = quarantined
        self.records = records
        self.paths = [record.name for record in records]
        self.sizes = np.array([(r.width, r.height) for r in self.records], np.int64).reshape(-1, 2)
        points = [listing.landmarks.get(name) for name in self.paths]
        self.landmarks = np.stack(points) if points and all(p is not None for p in points) else None
        self.clips: np.ndarray | None = None
        self.pairs: np.ndarray | None = None
        self.digest = self._digest()

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> bytes:
        """The bytes DALI is given for image `index`. Raises InputError when the file is no longer the validated one."""
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
            parts.append("68 landmarks")
        if converted := sum(bool(record.convert) for record in self.records):
            parts.append(f"{converted:,} converted")
        if self.quarantined:
            parts.append(f"{len(self.quarantined):,} quarantined")
        return ", ".join(parts) + f", digest {self.digest[:12]}"

    def write_quarantine(self, path: Path) -> None:
        """CSV of file and reason; never put it into the user's data folder. Raises OSError."""
        write_quarantine(path, self.quarantined)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(f"{record.name}\0{record.sha256}\n".encode("utf-8", "surrogateescape"))
        if self.landmarks is not None:
            digest.update(np.ascontiguousarray(self.landmarks, "<f4").tobytes())
        return digest.hexdigest()


def read_set(path: Path, *, name: str | None = None, progress: bool = True, fresh: bool = False) -> ImageSet:
    """List and validate the images at `path`, usable or not. Raises InputError when there is nothing to validate.

    fresh: decode also what has not changed since the last time.
    """
    source = open_source(path)
    listing = list_images(source)
    if not listing.names and not listing.missing:
        found = f"{listing.ignored} other files" if listing.ignored else "it is empty"
        raise InputError(f"no image file in {path} ({found}); expected .jpg, .png, .webp, .bmp, .tif, .gif ...")
    records = validate(source, listing.names, progress=progress, fresh=fresh)
    quarantined = [(record.name, record.problem) for record in records if record.problem] + listing.missing
    return ImageSet(source, listing, [record for record in records if not record.problem], quarantined, name=name)


def open_dataset(
    path: Path | None,
    *,
    channels: int,
    resolution: int,
    points: int = 0,
    members: int = 1,
    look: str = "photo",
    progress: bool = True,
) -> ImageSet:
    """The images at `path` (folder, zip or manifest layout), or the embedded avatars in their `look` (None).

    Everything is decoded once before it returns (a second start finds the verdicts in the cache folder). Files that
    cannot be used are left out, counted on standard error and listed in a quarantine.csv in the cache folder.
    points > 0 leaves out images without landmarks. Raises InputError when nothing usable remains.
    """
    check_resolution(resolution, channels)
    if path is None:
        folder = _avatars(128 if resolution <= 128 else 256, progress)
        images = read_set(folder / look, name="avatars", progress=progress)
    else:
        images = read_set(Path(path), progress=progress)
    if points and images.landmarks is None:
        images = _with_landmarks_only(images)
    if not len(images):
        name, reason = images.quarantined[0]
        raise InputError(
            f"no usable image in {path}: all {len(images.quarantined)} files are bad, the first: {name}: {reason}"
        )
    if images.quarantined:
        _report_quarantine(images)
    return images


def _with_landmarks_only(images: ImageSet) -> ImageSet:
    if not images.listing.landmarks:
        hint = f"; try {images.root / images.listing.nested[0]}" if images.listing.nested else ""
        raise InputError(f"{images.root} has no landmarks (manifest.csv with landmarks_row, landmarks_68.npy){hint}")
    without = [name for name in images.paths if name not in images.listing.landmarks]
    kept = [record for record in images.records if record.name in images.listing.landmarks]
    left_out = [(name, "no landmarks") for name in without]
    return ImageSet(images.source, images.listing, kept, images.quarantined + left_out, name=images.name)


def _report_quarantine(images: ImageSet) -> None:
    place = default_quarantine_file(images.source)
    try:
        images.write_quarantine(place)
        where = f"listed in {place}"
    except OSError:
        name, reason = images.quarantined[0]
        where = f"the first: {name}: {reason}"
    counts = f"{len(images.quarantined):,} files left out, {len(images):,} used"
    print(f"kiln: {images.name}: {counts}; {where}", file=sys.stderr)


def _avatars(size: int, progress: bool) -> Path:
    """The folder of the embedded avatars, rendered on first use; concurrent processes wait for the first one."""
    avatars = importlib.import_module("engine.data.avatars")
    version = getattr(avatars, "VERSION", 1)
    home = cache_folder() / "avatars"
    folder = home / f"v{version}_n{AVATAR_COUNT}_s{size}_seed{AVATAR_SEED}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with open(home / f".{folder.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                if progress:
                    print(f"kiln: rendering {AVATAR_COUNT:,} avatars into {folder} (once)", file=sys.stderr)
                for abandoned in home.glob(f".{folder.name}.*.part"):  # by a process that was killed
                    shutil.rmtree(abandoned, ignore_errors=True)
                temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=home))
                try:
                    shown = progress and sys.stderr.isatty()
                    avatars.write(temporary / "set", AVATAR_COUNT, size, AVATAR_SEED, progress=shown)
                    os.replace(temporary / "set", folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"the avatars cannot be written to {home} ({error.strerror}): set KILN_CACHE to a folder with room"
        ) from error
    return folder
