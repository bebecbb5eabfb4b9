"""What the tests of the Generative Guiding Blocks share: a tiny configuration, pairs with missing points, heatmaps."""

import math

import torch
from torch import Tensor

from engine.data import Batch
from engine.systems.ggb import GgbConfig
from tests.support.training_fakes import smooth_images


def config_of(**values) -> GgbConfig:
    tiny = {"resolution": 16, "filters": 2, "batch_size": 4, "lr": 2e-4, "device": "cpu", "threads": 1}
    config = GgbConfig(**{**tiny, **values})
    config.check()
    return config


def batch_of(config: GgbConfig, seed: int = 0) -> Batch:
    """A pair of smooth images each; the first has no target point at all, others miss some, some lie outside."""
    points = torch.rand(config.batch_size, config.points, 2, generator=torch.Generator().manual_seed(seed))
    points = (points * 1.2 - 0.1) * config.resolution
    points[0] = float("nan")
    points[1:, ::5] = float("nan")
    shape, indices = (config.batch_size, config.resolution, config.channels), torch.arange(config.batch_size)
    target = Batch(smooth_images(seed + 500, *shape), points, indices)
    return Batch(smooth_images(seed, *shape), points.flip(0), indices, (target,))


def heatmaps_of(points: Tensor, side: int, sigma: float) -> Tensor:
    """(B, K, 2) -> (B, K, side, side): a Gaussian at the point's pixel, to 3 sigma on each side; zero where missing."""
    maps = torch.zeros(*points.shape[:2], side, side)
    reach = math.ceil(3 * sigma)
    for b, k in torch.cartesian_prod(*map(torch.arange, points.shape[:2])).tolist():
        if points[b, k].isnan().any():
            continue
        column, row = (int(value) for value in points[b, k])
        for i in range(max(0, row - reach), min(side, row + reach + 1)):
            for j in range(max(0, column - reach), min(side, column + reach + 1)):
                maps[b, k, i, j] = math.exp(-((i - row) ** 2 + (j - column) ** 2) / (2 * sigma**2))
    return maps
