"""What discriminators see with --augment-judged: chosen changes give known images, and gradients pass."""

import pytest
import torch

from engine import distributed
from engine.networks.judged_images import seen_differently
from tests.support.training_fakes import smooth_images

STILL = (0.0, 0.0, 0.0, 0.0, 0.0, 99.0, 99.0)  # the square that is left out lies far outside


def seen(patch: pytest.MonkeyPatch, images: torch.Tensor, strength: float = 1.0, **changes: float) -> torch.Tensor:
    """What is seen when the random numbers, from -1 to 1, are those of `changes` and else 0."""
    names = ("brightness", "saturation", "contrast", "down", "right", "row", "column")
    chosen = torch.tensor([changes.get(name, still) for name, still in zip(names, STILL, strict=True)])
    patch.setattr(distributed, "drawn", lambda draw, count: ((chosen + 1) / 2).expand(count, 7))
    return seen_differently(images, strength)


def test_each_change_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    images = smooth_images(0, 2, 16)
    torch.testing.assert_close(seen(monkeypatch, images), images)
    torch.testing.assert_close(seen(monkeypatch, images, brightness=0.4), images + 0.2)
    torch.testing.assert_close(seen(monkeypatch, images, 0.5, brightness=0.4), images + 0.1)
    grey = images.mean(1, keepdim=True)
    torch.testing.assert_close(seen(monkeypatch, images, saturation=-1), grey.expand_as(images))
    mean = images.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(seen(monkeypatch, images, contrast=-1), mean + (images - mean) / 2)
    moved = seen(monkeypatch, images, down=1, right=-0.5)  # two pixels of row numbers, one of columns
    torch.testing.assert_close(moved[:, :, :-2, 1:], images[:, :, 2:, :-1])
    assert not moved[:, :, -2:].any() and not moved[:, :, :, 0].any()
    holed = seen(monkeypatch, images, row=0, column=0)
    assert not holed[:, :, 5:12, 5:12].any()
    torch.testing.assert_close(holed[:, :, :4], images[:, :, :4])
    torch.testing.assert_close(holed[:, :, :, 13:], images[:, :, :, 13:])


def test_every_image_and_every_look_differs() -> None:
    images = smooth_images(0, 1, 16).repeat(4, 1, 1, 1)
    torch.manual_seed(0)
    first, second = seen_differently(images, 1.0), seen_differently(images, 1.0)
    assert first.shape == images.shape and not torch.equal(first, second)
    assert all(not torch.equal(first[0], other) for other in first[1:])


def test_gradients_pass_twice() -> None:
    images = smooth_images(0, 2, 8).double().requires_grad_()

    def fixed(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return seen_differently(x, 0.8)

    assert torch.autograd.gradcheck(fixed, images)
    (gradient,) = torch.autograd.grad((fixed(images) ** 2).sum(), images, create_graph=True)
    (again,) = torch.autograd.grad((gradient**2).sum(), images)
    assert again.abs().sum() > 0
