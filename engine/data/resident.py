"""The resident loader: the whole set decoded once through DALI, kept on the device as uint8."""

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine import distributed
from engine.data.dataset import ImageSet
from engine.data.decoding.dali import Decoder, DecodingError, claim, worker_threads
from engine.data.decoding.upload import Sent
from engine.data.loader import Loader

_CHUNK = 64
_CHUNK_PIXELS = 48_000_000


class ResidentLoader(Loader):
    """Gathers batches from a (N, S, S, C) uint8 tensor on the device. reason: why it was chosen."""

    def __init__(self, images: ImageSet, *, reason: str, **settings) -> None:
        super().__init__(images, **settings)
        self._reason = reason
        self._store = torch.empty(
            (len(images), self.stored, self.stored, self.channels), dtype=torch.uint8, device=self.device
        )
        # each rank decodes its share of the set, and all get it
        rank, ranks = distributed.rank(), distributed.size()
        bounds = [number * len(images) // ranks for number in range(ranks + 1)]
        with distributed.together():
            self._decode(bounds[rank], bounds[rank + 1])
        distributed.spread(self._store, bounds)

    def describe(self) -> str:
        """One line: which loader, and why."""
        side = self.stored
        return (
            f"resident loader: {len(self.images):,} images decoded once by DALI, held on {self.device} "
            f"as {side}x{side}x{self.channels} uint8 ({self._reason})"
        )

    def close(self) -> None:
        """Free the store."""
        self._store = self._store[:0]

    def _squares(self, sent: Sent) -> tuple[Tensor, Tensor]:
        return self._store, sent.indices

    def _chosen_squares(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        return self._store, torch.from_numpy(indices).to(self.device)

    def _decode(self, first: int, end: int) -> None:
        decoder = Decoder(_CHUNK, self.stored, self.channels, self.device)
        bar = tqdm(total=end - first, desc="decoding", unit="file", file=sys.stderr, delay=0.5, disable=None)
        with bar, ThreadPoolExecutor(worker_threads()) as pool:
            waiting: deque = deque()
            chunks = self._chunks(first, end)
            while True:
                while len(waiting) < 2 and (chunk := next(chunks, None)) is not None:
                    waiting.append((chunk, [pool.submit(self.images.read, index) for index in chunk]))
                if not waiting:
                    break
                chunk, reads = waiting.popleft()
                try:
                    encoded = [read.result() for read in reads]
                    here = slice(chunk.start, chunk.stop)
                    self._store[here] = claim(decoder(encoded, self.corners[here], self.sides[here]))
                except DecodingError as error:
                    raise self.undecodable(chunk, error) from error
                bar.update(len(encoded))

    def _chunks(self, first: int, end: int) -> Iterator[range]:
        """Runs of images that are decoded together: few enough pixels to fit beside the store."""
        pixels = self.images.sizes[first:end].prod(axis=1)
        start, total = first, 0
        for index, count in enumerate(pixels.tolist(), first):
            if index > start and (total + count > _CHUNK_PIXELS or index - start == _CHUNK):
                yield range(start, index)
                start, total = index, 0
            total += count
        yield range(start, end)
