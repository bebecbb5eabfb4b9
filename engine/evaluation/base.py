"""What the evaluations of all kinds of systems share: their inputs, reading images, and what they offer."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine.config import TrainConfig
from engine.data import ImageSet
from engine.data.pixel_values import from_uint8
from engine.evaluation import figures
from engine.evaluation.measures import Measures, panels
from engine.host import atomic_files
from engine.inference import pictures
from engine.inference.faces import FaceFinder
from engine.inference.sample_grid import save_grid

EXAMPLES = 8


@dataclass(frozen=True)
class Means:
    """What measuring takes besides images: the face finder, the Inception file (or None) and the seed of draws."""

    finder: FaceFinder
    inception: Path | None
    device: torch.device
    seed: int = 0
    batch_size: int = 32


class Evaluation(ABC):
    """A model's results on a data set. Images are uint8 (N, C, R, R), as they would be written.

    result  the name, in the measures, of what the model made
    """

    result: str
    results: Tensor

    @abstractmethod
    def measure(self, means: Means) -> Measures:
        """{set of images: {measure: value}}, the result first."""

    @abstractmethod
    def rows(self, chosen: Tensor) -> dict[str, Tensor]:
        """What the results at these places came from and should be: label -> (len(chosen), C, R, R)."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What metrics.json says of the data."""

    def examples(self) -> Tensor:
        """Places of a few results spread evenly."""
        count = min(EXAMPLES, len(self.results))
        return torch.arange(count) * len(self.results) // count

    def draw(self, measures: Measures, out: Path) -> None:
        """Write the figures."""
        chosen = self.examples()
        rows = {label: from_uint8(images) for label, images in self.rows(chosen).items()}
        save_grid(rows | {self.result: from_uint8(self.results[chosen])}, out / "examples.png")
        atomic_files.write_bytes(out / "bars.png", figures.bars(panels(measures)))


def read(dataset: ImageSet, indices: Iterable[int], config: TrainConfig) -> Iterator[tuple[np.ndarray, Any]]:
    """Each image as (C, R, R) uint8, cropped and shrunk as in training, and its points in pixels of R (or None)."""
    for index in indices:
        image, _ = pictures.read(dataset.read(int(index)))
        placement = pictures.place(image.size, config.resolution, "crop")
        points = None if dataset.landmarks is None else placement.landmarks(dataset.landmarks[index])
        yield pictures.to_square(image, placement, config.resolution, config.channels), points


def read_all(dataset: ImageSet, indices: Iterable[int], config: TrainConfig) -> Tensor:
    """The images as one (N, C, R, R) uint8."""
    return torch.from_numpy(np.stack([pixels for pixels, _ in read(dataset, indices, config)]))


def chunks(dataset: ImageSet, indices: np.ndarray, config: TrainConfig, what: str, size: int = 256) -> Iterator[Tensor]:
    """The chosen images in pieces of (size, C, R, R) uint8, with progress."""
    for batch in in_batches(indices, size, what):
        yield read_all(dataset, batch, config)


def spread_indices(total: int, limit: int) -> np.ndarray:
    """`limit` (0: all) of `total` indices, spread evenly."""
    count = min(limit or total, total)
    return np.arange(count, dtype=np.int64) * total // count


def in_batches(items: Sequence[Any], size: int, what: str) -> Iterator[Sequence[Any]]:
    """Pieces of `size`, with progress."""
    with tqdm(total=len(items), unit=" images", desc=what, disable=None, dynamic_ncols=True) as progress:
        for start in range(0, len(items), size):
            yield items[start : start + size]
            progress.update(len(items[start : start + size]))
