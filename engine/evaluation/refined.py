"""Measures how good a refiner is: refiner, simgan, cyclegan.

The system refiner makes each image anew from shrunken copies of it, and the result is compared with the image. "input"
is the sharpest of these copies, enlarged by cubic interpolation; the result has to be better than the input.
The systems simgan and cyclegan refine synthetic images. L1, PSNR, SSIM and identity then say how much of the input
stays (the paper's likeness and |x - R(x)|); sliced Wasserstein distance, FID and detection rate say how much like
photos the result has become.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.data import ImageSet
from engine.data.pixel_values import network_input, result_pixels
from engine.evaluation import figures
from engine.evaluation.base import Evaluation, Tools, Window, in_batches, read, read_all, spread_indices
from engine.evaluation.fidelity import inception_measures
from engine.evaluation.identity import SKIPPED, identity
from engine.evaluation.measures import Measures, compare, detection_rates, distribution_distance
from engine.evaluation.sharpness import sharpness
from engine.host import atomic_files
from engine.inference.trained import Trained
from engine.networks.refiner import cubic, enlarge, pyramid

NO_REAL = "skipped: needs real photos to compare to; give them with --real"


class Refined(Evaluation):
    """The evaluation of a system of the kind refine; all images are (N, C, R, R) uint8.

    inputs:    what the model saw, enlarged
    results:   what the model made of it
    originals: the images of the data set
    reals:     photos to compare with as a set, or None
    """

    result = "refined"

    def __init__(self, model: Trained, dataset: ImageSet, *, real: ImageSet | None, limit: int, batch_size: int,
                 window: Window | None = None, progress: bool = True):  # fmt: skip
        config = model.config
        self.inject: tuple[int, ...] = getattr(config, "inject", ())
        indices = spread_indices(len(dataset), limit)
        inputs, results, originals = [], [], []
        side = max(self.inject, default=0)
        matrix = cubic(side, config.resolution).to(model.device) if side else None
        for batch in in_batches(indices, batch_size, "refining", progress=progress):
            pairs = list(read(dataset, batch, config, window))
            pixels = np.stack([pixels for pixels, _ in pairs])
            images = network_input(pixels, model.device)
            points = None
            if model.module.needs_landmarks:
                points = torch.from_numpy(np.stack([points for _, points in pairs])).to(model.device)
            with torch.inference_mode():
                results.append(torch.from_numpy(result_pixels(model.module(images, points))))
                if matrix is not None:
                    seen = enlarge(pyramid(images, (side,))[side], matrix)
                    inputs.append(torch.from_numpy(result_pixels(seen)))
            originals.append(torch.from_numpy(pixels))
        self.results, self.originals = torch.cat(results), torch.cat(originals)
        self.inputs = torch.cat(inputs) if inputs else self.originals
        self.reals = None
        if real is not None:
            self.reals = read_all(real, spread_indices(len(real), len(indices)), config)
        self._data, self._real = dataset, real

    def measure(self, tools: Tools) -> Measures:
        """The measures of "refined", "input", and of the sets that they are compared to: "original", "real" or both."""
        sets = {"refined": self.results, "input": self.inputs}
        if self.inject:
            sets["original"] = self.originals
        if self.reals is not None:
            sets["real"] = self.reals
        measures: Measures = {name: {} for name in sets}
        measures["refined"] |= compare(self.results, self.originals)
        if self.inject:
            measures["input"] |= compare(self.inputs, self.originals)
        photos = self.reals if self.reals is not None else self.originals if self.inject else None
        for name in ("refined", "input"):
            measures[name]["swd"] = NO_REAL if photos is None else distribution_distance(sets[name], photos, tools.seed)
            measures[name]["sharpness"] = NO_REAL if photos is None else sharpness(sets[name], photos)
        for name, rate in detection_rates(sets, tools.finder, progress=tools.thorough).items():
            measures[name]["detection_rate"] = rate
        if not tools.thorough:
            return measures
        measures["refined"]["identity"] = identity(self.results, self.originals) or SKIPPED
        if photos is None:
            return measures | {"refined": measures["refined"] | {"fid": NO_REAL, "inception_score": NO_REAL}}
        inception = inception_measures(self.results, photos, tools.inception, tools.device, tools.batch_size)
        measures["refined"] |= inception
        return measures

    def rows(self, chosen: Tensor) -> dict[str, Tensor]:
        """The copies that the model saw, each enlarged, and the images."""
        images = self.originals[chosen]
        if not self.inject:
            return {"input": images}
        copies = {}
        for side in self.inject:
            factor = images.shape[-1] // side
            small = images[:, :, ::factor, ::factor]
            copies[f"input {side}"] = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        return {**copies, "original": images}

    def about(self) -> dict[str, Any]:
        data = {"data_digest": self._data.digest, "images": len(self.results)}
        if self.inject:
            data["inject"] = list(self.inject)
        if self._real is not None:
            data |= {"real": str(self._real.root), "real_digest": self._real.digest, "real_images": len(self.reals)}
        return data

    def draw(self, measures: Measures, out: Path) -> None:
        super().draw(measures, out)
        chosen = self.examples()
        images, results = self.originals[chosen], self.results[chosen]
        maps = figures.heatmaps({"original" if self.inject else "input": images}, "refined", results, images)
        atomic_files.write_bytes(out / "heatmaps.png", maps)
