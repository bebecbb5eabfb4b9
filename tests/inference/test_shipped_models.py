"""The models in engine/shipped themselves: whole, small, with cards that say what a user must know, and able."""

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

import engine
from engine.data import avatars
from engine.data.pixel_values import network_input, result_pixels, to_uint8
from engine.evaluation.sharpness import laplacian_variance
from engine.inference import exported, shipped
from engine.inference.faces import FaceFinder
from engine.networks.refiner import cubic, enlarge, pyramid
from tests.support.packages import needs

NAMES = shipped.names()
REFINERS = {"portraits-a": (8,), "portraits-b": (8, 16), "portraits-c": (8, 16, 32)}
GENERATOR, REENACTMENT = "portraits-began", "avatars-reenact"
BYTES = 12_000_000  # of all models together, as packages carry them


def faces(count: int, size: int) -> Tensor:
    """Embedded avatars that look like a game's, (N, 3, R, R) in [-1, 1]."""
    pixels = [avatars.render(number, 0, "game", size)[0].transpose(2, 0, 1) for number in range(count)]
    return network_input(np.stack(pixels), torch.device("cpu"))


def test_the_models_that_readers_are_told_of_are_there() -> None:
    assert {*REFINERS, GENERATOR, REENACTMENT} <= set(NAMES)


def test_all_models_are_small() -> None:
    assert sum(file.stat().st_size for file in exported.SHIPPED.rglob("*") if file.is_file()) <= BYTES


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_a_user_must_know(name: str) -> None:
    card = shipped.card(name)
    assert card.startswith("---\n") and "\nlicense: apache-2.0\n" in card and f"\n# {name}\n" in card
    for part in ("Data, credit and licence", "How it was trained", "Figures", "What it does badly", "Who is missing"):
        assert f"\n## {part}\n" in card
    assert "kiln train --fused" in card
    assert 20 < len(shipped.summary(name)) < 120


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_stored_in_halves_without_paths_of_a_machine(name: str) -> None:
    folder = exported.SHIPPED / name
    for file in (exported.WEIGHTS, exported.OTHERS):
        weights = safetensors.torch.load_file(folder / file).values()
        assert {tensor.dtype for tensor in weights if tensor.is_floating_point()} == {torch.float16}
    config, _ = exported.read(folder)
    assert config.data is None and config.out is None
    assert "/" not in (folder / exported.CONFIG).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_from_a_model_with_all_its_networks(name: str) -> None:
    assert exported.read_others(exported.SHIPPED / name)


@pytest.mark.parametrize(("name", "sizes"), REFINERS.items())
def test_a_refiner_makes_a_sharp_face_of_small_copies(name: str, sizes: tuple[int, ...]) -> None:
    """The result is at least as sharp as what the model is given, keeps its tones, and differs from it."""
    model = engine.load(name)
    images = faces(4, 64)
    results, copies = model(images), pyramid(images, sizes)
    enlarged = enlarge(copies[sizes[-1]], cubic(sizes[-1], 64))
    assert laplacian_variance(to_uint8(results)).mean() > 1.2 * laplacian_variance(to_uint8(enlarged)).mean()
    # a result keeps the tones of the largest copy that the model saw, and is not that copy
    away = F.avg_pool2d(results - enlarged, 64 // sizes[-1]).abs().mean()
    assert 0 < away < 0.15


@needs("cv2")
def test_the_generator_makes_different_faces() -> None:
    model = engine.load(GENERATOR)
    images = model(model.noise(64, torch.Generator().manual_seed(1)))
    assert images.shape == (64, 3, 64, 64)
    finder = FaceFinder()
    found = sum(bool(finder.boxes(image.transpose(1, 2, 0))) for image in result_pixels(images))
    assert found > 0.9 * len(images)
    # one image, or copies of a few, would have hardly any distance between neighbours
    assert (images[1:] - images[:-1]).abs().mean((1, 2, 3)).min() > 0.05


@pytest.mark.parametrize("look", ["photo", "game"])
def test_the_reenactment_moves_people_that_it_has_not_seen(look: str) -> None:
    """A result lies far nearer to its target than the source does, and turns do not blur it away."""
    model = engine.load(REENACTMENT)
    people = [[avatars.render(number, frame, look, 128) for frame in (0, 3)] for number in range(5000, 5012)]
    (sources, own), (targets, points) = (
        (
            # half the size, as a training reads them
            F.avg_pool2d(
                network_input(np.stack([pair[i][0].transpose(2, 0, 1) for pair in people]), torch.device("cpu")), 2
            ),
            (torch.from_numpy(np.stack([pair[i][1] for pair in people])).float() + 0.5) / 2 - 0.5,
        )
        for i in (0, 1)
    )
    results = model(sources, points, own)
    assert (results - targets).abs().mean() < 0.75 * (sources - targets).abs().mean()
    sharpness = laplacian_variance(to_uint8(results)).mean() / laplacian_variance(to_uint8(targets)).mean()
    assert sharpness > 0.5
