"""What the tests of simgan and cyclegan share: steps on numbered batches, recorded and resumed."""

import copy
from collections.abc import Callable

import torch

from engine.config import TrainConfig
from engine.systems.base import System
from engine.systems.registry import build
from engine.training import random_state
from engine.training.cuda_graph import WARM_UP, GraphedStep
from tests.support.tape import Tape, rates_on_device
from tests.support.training_fakes import assert_same, batch_of
from tests.support.training_fakes import everything as weights_and_state


def train(system: System, first: int, last: int, step: Callable | None = None) -> list[dict[str, float]]:
    """The losses of steps on batches first..last - 1."""
    step = step or system.step
    return [{k: v.item() for k, v in step(batch_of(system.config, i)).items()} for i in range(first, last)]


def everything(system: System) -> dict:
    """A copy of the system's weights and state and of the random generators."""
    return weights_and_state(system) | {"random": copy.deepcopy(random_state.capture())}


def assert_recorded_steps_are_the_plain_steps(config: TrainConfig, steps: int) -> None:
    """Recorded and plain steps give the same losses, and the same bits at the end."""
    plain, recorded = (rates_on_device(build(config, "cpu")) for _ in range(2))
    torch.manual_seed(0)
    expected = train(plain, 0, steps)
    wanted = everything(plain)
    torch.manual_seed(0)
    tape = Tape()
    assert train(recorded, 0, steps, GraphedStep(recorded, tape)) == expected
    assert tape.replays == steps - WARM_UP
    assert_same(everything(recorded), wanted)


def assert_resumes_exactly(config: TrainConfig, middle: int, end: int) -> System:
    """A run that stops at `middle` and goes on in another system ends with the bits of one that does not stop.

    Returns the system that did not stop.
    """
    torch.manual_seed(0)
    whole = build(config, "cpu")
    train(whole, 0, middle)
    saved = everything(whole)
    expected = train(whole, middle, end)
    torch.manual_seed(99)
    second = build(config, "cpu")
    second.load_weights(saved["weights"])
    second.load_state_dict(saved["state"])
    random_state.restore(saved["random"])
    assert train(second, middle, end) == expected
    assert_same(everything(second), everything(whole))
    return whole
