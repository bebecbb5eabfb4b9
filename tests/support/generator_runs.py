"""What the tests of systems that generate from noise share: tiny configurations, and how steps are compared."""

import copy
from pathlib import Path

import torch

from engine import checkpoint
from engine.config import TrainConfig
from engine.data import Batch
from engine.systems.base import System
from engine.systems.registry import build, system_class
from engine.training.metrics import LossMeter
from tests.support.training_fakes import smooth_images

TINY = {"device": "cpu", "threads": 1, "resolution": 16, "filters": 2, "batch_size": 4, "ema": 0.9}


def configure(system: str, **values) -> TrainConfig:
    """16x16, 2 filters, batch 4; eager unless fused=True is given."""
    return system_class(system).config_class(**{**TINY, **values})


def batch_for(system: System, step: int) -> Batch:
    """Smooth images, as many as a step of the system takes."""
    config = system.config
    (need,) = system.needs(config)
    images = smooth_images(step, need.samples, config.resolution, config.channels)
    return Batch(images, None, torch.arange(need.samples))


def run_steps(system: System, steps: int, first: int = 0) -> list[dict[str, float]]:
    """The losses of steps whose random numbers depend on the step's number only."""
    found = []
    for step in range(first, first + steps):
        torch.manual_seed(step)
        found.append({name: value.item() for name, value in system.step(batch_for(system, step)).items()})
    return found


def assert_resumes_exactly(config: TrainConfig, folder: Path) -> None:
    """Three steps, a checkpoint, a new system and three more give the bits of six steps."""
    whole = build(config, "cpu")
    run_steps(whole, 3)
    checkpoint.save(folder, 3, whole.weights(), {"system": whole.state_dict()}, config)
    wanted = run_steps(whole, 3, first=3)
    saved = checkpoint.load(folder)
    assert saved.config == config
    resumed = build(saved.config, "cpu")
    resumed.load_weights(saved.weights)
    resumed.load_state_dict(saved.state["system"])
    assert run_steps(resumed, 3, first=3) == wanted
    weights = resumed.weights()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in whole.weights().items())


def assert_never_waits(system: System, monkeypatch) -> None:
    """Two steps whose results nobody reads on the host."""
    meter, batch = LossMeter(torch.device("cpu")), batch_for(system, 0)

    def waits(*_: object) -> None:
        raise AssertionError("the step waits for the device")

    with monkeypatch.context() as patched:
        # __int__ stays as it is: the CPU's kernels read sizes from tensors in host memory
        for name in ("item", "__float__", "__bool__", "tolist", "numpy"):
            patched.setattr(torch.Tensor, name, waits)
        for number in range(1, 3):
            meter.add(number, system.step(batch))


def assert_average_follows(system: System) -> None:
    """The moving average by its definition, buffers (BatchNorm's) as they are in the generator."""
    average = [p.detach().clone() for p in system.generator.parameters()]
    for step in range(1, 6):
        run_steps(system, 1, first=step)
        decay = min(system.config.ema, (1 + step) / (10 + step))
        now = list(system.generator.parameters())
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, now, strict=True)]
        for kept, wanted in zip(system.ema.parameters(), average, strict=True):
            torch.testing.assert_close(kept, wanted, rtol=1e-5, atol=1e-6)
        for kept, wanted in zip(system.ema.buffers(), system.generator.buffers(), strict=True):
            assert torch.equal(kept, wanted)
    assert not any(p.requires_grad for p in system.ema.parameters())


def adam(parameters: list[torch.Tensor], system: System, name: str) -> torch.optim.Optimizer:
    """A plain optimiser of torch for the copies `parameters`, with the settings of the system's own."""
    own = system.optimisers[name]
    kept = {"lr", "betas", "eps", "weight_decay", "alpha", "momentum"}
    return type(own)(parameters, **{key: value for key, value in own.param_groups[0].items() if key in kept})


def twins(system: System) -> dict[str, torch.nn.Module]:
    """Copies of the networks that the system trains."""
    return copy.deepcopy(system.networks())
