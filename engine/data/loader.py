"""Batch, Loader and open_loader: which loader reads a data set, in which order, and how it resumes."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from engine.data.dataset import ImageSet
from engine.data.decoding.assemble import assemble_images, assemble_landmarks
from engine.data.decoding.stored_squares import central_square, check_resolution, place_landmarks, stored_size
from engine.data.decoding.upload import Sent, Uploads, send
from engine.data.groups import Clips, Groups, Pairs, Singles, fixed_words
from engine.data.shuffling import Draw, Order
from engine.distributed import torchrun
from engine.errors import InputError
from engine.host.free_memory import free_bytes


@dataclass
class Batch:
    """images: (B, C, R, R) float32 channels_last in [-1, 1]; landmarks: (B, K, 2) float32 x, y in pixels of the R x R
    image (0 = centre of the first pixel; a missing key point is NaN) or None; both on the device. indices: (B,) int64
    on the CPU, positions in the image set. more: further images of each sample, mirrored and cut like the first.
    """

    images: Tensor
    landmarks: Tensor | None
    indices: Tensor
    more: "tuple[Batch, ...]" = ()

    def part(self, start: int, stop: int) -> "Batch":
        """Samples start to stop - 1."""
        landmarks = None if self.landmarks is None else self.landmarks[start:stop]
        more = tuple(batch.part(start, stop) for batch in self.more)
        return Batch(self.images[start:stop], landmarks, self.indices[start:stop], more)


class Loader(ABC):
    """An endless stream of batches. Order and mirroring depend on (seed, epoch, position) only, not on the loader.

    On a GPU a batch is made there from what already lies there and one small upload; `next` returns while it is made.
    """

    def __init__(self, images: ImageSet, *, batch_size: int, resolution: int, channels: int, device: torch.device,
                 seed: int, mirror: bool, crop: str, rank: int, world_size: int, batches: int, fused: bool,
                 groups: Groups, mirror_swap: bool) -> None:  # fmt: skip
        self.images, self.batch_size, self.resolution, self.channels = images, batch_size, resolution, channels
        self.device, self.rank, self.world_size, self.fused = device, rank, world_size, fused
        self._mirror_swap = mirror_swap
        self.stored = stored_size(resolution, crop)
        self.corners, self.sides = central_square(images.sizes)
        self.seconds_waited = 0.0
        self._groups, self._decoded_together = groups, groups.members * batch_size
        self._order = Order(groups.count, seed, mirror=mirror, slack=self.stored - resolution)
        # which samples of all ranks' next ones are this rank's: a share of each batch
        places = np.arange(batch_size * world_size).reshape(batches, world_size, -1)
        self._own = slice(None) if world_size == 1 else places[:, rank].reshape(-1)
        self._samples = 0  # of the whole stream, all ranks together, that have been handed out
        self._uploads = Uploads(self._decoded_together, device) if device.type == "cuda" else None
        self._landmarks = None
        if images.landmarks is not None:
            placed = place_landmarks(images.landmarks, images.sizes, self.stored)
            self._landmarks = torch.from_numpy(placed).to(device)

    @property
    def epoch(self) -> int:
        """Whole passes over the samples so far, all ranks together."""
        return self._samples // self._groups.count

    def next(self) -> Batch:
        """This rank's next batch. Raises InputError when a file has vanished or changed."""
        draw = self._draw(self._samples)
        # where the host is far ahead of a GPU it is held here: that is no waiting for data
        sent = self._uploads(draw) if self._uploads else send(draw, self.device)
        started = time.perf_counter()
        batch = self._finish(torch.from_numpy(draw.indices), sent, *self._squares(sent))
        self._samples += self.batch_size * self.world_size
        self.seconds_waited += time.perf_counter() - started
        return batch

    def fixed(self, count: int) -> Batch:
        """`count` samples spread evenly over the set, unmirrored, cut from the middle; the same on every call."""
        samples = np.arange(count, dtype=np.int64) * self._groups.count // count
        middle = np.full((count, 2), (self.stored - self.resolution) // 2, np.int64)
        draw = self._images_of(Draw(samples, np.zeros(count, bool), middle, fixed_words(count)))
        squares = self._chosen_squares(draw.indices)
        return self._finish(torch.from_numpy(draw.indices), send(draw, self.device), *squares)

    def state_dict(self) -> dict[str, int | str]:
        """Where the stream stands; loads into a loader of another kind, batch size or world size."""
        epoch, position = divmod(self._samples, self._groups.count)
        return {"epoch": epoch, "position": position, "seed": self._order.seed, "count": len(self.images),
                "digest": self.images.digest}  # fmt: skip

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on exactly where the state was taken, with its seed. Raises InputError for another data set."""
        if state["digest"] != self.images.digest:
            raise InputError(
                f"the data set has changed since the checkpoint: it had {state['count']:,} images, digest "
                f"{str(state['digest'])[:12]}; {self.images.root} has {len(self.images):,}, {self.images.digest[:12]}: "
                "give the same images, or start a new run"
            )
        self._order.seed = int(state["seed"])
        self._order.forget()
        self._samples = int(state["epoch"]) * self._groups.count + int(state["position"])
        self._restart()

    @abstractmethod
    def describe(self) -> str:
        """One line: which loader, and why."""

    def settle(self) -> None:  # noqa: B027 (nothing in the background is the common case)
        """Wait until no thread of the loader uses the device any more; until the next batch is asked for, none will."""

    def close(self) -> None:  # noqa: B027 (nothing to free is the common case)
        """Free threads and pipelines. The loader is not to be used afterwards."""

    @abstractmethod
    def _squares(self, sent: Sent) -> tuple[Tensor, Tensor]:
        """A store (M, S, S, C) uint8 and the rows (B,) of it that hold the images of the stream's next draw."""

    @abstractmethod
    def _chosen_squares(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """The same for images outside the stream."""

    def _restart(self) -> None:  # noqa: B027 (nothing prepared is the common case)
        """The stream has jumped: drop what was prepared."""

    def undecodable(self, indices: Iterable[int], error: Exception) -> InputError:
        """The error to raise when DALI fails on validated images (no memory, or a GPU codec that differs)."""
        names = ", ".join(self.images.paths[index] for index in indices)
        return InputError(f"{self.images.root}: DALI failed on one of these files: {names[:500]}: {error}")

    def _draw(self, samples: int) -> Draw:
        drawn, own = self._order.draw(samples, self.batch_size * self.world_size), self._own
        return self._images_of(Draw(drawn.indices[own], drawn.mirror[own], drawn.offsets[own], drawn.words[own]))

    def _images_of(self, draw: Draw) -> Draw:
        """A draw of samples as one of images: all first ones, then all second ones, ..."""
        chosen = self._groups(draw.indices, draw.words)
        repeats = len(chosen)
        return Draw(
            np.ascontiguousarray(chosen).reshape(-1),
            np.tile(draw.mirror, repeats),
            np.tile(draw.offsets, (repeats, 1)),
            np.tile(draw.words, repeats),
        )

    def _finish(self, indices: Tensor, sent: Sent, store: Tensor, rows: Tensor) -> Batch:
        """The batch of what was sent; indices (B,) on the host."""
        offsets, mirror = sent.offsets, sent.mirror
        landmarks = None
        if self._landmarks is not None:
            chosen = self._landmarks.index_select(0, sent.indices)
            landmarks = assemble_landmarks(chosen, offsets, mirror, self.resolution, swap=self._mirror_swap)
        assembled = assemble_images(store, rows, offsets, mirror, self.resolution, fused=self.fused)
        members = self._groups.members
        places = [None] * members if landmarks is None else landmarks.chunk(members)
        parts = zip(assembled.chunk(members), places, indices.chunk(members), strict=True)
        first, *more = (Batch(*part) for part in parts)
        return replace(first, more=tuple(more))


class Together:
    """Loaders of several image sets as one: a batch of the first, with those of the others as `more`."""

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self._loaders = loaders

    @property
    def seconds_waited(self) -> float:
        """For data, in all sets."""
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
        for loader, kept in zip(self._loaders, state["sets"], strict=True):
            loader.load_state_dict(kept)

    def describe(self) -> str:
        """One line for each set."""
        return "\n        ".join(loader.describe() for loader in self._loaders)

    def settle(self) -> None:
        """See Loader.settle."""
        for loader in self._loaders:
            loader.settle()

    def close(self) -> None:
        """Free threads and pipelines."""
        for loader in self._loaders:
            loader.close()


def open_loader(
    dataset: ImageSet,
    *,
    batch_size: int,
    resolution: int,
    channels: int,
    device: torch.device | str,
    seed: int,
    mirror: bool = True,
    mirror_swap: bool = True,
    crop: str = "center",
    rank: int = 0,
    world_size: int = 1,
    batches: int = 1,
    members: int = 1,
    loader: str = "auto",
    fused: bool = True,
) -> Loader:
    """dataset      what open_dataset returned
    batch_size   samples of this rank in a batch
    members      images of a sample: 1; 2 (a pair of the set's pairs, or two frames of a clip); 3 (frames of a clip)
    mirror_swap  left and right landmarks change places in mirrored images
    crop         "center": the central square; "random": R x R windows of the central square resized to R + R/8
    rank         this process's place among world_size; ranks take disjoint parts of every global batch
    batches      how many batches, one after the other, the samples of one call are: a rank takes its share of each
    loader       "resident": decoded once, held on the device as uint8; "dali": decoded in the background as it trains;
                 "auto": resident when that takes at most a quarter of the free memory
    fused        cut and scale the images by engine.ops.image_batch; False: by its reference, with the same result
    Raises InputError for settings that cannot work and when DALI is not installed.
    """
    from engine.data.resident import ResidentLoader
    from engine.data.streaming import StreamingLoader

    check_resolution(resolution, channels)
    device = torch.device(device)
    if loader not in ("auto", "resident", "dali"):
        raise InputError(f"loader {loader!r} is none of auto, resident, dali")
    if batch_size < 1 or not 0 <= rank < world_size:
        raise InputError(f"batch size {batch_size}, rank {rank} of {world_size}: all must count from 1 (ranks from 0)")
    groups = group(dataset, members)
    if batch_size * world_size > groups.count:
        ranks = f" ({batch_size} on each of {world_size} ranks)" if world_size > 1 else ""
        raise InputError(
            f"batch size {batch_size * world_size}{ranks} is larger than the data set ({groups.count} usable "
            f"{'images' if members == 1 else 'samples'}): lower --batch-size or add images"
        )
    needed = len(dataset) * stored_size(resolution, crop) ** 2 * channels
    limit = free_bytes(device) // 4 // (torchrun.local_size() if device.type == "cpu" else 1)
    resident = loader == "resident" or (loader == "auto" and needed <= limit)
    reason = f"{_bytes(needed)} {'<=' if needed <= limit else '>'} a quarter of free memory, {_bytes(limit)}"
    if loader != "auto":
        reason = "as asked"
    kind = ResidentLoader if resident else StreamingLoader
    return kind(dataset, batch_size=batch_size, resolution=resolution, channels=channels, device=device, seed=seed,
                mirror=mirror, crop=crop, rank=rank, world_size=world_size, batches=batches, fused=fused, groups=groups,
                mirror_swap=mirror_swap, reason=reason)  # fmt: skip


def group(images: ImageSet, members: int) -> Groups:
    """The samples of a set. Raises InputError when it has neither the pairs nor the clips that `members` needs."""
    if members == 1:
        return Singles(len(images))
    if members == 2 and images.pairs is not None:
        return Pairs(images.pairs)
    if images.clips is None or (images.clips < 0).any():
        raise InputError(f"{images.root} has no {'pairs or ' * (members == 2)}clips; give a data set that has them")
    return Clips(images.clips, members)


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
