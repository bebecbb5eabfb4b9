"""What a trained system of the kind drive is for its users: an image and the points that it takes on. ggb, reenact."""

from torch import Tensor, nn

from engine.errors import InputError


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
