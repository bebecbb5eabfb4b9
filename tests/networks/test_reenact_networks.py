"""The networks of reenact, and its losses on features."""

import math

import pytest
import torch

from engine.networks.initialisation import initialise
from engine.networks.layers import parameter_count
from engine.networks.moving import between_points, corrected, moved
from engine.networks.reenactment import PatchDiscriminator, ReenactmentGenerator, log_mean_sigmoid
from engine.systems.feature_losses import feature_losses
from tests.support.gram_matrix import gram
from tests.support.training_fakes import smooth_images


def test_style_is_compared_image_by_image() -> None:
    """Two images exchange their Gram matrices: the Gram matrix of the whole batch would stay equal."""
    random = torch.Generator().manual_seed(0)
    names = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
    features = {name: torch.rand(2, 4, 5, 5, generator=random) for name in names}
    swapped = {name: tensor.flip(0) for name, tensor in features.items()}
    options = {"perceptual": True, "identity": None}
    content = sum((features[name] - swapped[name]).abs().mean() for name in names)
    a, b = (gram(image) for image in features["relu3_3"])
    for fused in (True, False):
        found = feature_losses(features, swapped, **options, fused=fused)
        assert found["l_pp"].item() == pytest.approx((content + (a - b).norm()).item(), rel=1e-5)


def test_probability_of_an_image_is_the_mean_of_its_patches() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)) * 4
    torch.testing.assert_close(log_mean_sigmoid(logits), torch.sigmoid(logits).mean(1).log())
    torch.testing.assert_close(log_mean_sigmoid(-logits), (1 - torch.sigmoid(logits).mean(1)).log())
    assert log_mean_sigmoid(torch.full((1, 9), -1000.0)).item() == pytest.approx(-1000)


@pytest.mark.parametrize("side", [16, 32, 64, 128, 256])
def test_sizes_match_at_every_resolution(side: int) -> None:
    images, points = torch.zeros(1, 3, side, side), torch.full((1, 68, 2), side / 2)
    sides = []
    net = ReenactmentGenerator(side, 1, 3)
    initialise(net, 0)
    net.middle.register_forward_hook(lambda _, __, result: sides.append(result.shape[-1]))
    assert net(images, points).shape == images.shape
    assert sides == [max(4, side // 16)]
    critic = PatchDiscriminator(side, 1, 3)
    initialise(critic, 0)
    patches = critic(images, points).shape[1]
    assert patches == max(4, (side // 8 - 2) ** 2)


def test_a_correction_moves_pixels_and_paints_the_rest() -> None:
    images = smooth_images(0, 2, 16)
    made = torch.zeros(2, 6, 16, 16)
    made[:, 5] = 50  # only moved
    torch.testing.assert_close(corrected(images, made).result, images)
    made[:, 3] = math.atanh(3 / 8)  # three of the eight pixels that make half a side
    torch.testing.assert_close(corrected(images, made).result[..., :-3], images[..., 3:])
    made[:, 3], made[:, 4] = 0, math.atanh(-2 / 8)
    torch.testing.assert_close(corrected(images, made).result[:, :, 2:], images[:, :, :-2])
    made[:, 5], made[:, :3] = -50, 0.4  # only painted
    torch.testing.assert_close(corrected(images, made).result, torch.full_like(images, math.tanh(0.4)))


def test_a_correction_tells_what_it_mixes() -> None:
    images = smooth_images(0, 2, 16)
    made = torch.zeros(2, 6, 16, 16)
    made[:, :3], made[:, 3], made[:, 5] = 0.4, math.atanh(3 / 8), math.log(3)  # three quarters moved
    result, moved, painted = corrected(images, made)
    torch.testing.assert_close(moved[..., :-3], images[..., 3:])
    torch.testing.assert_close(painted, torch.full_like(images, math.tanh(0.4)))
    torch.testing.assert_close(result, 0.75 * moved + 0.25 * painted)


def test_neighbours_are_moved_alike() -> None:
    """Shifts that change from pixel to pixel have no effect; those of the left half fade into those of the right."""
    images = torch.arange(16.0).expand(1, 1, 16, 16) / 8 - 1  # so that a pixel tells where it was taken
    made = torch.zeros(1, 4, 16, 16)
    made[:, 3] = 50
    made[:, 1, :, 0::2], made[:, 1, :, 1::2] = 0.7, -0.7
    torch.testing.assert_close(corrected(images, made).result, images)
    made[:, 1, :, :8], made[:, 1, :, 8:] = math.atanh(2 / 8), 0
    taken = (corrected(images, made).result + 1)[0, 0, 0] * 8 - torch.arange(16)
    assert taken[:7].tolist() == pytest.approx([2] * 7, abs=1e-5) and taken[9:].tolist() == pytest.approx(
        [0] * 7, abs=1e-5
    )
    assert 0 < taken[8] < taken[7] < 2


def test_pixels_go_along_with_the_landmarks_near_them() -> None:
    source = torch.tensor([[[20.5, 32.5], [44.5, 32.5], [math.nan, 3.0]]])
    target = source + torch.tensor([[[-4.0, 2.0], [6.0, 0.0], [50.0, 50.0]]])
    shifts = between_points(source, target, 64)[0] * 32  # in pixels
    assert shifts.shape == (2, 32, 32)
    at_first, at_second = shifts[:, 17, 8], shifts[:, 16, 25]  # the squares whose middles the two points go to
    assert at_first.tolist() == pytest.approx([4, -2], abs=0.1) and at_second.tolist() == pytest.approx(
        [-6, 0], abs=0.1
    )
    assert shifts[:, 31, 31].abs().max() < 3  # far away little moves
    # where a landmark is missing, so is its influence
    torch.testing.assert_close(shifts, between_points(source[:, :2], target[:, :2], 64)[0] * 32)
    assert not between_points(source, source, 64).any()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(between_points(source, target, 64)[0] * 32, shifts)
    assert not between_points(source, torch.full_like(source, math.nan), 64).any()


def test_a_diverged_correction_is_not_a_number() -> None:
    """It must not end the process either, as grid_sample's gradient does for places that are NaN."""
    images, made = smooth_images(0, 2, 16).requires_grad_(), torch.full((2, 6, 16, 16), math.nan, requires_grad=True)
    result = corrected(images, made).result
    result.sum().backward()
    assert result.isnan().all() and made.grad is not None


def test_a_generator_that_knows_the_sources_landmarks_starts_from_the_source_moved() -> None:
    """Before training its own shifts are almost none."""
    images, points = smooth_images(0, 1, 32), torch.rand(1, 68, 2) * 10 + 11
    net = ReenactmentGenerator(32, 4, 3, norm=False, correct=True, source_points=True)
    initialise(net, 0)
    result, of_source, _ = net.halves(images, points + torch.tensor([3.0, 0.0]), points)
    start = between_points(points, points + torch.tensor([3.0, 0.0]), 32)
    torch.testing.assert_close(of_source, moved(images, start), atol=0.05, rtol=0)
    torch.testing.assert_close(of_source[..., 12:20, 15:22], images[..., 12:20, 12:19], atol=0.1, rtol=0)
    assert net(images, points, points).shape == result.shape


def test_no_level_is_wider_than_asked() -> None:
    net = ReenactmentGenerator(64, 4, 3, widest=12)
    assert [level.conv.weight.shape[0] for level in net.down] == [8, 12, 12, 12]
    assert [level.conv.weight.shape[0] for level in net.up] == [12, 12, 8, 4]
    images, points = torch.zeros(1, 3, 64, 64), torch.full((1, 68, 2), 32.0)
    initialise(net, 0)
    assert net(images, points).shape == images.shape


def test_networks_are_as_large_as_the_authors() -> None:
    with torch.device("meta"):
        assert parameter_count(ReenactmentGenerator(64, 64, 3)) == 31_536_131
        assert parameter_count(PatchDiscriminator(64, 32, 3)) == 729_505
