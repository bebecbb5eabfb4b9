"""What the training tests share: a tiny configuration and a loader of smooth random images, no files needed."""

from pathlib import Path

import torch

from engine.config import TrainConfig, resolve
from engine.data import Batch

TINY = {"--resolution": "16", "--filters": "2", "--hidden": "4", "--batch-size": "4", "--threads": "1"}
# the paper's dials, whatever the preset is tuned to
DIALS = {"--gamma": "0.5", "--lambda-k": "0.001", "--lambda-r": "0.5", "--lr-schedule": "constant"}


def tiny_config(*flags: str, mode: str = "--eager", out: Path | None = None) -> TrainConfig:
    """16x16, 2 filters, batch 4, one thread, resolved from a command line; `flags` win."""
    words = [mode] if out is None else [mode, "--out", str(out)]
    for flag, value in (TINY | DIALS).items():
        words += [] if flag in flags else [flag, value]
    return resolve([*words, *flags])[0]


def smooth_images(seed: int, count: int, side: int, channels: int = 3) -> torch.Tensor:
    """(count, channels, side, side) in [-1, 1], channels_last."""
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
    return images.contiguous(memory_format=torch.channels_last)


def batch_of(config: TrainConfig, seed: int = 0) -> Batch:
    """One batch with landmarks."""
    generator = torch.Generator().manual_seed(seed)
    landmarks = torch.rand(config.batch_size, 68, 2, generator=generator) * config.resolution
    images = smooth_images(seed, config.batch_size, config.resolution, config.channels)
    return Batch(images, landmarks, torch.arange(config.batch_size))


class FakeLoader:
    """Batch i is a function of i. `poison`: the batch whose images are NaN."""

    def __init__(self, config: TrainConfig, poison: int | None = None):
        self.config, self.poison, self.position, self.seconds_waited = config, poison, 0, 0.0

    def next(self) -> Batch:
        batch = batch_of(self.config, self.position)
        if self.position == self.poison:
            batch.images[0, 0, 0, 0] = float("nan")
        self.position += 1
        return batch

    def fixed(self, count: int) -> Batch:
        batch = batch_of(self.config, 10_000)
        return Batch(batch.images[:count], batch.landmarks[:count], batch.indices[:count])

    def state_dict(self) -> dict:
        return {"position": self.position}

    def load_state_dict(self, state: dict) -> None:
        self.position = state["position"]

    def describe(self) -> str:
        return "fake"

    def close(self) -> None:
        pass
