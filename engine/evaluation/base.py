"""What the evaluations of all kinds of systems share: what they offer, what they need, and how they read images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.config import TrainConfig
from engine.data import ImageSet
from engine.data.pixel_values import from_uint8
from engine.evaluation import figures
from engine.evaluation.measures import Measures, panels, progress_bar
from engine.host import atomic_files
from engine.inference import pictures
from engine.inference.faces import FaceFinder
from engine.inference.sample_grid import save_grid

EXAMPLES = 8  # images in a figure, at most
Window = Callable[[np.ndarray], pictures.Box | None]


@dataclass(frozen=True)
class Tools:
    """What measuring needs besides images.

    finder:     finds faces
    inception:  file of torch-fidelity's Inception weights; None skips the measures that need it
    device:     where the Inception network runs
    seed:       of the random patches and directions of the sliced Wasserstein distance
    batch_size: images per pass of the Inception network
    thorough:   False measures only what takes a second or two, as a training does between its steps, without progress
                bars: likeness, sharpness, sliced Wasserstein distance and detection
    """

    finder: FaceFinder
    inception: Path | None
    device: torch.device
    seed: int = 0
    batch_size: int = 32
    thorough: bool = True


class Evaluation(ABC):
    """A model's results on a data set, and what can be said about them.

    result:  name of the set of results in the measures
    results: (N, C, R, R) uint8, with the values that a file of them would have
    """

    result: str
    results: Tensor

    @abstractmethod
    def measure(self, tools: Tools) -> Measures:
        """The measures, {set of images: {measure: value}}; the set of results comes first."""

    @abstractmethod
    def rows(self, chosen: Tensor) -> dict[str, Tensor]:
        """The inputs and targets of the results at the places `chosen`: label -> (len(chosen), C, R, R) uint8."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What metrics.json says about the data."""

    def examples(self) -> Tensor:
        """The places of up to 8 results, spread evenly over all."""
        count = min(EXAMPLES, len(self.results))
        return torch.arange(count) * len(self.results) // count

    def draw(self, measures: Measures, out: Path) -> None:
        """Write the figures into the folder `out`."""
        chosen = self.examples()
        rows = {label: from_uint8(images) for label, images in self.rows(chosen).items()}
        save_grid(rows | {self.result: from_uint8(self.results[chosen])}, out / "examples.png")
        atomic_files.write_bytes(out / "bars.png", figures.bars(panels(measures)))


def read(
    dataset: ImageSet, indices: Iterable[int], config: TrainConfig, window: Window | None = None
) -> Iterator[tuple[np.ndarray, Any]]:
    """Each image as (C, R, R) uint8, shrunk as in training, with its points in pixels of R (or None).

    window: the square of the pixels (H, W, 3) of an image to take; None, or where it gives None: the central one
    """
    for index in indices:
        image, _ = pictures.read(dataset.read(int(index)))
        chosen = window(np.asarray(image)) if window else None
        placement = pictures.place(image.size, config.resolution, "crop", chosen)
        points = None if dataset.landmarks is None else placement.landmarks(dataset.landmarks[index])
        yield pictures.to_square(image, placement, config.resolution, config.channels), points


def read_all(dataset: ImageSet, indices: Iterable[int], config: TrainConfig) -> Tensor:
    """The images as one tensor (N, C, R, R) uint8."""
    return torch.from_numpy(np.stack([pixels for pixels, _ in read(dataset, indices, config)]))


def chunks(dataset: ImageSet, indices: np.ndarray, config: TrainConfig, what: str, size: int = 256) -> Iterator[Tensor]:
    """The images of these indices in pieces of (size, C, R, R) uint8, with a progress bar labelled `what`."""
    for batch in in_batches(indices, size, what):
        yield read_all(dataset, batch, config)


def spread_indices(total: int, limit: int) -> np.ndarray:
    """`limit` of `total` indices, spread evenly; 0 takes all."""
    count = min(limit or total, total)
    return np.arange(count, dtype=np.int64) * total // count


def in_batches(items: Sequence[Any], size: int, what: str, *, progress: bool = True) -> Iterator[Sequence[Any]]:
    """The items in pieces of `size`, with a progress bar labelled `what`."""
    with progress_bar(len(items), what, shown=progress) as bar:
        for start in range(0, len(items), size):
            yield items[start : start + size]
            bar.update(len(items[start : start + size]))
