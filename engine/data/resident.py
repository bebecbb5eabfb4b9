"""The resident loader: the whole set decoded once through DALI, kept on the device as uint8."""

import sys
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine import distributed
from engine.data.dataset import ImageSet
from engine.data.decoding.dali import (
    PIXELS_AT_ONCE,
    Decoder,
    DecodingError,
    claim,
    runs_that_fit,
    worker_threads,
)
from engine.data.decoding.upload import DeviceDraw
from engine.data.loader import Loader, LoaderOptions

_FILES = 64  # decoded together


class ResidentLoader(Loader):
    """Gathers batches from a (N, S, S, C) uint8 tensor on the device."""

    def __init__(self, images: ImageSet, options: LoaderOptions, reason: str) -> None:
        super().__init__(images, options, reason)
        shape = (len(images), self._stored, self._stored, options.channels)
        self._store = torch.empty(shape, dtype=torch.uint8, device=self.device)
        # each rank decodes its share of the set, and all get it
        rank, ranks = distributed.rank(), distributed.size()
        bounds = [number * len(images) // ranks for number in range(ranks + 1)]
        with distributed.together():
            self._decode(bounds[rank], bounds[rank + 1])
        distributed.spread(self._store, bounds)

    def describe(self) -> str:
        """One line: which loader, and why."""
        side = self._stored
        return (
            f"resident loader: {len(self.images):,} images decoded once by DALI, held on {self.device} "
            f"as {side}x{side}x{self.options.channels} uint8 ({self.reason})"
        )

    def close(self) -> None:
        """Free the store."""
        self._store = self._store[:0]

    def _squares(self, sent: DeviceDraw) -> tuple[Tensor, Tensor]:
        return self._store, sent.indices

    def _squares_of(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        return self._store, torch.from_numpy(indices).to(self.device)

    def _decode(self, first: int, end: int) -> None:
        """Fill rows first .. end - 1 of the store.

        Files are read in threads, up to two runs ahead of the decoding, but nothing beside a single large picture.
        """
        decoder = Decoder(_FILES, self._stored, self.options.channels, self.device)
        pixels = self.images.sizes[first:end].prod(axis=1).tolist()
        runs = (range(first + run.start, first + run.stop) for run in runs_that_fit(pixels, _FILES))
        bar = tqdm(total=end - first, desc="decoding", unit="file", file=sys.stderr, delay=0.5, disable=None)
        with bar, ThreadPoolExecutor(worker_threads()) as pool:
            waiting: deque = deque()
            while True:
                while len(waiting) < 2 and self._few_pixels(waiting) and (run := next(runs, None)) is not None:
                    waiting.append((run, [pool.submit(self.images.read, index) for index in run]))
                if not waiting:
                    break
                run, reads = waiting.popleft()
                try:
                    encoded = [read.result() for read in reads]
                    rows = slice(run.start, run.stop)
                    self._store[rows] = claim(decoder(encoded, *self._squares_in_files(rows)))
                except DecodingError as error:
                    raise self._undecodable(run, error) from error
                bar.update(len(encoded))

    def _few_pixels(self, waiting: Iterable[tuple[range, list]]) -> bool:
        """Whether the runs that wait leave room for another one."""
        return sum(self.images.sizes[run.start : run.stop].prod(axis=1).sum() for run, _ in waiting) <= PIXELS_AT_ONCE
