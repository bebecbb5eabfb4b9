"""The streaming loader: files read and decoded through DALI a few batches ahead of training."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from engine.data.dataset import ImageSet
from engine.data.decoding.dali import PIXELS_AT_ONCE, Decoder, DecodingError, claim, runs_that_fit, worker_threads
from engine.data.decoding.upload import DeviceDraw
from engine.data.loader import Loader, LoaderOptions

_AHEAD = 3  # batches being read, decoded or waiting to be used
_AT_ONCE = 2 * PIXELS_AT_ONCE  # pixels decoded together: eight photos of 12 million, one for each thread


class StreamingLoader(Loader):
    """Several threads read files, one more runs DALI on whole batches, or on parts of them where files are large."""

    def __init__(self, images: ImageSet, options: LoaderOptions, reason: str) -> None:
        super().__init__(images, options, reason)
        self._decoder = Decoder(self._images_in_batch, self._stored, options.channels, self.device)
        self._readers = ThreadPoolExecutor(worker_threads(), thread_name_prefix="kiln-read")
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="kiln-decode")
        self._ready: deque[Future[list[Tensor]]] = deque()
        self._planned = self._samples  # where in the stream the next batch to prepare begins
        self._rows = torch.arange(self._images_in_batch, device=self.device)

    def describe(self) -> str:
        """One line: which loader, and why."""
        where = "GPU" if self.device.type == "cuda" else "CPU"
        return (
            f"dali loader: {len(self.images):,} files read and decoded by DALI on the {where}, {_AHEAD} batches ahead "
            f"({self.reason})"
        )

    def settle(self) -> None:
        """Wait until the batches being prepared are there. An error in one is raised when that batch is asked for."""
        wait(self._ready)

    def close(self) -> None:
        """Stop the threads and free DALI's buffers."""
        self._readers.shutdown(cancel_futures=True)
        self._decoding.shutdown(cancel_futures=True)
        self._ready.clear()
        self._decoder = None

    def _squares(self, sent: DeviceDraw) -> tuple[Tensor, Tensor]:
        while len(self._ready) < _AHEAD:
            self._ready.append(self._prepare(self._draw(self._planned).indices))
            self._planned += self.options.global_batch_size
        return _joined(self._ready.popleft().result()), self._rows

    def _squares_of(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        size = self._images_in_batch
        parts = [self._prepare(indices[start : start + size]) for start in range(0, len(indices), size)]
        store = torch.cat([_joined(part.result()) for part in parts])
        return store, torch.arange(len(store), device=self.device)

    def _restart(self) -> None:
        for batch in self._ready:
            batch.cancel()
        self._ready.clear()
        self._planned = self._samples

    def _prepare(self, indices: np.ndarray) -> Future[list[Tensor]]:
        """Begin to read and decode these images."""
        runs = runs_that_fit(self._pixels(indices).tolist(), len(indices), _AT_ONCE)
        parts = [indices[run.start : run.stop] for run in runs]
        return self._decoding.submit(self._decode, parts, self._read_ahead(parts[0]))

    def _pixels(self, indices: np.ndarray) -> np.ndarray:
        """(B,) how many pixels these images have."""
        return self.images.sizes[indices].prod(axis=1)

    def _read_ahead(self, part: np.ndarray | None) -> list[Future[bytes | bytearray]]:
        """Begin to read a part of a batch before its turn; nothing where it is one picture too large to lie waiting."""
        return [] if part is None or self._pixels(part).sum() > _AT_ONCE else self._read(part)

    def _read(self, indices: np.ndarray) -> list[Future[bytes | bytearray]]:
        """Begin to read these images."""
        return [self._readers.submit(self.images.read, int(index)) for index in indices]

    def _decode(self, parts: list[np.ndarray], reads: list[Future[bytes | bytearray]]) -> list[Tensor]:
        """The stored squares of a batch, (B, S, S, C) uint8 for each of its parts.

        parts: indices of the images that are decoded together.
        reads: of the first part, where they have begun. While a part is decoded, only the next one is read.
        """
        squares = []
        for part, following in zip_longest(parts, parts[1:]):
            encoded = [read.result() for read in reads or self._read(part)]
            reads = self._read_ahead(following)
            try:
                squares.append(self._decoder(encoded, *self._squares_in_files(part)))
            except DecodingError as error:
                raise self._undecodable(part, error) from error
        return squares


def _joined(parts: list[Tensor]) -> Tensor:
    """What a Decoder returned for the parts of a batch, as one tensor for use on the current CUDA stream."""
    claimed = [claim(part) for part in parts]
    return claimed[0] if len(claimed) == 1 else torch.cat(claimed)
