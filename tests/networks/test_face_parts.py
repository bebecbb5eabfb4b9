"""Crops around eyes, nose and mouth against torch's interpolation and by hand; their discriminators."""

import pytest
import torch
from torch.nn import functional as F

from engine.networks.face_parts import PARTS, PartDiscriminators, crop, cut_parts
from engine.networks.initialisation import initialise


def faces(batch: int = 2, side: int = 32) -> torch.Tensor:
    """Make landmarks (batch, 68, 2) of upright faces: the eyes above the nose, the mouth below it."""
    generator = torch.Generator().manual_seed(0)
    places = [(0, 17, 16, 20), (17, 27, 16, 8), (27, 36, 16, 16), (36, 42, 10, 12), (42, 48, 22, 12), (48, 68, 16, 23)]
    points = torch.zeros(batch, 68, 2)
    for first, end, x, y in places:
        points[:, first:end] = torch.tensor([x, y], dtype=torch.float32)
    return (points + torch.randn(points.shape, generator=generator)) * side / 32


def test_a_crop_of_an_images_own_size_is_linear_interpolation() -> None:
    images = torch.rand(3, 2, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centre = torch.tensor([[9.3, 8.7], [2.0, 17.5], [15.0, 3.25]], dtype=torch.float64)
    side = torch.full((3,), 8.0, dtype=torch.float64)
    found = crop(images, centre, side, 8)
    steps = (torch.arange(8, dtype=torch.float64) + 0.5) - 4
    grid = torch.stack(
        [
            (centre[:, 0, None, None] + steps[None, None, :]).expand(3, 8, 8),
            (centre[:, 1, None, None] + steps[None, :, None]).expand(3, 8, 8),
        ],
        -1,
    )
    expected = F.grid_sample(images, (2 * grid + 1) / 20 - 1, padding_mode="border", align_corners=False)
    torch.testing.assert_close(found, expected)


def test_a_shrinking_crop_looks_at_every_pixel() -> None:
    """Stripes of single pixels become grey; plain interpolation would keep some and drop others."""
    images = (torch.arange(64) % 2).float().expand(1, 1, 64, 64)
    found = crop(images, torch.tensor([[31.5, 31.5]]), torch.tensor([48.0]), 12)
    torch.testing.assert_close(found, torch.full_like(found, 0.5), atol=0.02, rtol=0)


def test_an_enlarged_crop_of_a_ramp_is_a_ramp() -> None:
    images = torch.arange(16.0).expand(1, 1, 16, 16)
    found = crop(images, torch.tensor([[7.0, 7.0]]), torch.tensor([4.0]), 8)
    torch.testing.assert_close(found[0, 0, 0], 7 + (torch.arange(8) + 0.5) / 2 - 2)


def test_beyond_the_border_the_last_pixels_go_on() -> None:
    images = torch.arange(16.0).expand(1, 1, 16, 16)
    found = crop(images, torch.tensor([[0.0, 40.0]]), torch.tensor([8.0]), 8)
    assert found.isfinite().all()
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([0, 0, 0, 0, 0.5, 1.5, 2.5, 3.5]))


def test_crops_have_exact_gradients() -> None:
    images = torch.rand(2, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    centre, side = torch.tensor([[2.3, 3.1], [1.0, 4.2]]).double(), torch.tensor([3.0, 7.5]).double()
    assert torch.autograd.gradcheck(lambda x: crop(x, centre, side, 4), images)


def test_each_part_holds_its_landmarks() -> None:
    landmarks = faces()
    images = torch.zeros(2, 1, 32, 32)
    for name, (groups, _) in PARTS.items():
        for group in groups:
            points = landmarks[:, group].mean(1).round().long()
            images[torch.arange(2), 0, points[:, 1], points[:, 0]] = 1.0
            crops = cut_parts(images, landmarks, 8)[name]
            own = crops.unflatten(0, (len(groups), 2))[groups.index(group)]
            assert (own[:, 0, 2:6, 2:6].amax((1, 2)) > 0.1).all()
            images.zero_()
    assert {name: len(crops) for name, crops in cut_parts(images, landmarks, 8).items()} == {
        "eyes": 4, "nose": 2, "mouth": 2,
    }  # fmt: skip


@pytest.mark.parametrize("fused", [False, True])
def test_every_part_has_its_own_discriminator(fused: bool) -> None:
    judges = PartDiscriminators(32, 8, 3, fused=fused)
    initialise(judges, 0)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    logits = judges(images, faces())
    assert {name: tuple(part.shape) for name, part in logits.items()} == {
        "eyes": (4, 2, 2, 2), "nose": (2, 2, 2, 2), "mouth": (2, 2, 2, 2),
    }  # fmt: skip
    logits["mouth"].sum().backward()
    rows = images.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.min() > 12 and judges.judges["eyes"].first.weight.grad is None
