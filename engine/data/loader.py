"""Loader: what the resident and the streaming loader share. Its options, the order of samples, and how it resumes."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from engine.data.augmentation import FINER, Augmentation
from engine.data.batch import Batch
from engine.data.dataset import ImageSet
from engine.data.decoding.assemble import assemble_images, assemble_landmarks
from engine.data.decoding.stored_squares import (
    central_square,
    check_resolution,
    corners_in_file,
    place_landmarks,
    stored_size,
)
from engine.data.decoding.upload import DeviceDraw, Uploads, send
from engine.data.groups import fixed_words, group_images
from engine.data.shuffling import Draw, ShuffledStream
from engine.errors import InputError

KINDS = ("auto", "resident", "dali")


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How a loader reads an image set. Raises InputError for settings that cannot work.

    batch_size   samples of this rank in a batch
    resolution   side R in pixels of the images of a batch
    channels     1 (grey) or 3 (colour)
    device       where batches are made; a name such as "cuda:1" becomes a torch.device
    seed         decides the order of samples, their mirroring and their crop windows
    mirror       whether half of the samples, chosen at random, are mirrored
    mirror_swap  left and right landmarks change places in mirrored images
    crop         "center": the central square; "random": R x R windows of the central square resized to R + R/8
    geometry     how strongly images are turned, scaled and shifted, 0 to 1 (engine.data.augmentation)
    light        how strongly their light and colours change, 0 to 1
    rank         this process's place among world_size; ranks take disjoint parts of every global batch
    batches      how many batches, one after the other, the samples of one call are: a rank takes its share of each
    members      images of a sample: 1; 2 (a pair of the set's pairs, or two frames of a clip); 3 (frames of a clip)
    loader       "resident": decoded once, held on the device as uint8; "dali": decoded in the background as it trains;
                 "auto": resident when that takes at most a quarter of the free memory
    fused        cut and scale the images by engine.ops.image_batch; False: by its reference, with the same result
    """

    batch_size: int
    resolution: int
    channels: int
    device: torch.device | str
    seed: int
    mirror: bool = True
    mirror_swap: bool = True
    crop: str = "center"
    geometry: float = 0.0
    light: float = 0.0
    rank: int = 0
    world_size: int = 1
    batches: int = 1
    members: int = 1
    loader: str = "auto"
    fused: bool = True

    def __post_init__(self) -> None:
        check_resolution(self.resolution, self.channels)
        object.__setattr__(self, "device", torch.device(self.device))
        if self.loader not in KINDS:
            raise InputError(f"loader {self.loader!r} is none of {', '.join(KINDS)}")
        if self.geometry and self.crop == "random":
            raise InputError("random crops and augmented geometry both move the image: take one of them")
        for name in ("geometry", "light"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augmentation of {name} goes from 0 to 1, got {getattr(self, name)}")
        if self.batch_size < 1 or not 0 <= self.rank < self.world_size:
            raise InputError(
                f"batch size {self.batch_size}, rank {self.rank} of {self.world_size}: all must count from 1 "
                "(ranks from 0)"
            )

    @property
    def stored(self) -> int:
        """Side in pixels of the squares that images are made from."""
        return FINER * self.resolution if self.geometry else stored_size(self.resolution, self.crop)

    @property
    def window(self) -> int:
        """Side in pixels of the windows that are cut from them: with geometry the whole square, else the resolution."""
        return self.stored if self.geometry else self.resolution

    @property
    def global_batch_size(self) -> int:
        """Samples of all ranks in a batch."""
        return self.batch_size * self.world_size


class Loader(ABC):
    """An endless stream of batches. Order and mirroring depend on (seed, epoch, position) only, not on the loader.

    On a GPU a batch is made there from what already lies there and one small upload; `next` returns while it is made.

    images          the ImageSet that is read
    options         LoaderOptions
    reason          why a loader of this kind reads the set, for `describe`
    seconds_waited  how long `next` has waited for data so far
    Raises InputError where the set cannot fill a batch.
    """

    def __init__(self, images: ImageSet, options: LoaderOptions, reason: str) -> None:
        self.images, self.options, self.reason = images, options, reason
        self.device = torch.device(options.device)
        self.seconds_waited = 0.0
        self._groups = group_images(images, options.members)
        self._check_batch_size()
        self._images_in_batch = options.members * options.batch_size
        self._stored = options.stored
        corners, self._sides = central_square(images.sizes)
        self._corners = corners_in_file(corners, self._sides, images.sizes, images.orientations)
        self._stream = ShuffledStream(
            self._groups.count, options.seed, mirror=options.mirror, slack=self._stored - options.window
        )
        self._augmentation = Augmentation(options.geometry, options.light)
        # which samples of all ranks' next ones are this rank's: a share of each batch
        places = np.arange(options.global_batch_size).reshape(options.batches, options.world_size, -1)
        self._own = slice(None) if options.world_size == 1 else places[:, options.rank].reshape(-1)
        self._samples = 0  # of the whole stream, all ranks together, that have been handed out
        self._uploads = Uploads(self._images_in_batch, self.device) if self.device.type == "cuda" else None
        self._landmarks = None
        if images.landmarks is not None:
            placed = place_landmarks(images.landmarks, images.sizes, self._stored)
            self._landmarks = torch.from_numpy(placed).to(self.device)

    def _check_batch_size(self) -> None:
        options, count = self.options, self._groups.count
        if options.global_batch_size > count:
            ranks = f" ({options.batch_size} on each of {options.world_size} ranks)" if options.world_size > 1 else ""
            raise InputError(
                f"batch size {options.global_batch_size}{ranks} is larger than the data set ({count} usable "
                f"{'images' if options.members == 1 else 'samples'}): lower --batch-size or add images"
            )

    @property
    def epoch(self) -> int:
        """Whole passes over the samples so far, all ranks together."""
        return self._samples // self._groups.count

    def next(self) -> Batch:
        """This rank's next batch. Raises InputError when a file has vanished or changed."""
        draw = self._draw(self._samples)
        # where the host is far ahead of a GPU, the upload holds it here: that does not count as waiting for data
        sent = self._uploads(draw) if self._uploads else send(draw, self.device)
        started = time.perf_counter()
        batch = self._assemble(torch.from_numpy(draw.indices), sent, *self._squares(sent))
        self._samples += self.options.global_batch_size
        self.seconds_waited += time.perf_counter() - started
        return batch

    def fixed(self, count: int) -> Batch:
        """`count` samples spread evenly over the set, as they are, cut from the middle; the same on every call."""
        samples = np.arange(count, dtype=np.int64) * self._groups.count // count
        middle = np.full((count, 2), (self._stored - self.options.window) // 2, np.int64)
        draw = self._images_of(Draw(samples, np.zeros(count, bool), middle, fixed_words(count)))
        squares = self._squares_of(draw.indices)
        return self._assemble(torch.from_numpy(draw.indices), send(draw, self.device), *squares, augmented=False)

    def state_dict(self) -> dict[str, int | str]:
        """Where the stream stands; loads into a loader of another kind, batch size or world size."""
        epoch, position = divmod(self._samples, self._groups.count)
        return {"epoch": epoch, "position": position, "seed": self._stream.seed, "count": len(self.images),
                "digest": self.images.digest}  # fmt: skip

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on exactly where the state was taken, with its seed. Raises InputError for another data set."""
        if state["digest"] != self.images.digest:
            raise InputError(
                f"the data set has changed since the checkpoint: it had {state['count']:,} images, digest "
                f"{str(state['digest'])[:12]}; {self.images.root} has {len(self.images):,}, {self.images.digest[:12]}: "
                "give the same images, or start a new run"
            )
        self._stream.reseed(int(state["seed"]))
        self._samples = int(state["epoch"]) * self._groups.count + int(state["position"])
        self._restart()

    @abstractmethod
    def describe(self) -> str:
        """One line: which loader, and why."""

    def settle(self) -> None:  # noqa: B027 (a loader without background threads has nothing to wait for)
        """Wait until no thread of the loader uses the device any more; until the next batch is asked for, none will."""

    def close(self) -> None:  # noqa: B027 (a loader may have nothing to free)
        """Free threads and pipelines. The loader is not to be used afterwards."""

    @abstractmethod
    def _squares(self, sent: DeviceDraw) -> tuple[Tensor, Tensor]:
        """The stored squares of the stream's next draw.

        returns: a store (M, S, S, C) uint8, and the rows (B,) of it that hold the images.
        """

    @abstractmethod
    def _squares_of(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """The stored squares of any images, outside the stream: a store (M, S, S, C) uint8, and its rows (B,)."""

    def _squares_in_files(self, rows: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Corners, sides and orientations, as Decoder takes them, of the images' squares in their files."""
        return self._corners[rows], self._sides[rows], self.images.orientations[rows]

    def _restart(self) -> None:  # noqa: B027 (a loader that prepares nothing ahead has nothing to drop)
        """Drop what was prepared for the stream's next batches: the stream has jumped to another place."""

    def _undecodable(self, indices: Iterable[int], error: Exception) -> InputError:
        """The error to raise when DALI fails on validated images (no memory, or a GPU codec that differs)."""
        names = ", ".join(self.images.paths[index] for index in indices)
        return InputError(f"{self.images.root}: DALI failed on one of these files: {names[:500]}: {error}")

    def _draw(self, start: int) -> Draw:
        """The images of this rank's part of the global batch that begins at sample `start` of the stream."""
        return self._images_of(self._stream.draw(start, self.options.global_batch_size).at(self._own))

    def _images_of(self, draw: Draw) -> Draw:
        """The images of samples as a draw: the first image of every sample, then the second of every sample, ..."""
        images = self._groups(draw.indices, draw.words)
        members = len(images)
        return Draw(
            np.ascontiguousarray(images).reshape(-1),
            np.tile(draw.mirror, members),
            np.tile(draw.offsets, (members, 1)),
            np.tile(draw.words, members),
        )

    def _assemble(
        self, indices: Tensor, sent: DeviceDraw, store: Tensor, rows: Tensor, *, augmented: bool = True
    ) -> Batch:
        """The batch of images whose stored squares are there.

        indices: (members * B,) int64 on the host.
        sent:    the same images' draw on the device.
        store:   (M, S, S, C) uint8; rows: (members * B,) of it that hold the images.
        """
        options, members = self.options, self.options.members
        images = assemble_images(store, rows, sent.offsets, sent.mirror, options.window, fused=options.fused)
        landmarks = None
        if self._landmarks is not None:
            stored = self._landmarks.index_select(0, sent.indices)
            landmarks = assemble_landmarks(stored, sent.offsets, sent.mirror, options.window, swap=options.mirror_swap)
        images, landmarks = self._augmentation(images, landmarks, sent.words if augmented else None)
        of_members = [None] * members if landmarks is None else landmarks.chunk(members)
        parts = zip(images.chunk(members), of_members, indices.chunk(members), strict=True)
        first, *more = (Batch(*part) for part in parts)
        return replace(first, more=tuple(more))


class Together:
    """Loaders of several image sets as one: a batch of the first set, with the batches of the others as its `more`."""

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self._loaders = loaders

    @property
    def seconds_waited(self) -> float:
        """How long `next` has waited for data so far, in all sets together."""
        return sum(loader.seconds_waited for loader in self._loaders)

    def next(self) -> Batch:
        """The next batch of each set. Raises InputError when a file has vanished or changed."""
        return self._joined(loader.next() for loader in self._loaders)

    def fixed(self, count: int) -> Batch:
        """`count` samples of each set, the same on every call."""
        return self._joined(loader.fixed(count) for loader in self._loaders)

    @staticmethod
    def _joined(batches: Iterable[Batch]) -> Batch:
        first, *others = batches
        return replace(first, more=tuple(others))

    def state_dict(self) -> dict[str, list]:
        """Where each stream stands."""
        return {"sets": [loader.state_dict() for loader in self._loaders]}

    def load_state_dict(self, state: dict[str, list]) -> None:
        """Go on exactly where the state was taken. Raises InputError for other data sets."""
        for loader, stored in zip(self._loaders, state["sets"], strict=True):
            loader.load_state_dict(stored)

    def describe(self) -> str:
        """One line for each set."""
        return "\n        ".join(loader.describe() for loader in self._loaders)

    def settle(self) -> None:
        """Wait until no thread of any loader uses the device any more; until the next batch is asked for, none will."""
        for loader in self._loaders:
            loader.settle()

    def close(self) -> None:
        """Free threads and pipelines."""
        for loader in self._loaders:
            loader.close()
