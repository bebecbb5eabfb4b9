"""Measures how good a system is that moves an image to other landmarks or another pose: ggb, reenact.

A sample is a source image and a target image of the same person; the result is made from the source and the target's
points. "source" in the measures treats the source itself as the result: a result that is no better has not moved.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.data import ImageSet
from engine.data.groups import fixed_words, group_images
from engine.data.landmarks import POINTS
from engine.data.pixel_values import network_input, result_pixels
from engine.evaluation import figures
from engine.evaluation.base import Evaluation, Tools, in_batches, read, spread_indices
from engine.evaluation.fidelity import inception_measures
from engine.evaluation.identity import SKIPPED, identity, landmark_error
from engine.evaluation.measures import Measures, compare, detection_rates, distribution_distance
from engine.evaluation.sharpness import sharpness
from engine.host import atomic_files
from engine.inference.trained import Trained

NO_DETECTOR = "skipped: there is no detector for these points, only for the 68 of faces"


class Driven(Evaluation):
    """The evaluation of a system of the kind drive.

    sources, results, targets: (N, C, R, R) uint8
    points: (N, K, 2) float32, the landmarks of the targets in pixels of R
    """

    result = "result"

    def __init__(self, model: Trained, dataset: ImageSet, *, limit: int, batch_size: int, progress: bool = True):
        groups = group_images(dataset, 2)
        samples = spread_indices(groups.count, limit)
        pairs = groups(samples, fixed_words(len(samples)))[:2].T
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for batch in in_batches(pairs, batch_size, "driving", progress=progress):
            parts.append(drive(model, dataset, batch))
        self.sources, self.results, self.targets, self.points = map(torch.cat, zip(*parts, strict=True))
        self._data = dataset

    def measure(self, tools: Tools) -> Measures:
        """The measures of "result", of "source" (as if it were the result) and of "target"."""
        sets = {"result": self.results, "source": self.sources, "target": self.targets}
        measures: Measures = {name: {} for name in sets}
        for name in ("result", "source"):
            measures[name] |= compare(sets[name], self.targets)
            measures[name]["sharpness"] = sharpness(sets[name], self.targets)
        measures["result"]["swd"] = distribution_distance(self.results, self.targets, tools.seed)
        for name, rate in detection_rates(sets, tools.finder, progress=tools.thorough).items():
            measures[name]["detection_rate"] = rate
        if not tools.thorough:
            return measures
        measures["result"]["identity"] = identity(self.results, self.sources) or SKIPPED
        if self.points.shape[1] != POINTS:
            measures["result"]["landmark_error"] = NO_DETECTOR
        else:
            for name, images in sets.items():
                targets = None if name == "target" else self.targets
                error = landmark_error(images, self.points, targets)
                if error is None:
                    measures["result"]["landmark_error"] = SKIPPED
                    break
                measures[name]["landmark_error"] = error
        measures["result"] |= inception_measures(
            self.results, self.targets, tools.inception, tools.device, tools.batch_size
        )
        return measures

    def rows(self, chosen: Tensor) -> dict[str, Tensor]:
        """The sources and the targets of these results."""
        return {"source": self.sources[chosen], "target": self.targets[chosen]}

    def about(self) -> dict[str, Any]:
        return {"data_digest": self._data.digest, "images": len(self.results)}

    def draw(self, measures: Measures, out: Path) -> None:
        super().draw(measures, out)
        chosen = self.examples()
        maps = figures.heatmaps(self.rows(chosen), "result", self.results[chosen], self.targets[chosen])
        atomic_files.write_bytes(out / "heatmaps.png", maps)


def drive(model: Trained, dataset: ImageSet, indices: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Move the sources of a batch of pairs to the points of their targets.

    indices: (B, 2), the source and the target of each pair in the data set
    Returns sources, results and targets (B, C, R, R) uint8, and the points of the targets (B, K, 2) float32.
    """
    pairs = list(read(dataset, indices.reshape(-1), model.config))
    pixels = np.stack([pixels for pixels, _ in pairs])
    sources, targets = pixels[0::2], pixels[1::2]
    points = torch.from_numpy(np.stack([points for _, points in pairs[1::2]]))
    taken = [points]
    if model.module.needs_source_points:
        taken.append(torch.from_numpy(np.stack([points for _, points in pairs[0::2]])))
    with torch.inference_mode():
        images = network_input(np.ascontiguousarray(sources), model.device)
        results = model.module(images, *(one.to(model.device) for one in taken))
    images = (sources, result_pixels(results), targets)
    return *(torch.from_numpy(np.ascontiguousarray(image)) for image in images), points
