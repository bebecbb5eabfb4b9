"""How good a refiner is: refiner, simgan, cyclegan.

The refiner makes each image anew from its own shrunken copies and is compared with it; "input" is what it saw, its
sharpest copy enlarged bilinearly, and a refiner has to be better than that. The others refine synthetic images: L1,
PSNR, SSIM and identity then say how much of the input stays (the paper's likeness and |x - R(x)|), and the sliced
Wasserstein distance, FID and detection rate how much like photos it has become.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data import ImageSet
from engine.data.pixel_values import network_input, result_pixels
from engine.evaluation import figures
from engine.evaluation.base import Evaluation, Means, in_batches, read, read_all, spread_indices
from engine.evaluation.fidelity import inception_measures
from engine.evaluation.identity import SKIPPED, identity
from engine.evaluation.measures import Measures, compare, detection_rates, distribution_distance
from engine.host import atomic_files
from engine.inference.trained import Trained

NO_REAL = "skipped: needs real photos to compare to; give them with --real"


class Refined(Evaluation):
    """inputs, results, originals: what the model saw (enlarged), its results, the images; reals: photos, or None."""

    result = "refined"

    def __init__(self, model: Trained, dataset: ImageSet, *, real: ImageSet | None, limit: int, batch_size: int):
        config = model.config
        self.inject: tuple[int, ...] = getattr(config, "inject", ())
        indices = spread_indices(len(dataset), limit)
        inputs, results, originals = [], [], []
        for batch in in_batches(indices, batch_size, "refining"):
            pairs = list(read(dataset, batch, config))
            pixels = np.stack([pixels for pixels, _ in pairs])
            images = network_input(pixels, model.device)
            points = None
            if model.module.needs_landmarks:
                points = torch.from_numpy(np.stack([points for _, points in pairs])).to(model.device)
            with torch.inference_mode():
                results.append(torch.from_numpy(result_pixels(model.module(images, points))))
                if self.inject:
                    inputs.append(torch.from_numpy(result_pixels(seen_by(images, max(self.inject)))))
            originals.append(torch.from_numpy(pixels))
        self.results, self.originals = torch.cat(results), torch.cat(originals)
        self.inputs = torch.cat(inputs) if inputs else self.originals
        self.reals = None
        if real is not None:
            self.reals = read_all(real, spread_indices(len(real), len(indices)), config)
        self._data, self._real = dataset, real

    def measure(self, means: Means) -> Measures:
        """ "refined", "input", and what they are compared to: "original" or "real" or both."""
        sets = {"refined": self.results, "input": self.inputs}
        if self.inject:
            sets["original"] = self.originals
        if self.reals is not None:
            sets["real"] = self.reals
        found: Measures = {name: {} for name in sets}
        found["refined"] |= compare(self.results, self.originals)
        if self.inject:
            found["input"] |= compare(self.inputs, self.originals)
        photos = self.reals if self.reals is not None else self.originals if self.inject else None
        for name in ("refined", "input"):
            found[name]["swd"] = NO_REAL if photos is None else distribution_distance(sets[name], photos, means.seed)
        for name, rate in detection_rates(sets, means.finder).items():
            found[name]["detection_rate"] = rate
        found["refined"]["identity"] = identity(self.results, self.originals) or SKIPPED
        if photos is None:
            return found | {"refined": found["refined"] | {"fid": NO_REAL, "inception_score": NO_REAL}}
        inception = inception_measures(self.results, photos, means.inception, means.device, means.batch_size)
        found["refined"] |= inception
        return found

    def rows(self, chosen: Tensor) -> dict[str, Tensor]:
        """What the model saw at each size, and the image."""
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
        found = {"data_digest": self._data.digest, "images": len(self.results)}
        if self.inject:
            found["inject"] = list(self.inject)
        if self._real is not None:
            found |= {"real": str(self._real.root), "real_digest": self._real.digest, "real_images": len(self.reals)}
        return found

    def draw(self, measures: Measures, out: Path) -> None:
        super().draw(measures, out)
        chosen = self.examples()
        images, results = self.originals[chosen], self.results[chosen]
        maps = figures.heatmaps({"original" if self.inject else "input": images}, "refined", results, images)
        atomic_files.write_bytes(out / "heatmaps.png", maps)


def seen_by(images: Tensor, side: int) -> Tensor:
    """The shrunken copy of `side` pixels, enlarged bilinearly to the images' size, pixel centres where they were."""
    factor = images.shape[-1] // side
    small = images[:, :, ::factor, ::factor]
    # nearest keeps the first pixel of every block: sample i lies at i * factor, not at the centre of the block
    places = torch.arange(images.shape[-1], device=images.device, dtype=images.dtype) / factor
    places = (2 * places + 1) / side - 1
    grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1).expand(len(images), -1, -1, -1)
    return F.grid_sample(small.contiguous(), grid, mode="bilinear", padding_mode="border", align_corners=False)
