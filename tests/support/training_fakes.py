"""What the training tests share: a tiny configuration and a loader of smooth random images, no files needed."""

import copy
from dataclasses import fields, replace
from pathlib import Path

import torch

from engine.config import TrainConfig, flag
from engine.data import Batch
from engine.systems.base import System
from engine.systems.registry import config_class, system_class
from engine.training.resolve import resolve

TINY = {"--resolution": "16", "--filters": "2", "--hidden": "4", "--batch-size": "4", "--threads": "1"}
# the paper's values, whatever the presets have
DIALS = {"--gamma": "0.5", "--lambda-k": "0.001", "--lambda-r": "0.5", "--lr-schedule": "constant"}
DIALS |= {"--critic-weight": "0", "--d-filters": "2"}
# a recorded step has its learning rate on the device, which PyTorch's RMSprop takes on GPUs alone
TINY |= {"--optimiser": "adam"}
# every part of a step takes part from the third step on
DIALS |= {"--pretrain-refiner": "1", "--pretrain-discriminator": "1"}


def tiny_config(*flags: str, mode: str = "--eager", out: Path | None = None, system: str = "refiner") -> TrainConfig:
    """16x16, 2 filters, batch 4, one thread, resolved from a command line; `flags` win."""
    words = [mode, "--system", system] if out is None else [mode, "--system", system, "--out", str(out)]
    known = {flag(field.name) for field in fields(config_class(system))}
    for name, value in (TINY | DIALS).items():
        words += [name, value] if name in known and name not in flags else []
    words += ["--no-correct"] if "--correct" in known and "--correct" not in flags else []
    return resolve([*words, *flags])[0]


def smooth_images(seed: int, count: int, side: int, channels: int = 3) -> torch.Tensor:
    """(count, channels, side, side) in [-1, 1], channels_last."""
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
    return images.contiguous(memory_format=torch.channels_last)


def batch_of(config: TrainConfig, seed: int = 0) -> Batch:
    """One batch as the system needs it, always with landmarks."""
    parts = []
    for need in system_class(config.system).needs(config):
        for _ in range(need.members):
            number = 1000 * seed + len(parts) if parts else seed
            generator = torch.Generator().manual_seed(number)
            landmarks = torch.rand(need.samples, need.points or 68, 2, generator=generator) * config.resolution
            images = smooth_images(number, need.samples, config.resolution, config.channels)
            parts.append(Batch(images, landmarks, torch.arange(need.samples)))
    return replace(parts[0], more=tuple(parts[1:]))


def assert_same(a: object, b: object) -> None:
    """Raise AssertionError unless a and b have the same types, keys and bits at every depth."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


def worst(a: list[dict[str, float]], b: list[dict[str, float]]) -> float:
    """The largest relative difference of two runs' losses."""
    return max(abs(x[key] - y[key]) / max(abs(y[key]), 1e-6) for x, y in zip(a, b, strict=True) for key in y)


def everything(system: System) -> dict:
    """A copy of the system's weights and state."""
    return copy.deepcopy({"weights": system.weights(), "state": system.state_dict()})


class FakeLoader:
    """A loader whose batch i is a function of i.

    poison: number of the batch that has a NaN.
    """

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
        return batch.part(0, count)

    def state_dict(self) -> dict:
        return {"position": self.position}

    def load_state_dict(self, state: dict) -> None:
        self.position = state["position"]

    def describe(self) -> str:
        return "fake"

    def close(self) -> None:
        pass
