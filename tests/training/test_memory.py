"""The memory estimate against what autograd really keeps."""

import pytest
import torch

from engine.networks.autoencoder import Autoencoder
from engine.networks.initialisation import initialise
from engine.networks.refiner import RefinerGenerator, pyramid
from engine.training.memory import saved_by, step_bytes
from tests.support.training_fakes import smooth_images, tiny_config


def kept_by_autograd(network: torch.nn.Module, inputs: tuple, count: int) -> float:
    """How many elements autograd keeps for the backward pass of a sample, without parameters and inputs."""
    given = {p.untyped_storage().data_ptr() for p in network.parameters()}
    storages = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            storages[storage.data_ptr()] = (storage, storage.nbytes() / 4)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = network(*inputs)
    storages[result.untyped_storage().data_ptr()] = (None, result.numel())
    return sum(size for _, size in storages.values()) / count


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "eager"])
@pytest.mark.parametrize("kind", ["discriminator", "generator"])
def test_activations_are_what_autograd_keeps(kind: str, fused: bool) -> None:
    images = smooth_images(0, 3, 64).requires_grad_()
    if kind == "discriminator":
        networks = [Autoencoder(64, 8, 3, fused=fused) for _ in range(2)]
        inputs, one = (images,), (images[:1].to("meta"),)
    else:
        networks = [RefinerGenerator(64, 8, 3, inject=(8, 16), fused=fused) for _ in range(2)]
        inputs, one = (pyramid(images, (8, 16)),), (pyramid(images[:1].to("meta"), (8, 16)),)
    initialise(networks[0], 0)
    measured = kept_by_autograd(networks[0], inputs, 3)
    estimated, _ = saved_by(networks[1].to("meta"), one)
    assert estimated == pytest.approx(measured, rel=0.1)


def test_fused_keeps_less_and_everything_grows_with_the_batch() -> None:
    fused = step_bytes(tiny_config(mode="--fused"))
    eager = step_bytes(tiny_config(mode="--eager"))
    twice = step_bytes(tiny_config("--batch-size", "8", mode="--fused"))
    assert fused["activations"] < 0.5 * eager["activations"]
    assert twice["activations"] == 2 * fused["activations"]
    assert twice["weights"] == fused["weights"] == eager["weights"]
