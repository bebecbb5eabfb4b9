"""Batch: what a loader hands to a system for one step."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Batch:
    """One batch of samples.

    images:    (B, C, R, R) float32 in [-1, 1], channels_last, on the device.
    landmarks: (B, K, 2) float32 on the device, x and y in pixels of the R x R image (0 = centre of the first pixel),
               a missing key point is NaN; None where the image set has no landmarks.
    indices:   (B,) int64 on the CPU, positions in the image set.
    more:      the second image of each sample, the third and so on, a batch each. They are mirrored and cut like the
               first image; with several image sets (`Together`) they are the batches of the other sets.
    """

    images: Tensor
    landmarks: Tensor | None
    indices: Tensor
    more: "tuple[Batch, ...]" = ()

    def part(self, start: int, stop: int) -> "Batch":
        """Samples start to stop - 1."""
        landmarks = None if self.landmarks is None else self.landmarks[start:stop]
        more = tuple(batch.part(start, stop) for batch in self.more)
        return Batch(self.images[start:stop], landmarks, self.indices[start:stop], more)
