"""The streaming loader: files read and decoded through DALI a few batches ahead of training."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import torch
from torch import Tensor

from engine.data.dataset import ImageSet
from engine.data.decoding.dali import Decoder, DecodingError, claim, worker_threads
from engine.data.decoding.upload import DeviceDraw
from engine.data.loader import Loader, LoaderOptions

_AHEAD = 3  # batches being read, decoded or waiting to be used


class StreamingLoader(Loader):
    """Several threads read files, one more thread runs DALI on whole batches."""

    def __init__(self, images: ImageSet, options: LoaderOptions, reason: str) -> None:
        super().__init__(images, options, reason)
        self._decoder = Decoder(self._images_in_batch, self._stored, options.channels, self.device)
        self._readers = ThreadPoolExecutor(worker_threads(), thread_name_prefix="kiln-read")
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="kiln-decode")
        self._ready: deque[Future[Tensor]] = deque()
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
        return claim(self._ready.popleft().result()), self._rows

    def _squares_of(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        size = self._images_in_batch
        parts = [self._prepare(indices[start : start + size]) for start in range(0, len(indices), size)]
        store = torch.cat([claim(part.result()) for part in parts])
        return store, torch.arange(len(store), device=self.device)

    def _restart(self) -> None:
        for batch in self._ready:
            batch.cancel()
        self._ready.clear()
        self._planned = self._samples

    def _prepare(self, indices: np.ndarray) -> Future[Tensor]:
        """Begin to read and decode these images."""
        reads = [self._readers.submit(self.images.read, int(index)) for index in indices]
        return self._decoding.submit(self._decode, indices, reads)

    def _decode(self, indices: np.ndarray, reads: list[Future[bytes]]) -> Tensor:
        """The stored squares (B, S, S, C) uint8 of these images, once their files have been read."""
        encoded = [read.result() for read in reads]
        try:
            return self._decoder(encoded, self._corners[indices], self._sides[indices])
        except DecodingError as error:
            raise self._undecodable(indices, error) from error
