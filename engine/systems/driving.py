"""What ggb and reenact share, the systems of the kind drive: options that move pixels, and what a user calls."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from engine.config import TrainConfig
from engine.errors import InputError


@dataclass(frozen=True)
class DrivingConfig(TrainConfig):
    """Options of ggb and reenact."""

    FIXED: ClassVar[tuple[str, ...]] = (*TrainConfig.FIXED, "correct", "source_points")
    WITH_CORRECT: ClassVar[tuple[str, ...]] = ("source_points",)
    """Options that are about what --correct makes."""
    GOOD: ClassVar[dict[str, Any]] = {
        "source_points": True,
        "lr_floor": 0.05,
        "ema": 0.998,
        "augment_geometry": 0.3,
        "augment_light": 0.3,
        "hold_out": 20,
        "eval_every": 1000,
        "sample_every": 1000,
    }
    """What the presets `good` have in common: from the source's points, turned and in other light, people held out."""

    correct: bool = False
    """The generator moves the pixels of the source and paints over the rest, instead of painting everything."""
    source_points: bool = False
    """With --correct: the generator also takes the source's points, and starts from the source moved by them."""

    def check(self) -> None:
        super().check()
        for name in self.WITH_CORRECT:
            if getattr(self, name) and not self.correct:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} is about the pixels that --correct moves: give that too")


class TrainedDriver(nn.Module):
    """A trained G as a user calls it.

    generator: takes (images, points, source_points)
    needs_source_points: it was trained with --source-points, and takes the points of the images too
    """

    def __init__(self, generator: nn.Module, needs_source_points: bool):
        super().__init__()
        self.generator = generator
        self.needs_source_points = needs_source_points

    def forward(self, images: Tensor, points: Tensor, source_points: Tensor | None = None) -> Tensor:
        """Move images to other landmarks, or to another pose.

        images:        (B, C, R, R) in [-1, 1]
        points:        (B, K, 2) x, y in pixels of R, NaN where missing
        source_points: (B, K, 2), where the points of the images are; read only where needs_source_points is True
        returns:       (B, C, R, R) in [-1, 1]
        Raises InputError when points that are needed are missing.
        """
        if self.needs_source_points and source_points is None:
            raise InputError("this model was trained with --source-points: it needs the landmarks of the images too")
        return self._run(images, points, source_points).clamp(-1, 1)

    def _run(self, images: Tensor, points: Tensor, source_points: Tensor | None) -> Tensor:
        """G's image."""
        return self.generator(images, points, source_points)
