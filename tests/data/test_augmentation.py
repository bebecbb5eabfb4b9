"""Augmentation against SplitMix64 in plain integers, and against where marks in pictures go."""

import pytest
import torch
from torch.nn import functional as F

from engine.data.augmentation import Augmentation, uniform
from tests.support.training_fakes import smooth_images

WORDS = torch.arange(1, 9) * 0x1234_5678_9ABC_DEF - (1 << 60)


def split_mix(word: int, count: int) -> list[float]:
    """The first numbers of SplitMix64 from a state, as Steele, Lea and Flood print it (2014, figure 17)."""
    numbers, state = [], word % (1 << 64)
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % (1 << 64)
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % (1 << 64)
        numbers.append(((z ^ (z >> 31)) >> 40) / (1 << 24))
    return numbers


def test_numbers_are_those_of_splitmix64() -> None:
    assert uniform(WORDS, 5).tolist() == [split_mix(word, 5) for word in WORDS.tolist()]
    many = uniform(torch.arange(20_000), 4)
    assert many.min() >= 0 and many.max() < 1
    assert (many.mean(0) - 0.5).abs().max() < 0.01 and (torch.corrcoef(many.T) - torch.eye(4)).abs().max() < 0.03


def test_without_strength_or_words_images_stay() -> None:
    images, points = smooth_images(0, 8, 32), torch.rand(8, 5, 2) * 32
    for augmentation, words in ((Augmentation(), WORDS), (Augmentation(light=1.0), None)):
        same, same_points = augmentation(images, points, words)
        assert torch.equal(same, images) and same_points is points
    halved, halved_points = Augmentation(geometry=1.0)(images, points, None)
    assert halved.is_contiguous(memory_format=torch.channels_last)
    wanted = F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
    torch.testing.assert_close(halved, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(halved_points, (points + 0.5) / 2 - 0.5)


def spots(points: torch.Tensor, side: int, sigma: float) -> torch.Tensor:
    """A channel for each point (B, K, 2), with a Gaussian spot at it, from -1 to 1."""
    places = torch.arange(side, dtype=torch.float32)
    x, y = ((places - points[..., axis, None]) ** 2 for axis in (0, 1))
    return 2 * torch.exp(-(x[..., None, :] + y[..., :, None]) / (2 * sigma**2)) - 1


def test_landmarks_move_with_the_image() -> None:
    points = 40 + 48 * torch.rand(8, 3, 2, generator=torch.Generator().manual_seed(1))
    images, moved = Augmentation(geometry=1.0)(spots(points, 128, 4.0), points, WORDS)
    weights = (images + 1).clamp_min(0.2) - 0.2
    places = torch.arange(64.0)
    for axis, along in ((0, 2), (1, 3)):
        profile = weights.sum(along)
        centre = (profile * places).sum(-1) / profile.sum(-1)
        torch.testing.assert_close(centre, moved[..., axis], rtol=0, atol=0.2)
    assert (moved - (points / 2 - 0.25)).abs().max() > 3  # they do move


def test_a_turned_image_is_as_sharp_as_a_shrunken_one() -> None:
    # noise with the spectrum of a photo that was itself shrunk: the decoder's squares are no sharper
    noise = torch.randn(8, 3, 256, 256, generator=torch.Generator().manual_seed(2)).mul(0.3)
    squares = F.interpolate(noise, scale_factor=0.5, mode="bilinear", antialias=True).clamp(-1, 1)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(3, 1, 3, 3)
    still, turned = (
        F.conv2d(Augmentation(geometry=1.0)(squares, None, words)[0], kernel, groups=3).var() for words in (None, WORDS)
    )
    assert 0.8 < turned / still < 1.25


@pytest.mark.parametrize("channels", [1, 3])
def test_light_changes_brightness_and_stays_in_range(channels: int) -> None:
    images = smooth_images(0, 8, 32, channels)
    lit, _ = Augmentation(light=1.0)(images, None, WORDS)
    assert lit.shape == images.shape and lit.isfinite().all() and lit.abs().max() <= 1
    change = (lit - images).mean((1, 2, 3))
    assert change.max() > 0.02 and change.min() < -0.02
    slight, _ = Augmentation(light=0.1)(images, None, WORDS)
    assert 0 < (slight - images).abs().mean() < 0.3 * (lit - images).abs().mean()


def test_images_of_one_word_change_alike() -> None:
    image = smooth_images(0, 1, 64)
    augmentation = Augmentation(geometry=0.7, light=0.7)
    twice, points = augmentation(image.repeat(2, 1, 1, 1), torch.ones(2, 3, 2), WORDS[:1].repeat(2))
    assert torch.equal(twice[0], twice[1]) and torch.equal(points[0], points[1])
    alone, _ = augmentation(image, None, WORDS[:1])
    torch.testing.assert_close(alone[0], twice[0], rtol=0, atol=1e-5)
