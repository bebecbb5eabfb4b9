"""Measures how good a face generator is (began, dcgan, wgan), against real images and its training images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.data import ImageSet
from engine.data.pixel_values import from_uint8, result_pixels
from engine.evaluation.base import Evaluation, Tools, chunks, in_batches, read_all, spread_indices
from engine.evaluation.fidelity import inception_measures
from engine.evaluation.identity import SKIPPED, recognition
from engine.evaluation.measures import Measures, detection_rates, distribution_distance
from engine.evaluation.neighbours import nearest
from engine.evaluation.sharpness import sharpness
from engine.inference.sample_grid import save_grid
from engine.inference.trained import Trained


class Generated(Evaluation):
    """The evaluation of a system of the kind generate.

    results:  (count, C, R, R) uint8, made from the noise of the seed
    reals:    (M, C, R, R) uint8, up to `limit` images of the data set
    training: the images that the generator was trained on, in which copies are looked for
    nearest:  (count, C, R, R) uint8, the training image nearest to each result; None before `measure`
    """

    result = "generated"

    def __init__(self, model: Trained, dataset: ImageSet, training: ImageSet, *, count: int, limit: int,
                 batch_size: int, seed: int, progress: bool = True):  # fmt: skip
        noise = model.module.noise(count, torch.Generator().manual_seed(seed))
        results = []
        for batch in in_batches(noise, batch_size, "generating", progress=progress):
            with torch.inference_mode():
                results.append(torch.from_numpy(result_pixels(model.module(batch.to(model.device)))))
        self.results = torch.cat(results)
        self.real_indices = spread_indices(len(dataset), limit)
        self.reals = read_all(dataset, self.real_indices, model.config)
        self.training, self._data, self._config = training, dataset, model.config
        self._known = spread_indices(len(training), limit)
        self.nearest: Tensor | None = None

    def measure(self, tools: Tools) -> Measures:
        """The measures of "generated" and "real"."""
        sets = {"generated": self.results, "real": self.reals}
        measures: Measures = {"generated": {}, "real": {}}
        measures["generated"]["swd"] = distribution_distance(self.results, self.reals, tools.seed)
        measures["generated"]["sharpness"] = sharpness(self.results, self.reals)
        for name, rate in detection_rates(sets, tools.finder, progress=tools.thorough).items():
            measures[name]["detection_rate"] = rate
        if not tools.thorough:
            return measures
        measures["generated"] |= inception_measures(
            self.results, self.reals, tools.inception, tools.device, tools.batch_size
        )
        self._recognise(measures)
        self._find_copies(measures)
        return measures

    def _recognise(self, measures: Measures) -> None:
        """Add "recognition" to the measures, also of the real images if they are others than those trained on."""
        strangers = None if self.training.digest == self._data.digest else self.reals
        training = chunks(self.training, self._known, self._config, "recognising faces")
        found = recognition(self.results, training, strangers)
        measures["generated"]["recognition"] = found["generated"] if found else SKIPPED
        if found and strangers is not None:
            measures["real"]["recognition"] = found["strangers"]

    def _find_copies(self, measures: Measures) -> None:
        """Add "nearest" to the measures: how far each image is from its nearest training image.

        Real images are measured too, for comparison. The images nearest to the generated ones are kept for the figures.
        """
        of_results = nearest(self.results, self._all("finding neighbours"))
        itself = torch.from_numpy(self.real_indices) if self.training.digest == self._data.digest else None
        self.nearest = of_results.images
        distances = {"generated": of_results.distance}
        if itself is None or len(self.training) > 1:
            distances["real"] = nearest(self.reals, self._all("for the scale"), leave_out=itself).distance
        for name, values in distances.items():
            measures[name]["nearest"] = {
                "mean": float(values.mean()),
                "std": float(values.std(correction=0)),
                "least": float(values.min()),
            }

    def _all(self, what: str) -> Iterator[Tensor]:
        """All training images in pieces."""
        return chunks(self.training, np.arange(len(self.training)), self._config, what)

    def rows(self, chosen: Tensor) -> dict[str, Tensor]:
        """No rows: generated images come from noise."""
        return {}

    def about(self) -> dict[str, Any]:
        return {
            "data_digest": self._data.digest,
            "images": len(self.results),
            "real_images": len(self.reals),
            "training": str(self.training.root),
            "training_digest": self.training.digest,
            "training_images": len(self.training),
        }

    def draw(self, measures: Measures, out: Path) -> None:
        super().draw(measures, out)
        chosen = self.examples()
        rows = {"generated": from_uint8(self.results[chosen]), "nearest training": from_uint8(self.nearest[chosen])}
        save_grid(rows, out / "neighbours.png")
