"""What the tests of systems on two image sets share: a tiny configuration and batches of both sets, no files needed."""

import torch

from engine.config import TrainConfig, resolve
from engine.data import Batch, Needs
from engine.systems import system_class
from tests.tape import Tape
from tests.training_fakes import smooth_images

TINY = {"--resolution": "16", "--filters": "2", "--batch-size": "4", "--threads": "1", "--lr-schedule": "constant"}


def config_of(system: str, *flags: str, mode: str = "--eager", own: dict[str, str] | None = None) -> TrainConfig:
    """16x16, 2 filters, batch 4, one thread, and `own`, resolved from a command line; `flags` win."""
    words = [mode, "--system", system]
    for flag, value in (TINY | (own or {})).items():
        words += [] if flag in flags else [flag, value]
    return resolve([*words, *flags])[0]


def batch_of(config: TrainConfig, seed: int = 0) -> Batch:
    """One step's batch: photos, and synthetic images in `more`, as many of each as the system asks for."""
    real, synthetic = system_class(config.system).needs(config)
    batch = _of_set(config, real, 2 * seed)
    batch.more = (_of_set(config, synthetic, 2 * seed + 1),)
    return batch


def _of_set(config: TrainConfig, need: Needs, seed: int) -> Batch:
    images = smooth_images(seed, need.samples, config.resolution, config.channels)
    generator = torch.Generator().manual_seed(seed)
    landmarks = torch.rand(need.samples, 68, 2, generator=generator) * config.resolution if need.points else None
    return Batch(images, landmarks, torch.arange(need.samples))


class RandomTape(Tape):
    """A tape whose recording draws no random numbers, as that of a CUDA graph."""

    def record(self, work):
        before = torch.get_rng_state()
        losses = super().record(work)
        torch.set_rng_state(before)
        return losses
