"""Batch, Loader and open_loader: which loader reads a data set, in which order, and how it resumes."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.data.assemble import assemble_images, assemble_landmarks
from engine.data.dataset import ImageSet
from engine.data.geometry import central_square, check_resolution, place_landmarks, stored_size
from engine.data.memory import free_bytes
from engine.data.order import Draw, Order
from engine.data.upload import Sent, Uploads, send
from engine.errors import InputError


@dataclass
class Batch:
    """images: (B, C, R, R) float32 channels_last in [-1, 1]; landmarks: (B, 68, 2) float32 x, y in pixels of the R x R
    image (0 = centre of the first pixel) or None; both on the device. indices: (B,) int64 on the CPU.
    """

    images: Tensor
    landmarks: Tensor | None
    indices: Tensor


class Loader(ABC):
    """An endless stream of batches. Order and mirroring depend on (seed, epoch, position) only, not on the loader.

    On a GPU a batch is made there from what already lies there and one small upload; `next` returns while it is made.
    """

    def __init__(self, images: ImageSet, *, batch_size: int, resolution: int, channels: int, device: torch.device,
                 seed: int, mirror: bool, crop: str, rank: int, world_size: int, fused: bool) -> None:  # fmt: skip
        self.images, self.batch_size, self.resolution, self.channels = images, batch_size, resolution, channels
        self.device, self.rank, self.world_size, self.fused = device, rank, world_size, fused
        self.stored = stored_size(resolution, crop)
        self.corners, self.sides = central_square(images.sizes)
        self.seconds_waited = 0.0
        self._order = Order(len(images), seed, mirror=mirror, slack=self.stored - resolution)
        self._samples = 0  # of the whole stream, all ranks together, that have been handed out
        self._uploads = Uploads(batch_size, device) if device.type == "cuda" else None
        self._landmarks = None
        if images.landmarks is not None:
            placed = place_landmarks(images.landmarks, images.sizes, self.stored)
            self._landmarks = torch.from_numpy(placed).to(device)

    @property
    def epoch(self) -> int:
        """Whole passes over the data set so far, all ranks together."""
        return self._samples // len(self.images)

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
        """`count` images spread evenly over the set, unmirrored, cut from the middle; the same on every call."""
        indices = np.arange(count, dtype=np.int64) * len(self.images) // count
        middle = np.full((count, 2), (self.stored - self.resolution) // 2, np.int64)
        draw = Draw(indices, np.zeros(count, bool), middle)
        return self._finish(torch.from_numpy(indices), send(draw, self.device), *self._chosen_squares(indices))

    def state_dict(self) -> dict[str, int | str]:
        """Where the stream stands; loads into a loader of another kind, batch size or world size."""
        epoch, position = divmod(self._samples, len(self.images))
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
        self._samples = int(state["epoch"]) * len(self.images) + int(state["position"])
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
        return self._order.draw(samples + self.rank * self.batch_size, self.batch_size)

    def _finish(self, indices: Tensor, sent: Sent, store: Tensor, rows: Tensor) -> Batch:
        """The batch of what was sent; indices (B,) on the host."""
        offsets, mirror = sent.offsets, sent.mirror
        landmarks = None
        if self._landmarks is not None:
            chosen = self._landmarks.index_select(0, sent.indices)
            landmarks = assemble_landmarks(chosen, offsets, mirror, self.resolution)
        assembled = assemble_images(store, rows, offsets, mirror, self.resolution, fused=self.fused)
        return Batch(assembled, landmarks, indices)


def open_loader(
    dataset: ImageSet,
    *,
    batch_size: int,
    resolution: int,
    channels: int,
    device: torch.device | str,
    seed: int,
    mirror: bool = True,
    crop: str = "center",
    rank: int = 0,
    world_size: int = 1,
    loader: str = "auto",
    fused: bool = True,
) -> Loader:
    """dataset      what open_dataset returned
    batch_size   images of this rank in a batch
    crop         "center": the central square; "random": R x R windows of the central square resized to R + R/8
    rank         this process's place among world_size; ranks take disjoint parts of every global batch
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
    if batch_size * world_size > len(dataset):
        ranks = f" on {world_size} ranks" if world_size > 1 else ""
        raise InputError(
            f"batch size {batch_size}{ranks} is larger than the data set ({len(dataset)} usable images): "
            "lower --batch-size or add images"
        )
    needed = len(dataset) * stored_size(resolution, crop) ** 2 * channels
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    limit = free_bytes(device) // 4 // max(1, neighbours)
    resident = loader == "resident" or (loader == "auto" and needed <= limit)
    reason = f"{_bytes(needed)} {'<=' if needed <= limit else '>'} a quarter of free memory, {_bytes(limit)}"
    if loader != "auto":
        reason = "as asked"
    kind = ResidentLoader if resident else StreamingLoader
    return kind(dataset, batch_size=batch_size, resolution=resolution, channels=channels, device=device, seed=seed,
                mirror=mirror, crop=crop, rank=rank, world_size=world_size, fused=fused, reason=reason)  # fmt: skip


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
