"""Between 0 to 255 and -1 to 1, in each layout."""

import numpy as np
import pytest
import torch

from engine import ops
from engine.data.pixel_values import finite, from_uint8, network_input, picture_pixels, result_pixels, to_uint8
from engine.errors import InputError

ALL = torch.arange(256, dtype=torch.uint8)


def test_every_value_comes_back_as_it_was() -> None:
    exact = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    assert np.array_equal(from_uint8(ALL).numpy(), exact)
    assert torch.equal(to_uint8(from_uint8(ALL)), ALL)


def test_rounded_then_clipped() -> None:
    values = torch.tensor([-2.0, -1, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0, 1, 2])
    for dtype in (torch.float32, torch.float64):
        assert to_uint8(values.to(dtype)).tolist() == [0, 0, 0, 1, 128, 255, 255]


def test_layouts() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    images = network_input(pixels, torch.device("cpu"))
    assert images.dtype == torch.float32 and images.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(result_pixels(images), pixels)
    assert np.array_equal(picture_pixels(images), pixels.transpose(0, 2, 3, 1))
    assert np.array_equal(picture_pixels(images[:, :1]), pixels[:, :1].repeat(3, 1).transpose(0, 2, 3, 1))


def test_the_loaders_operator_gives_the_same() -> None:
    store = torch.arange(16 * 16, dtype=torch.uint8).view(1, 16, 16, 1)
    zeros = torch.zeros(1, dtype=torch.int64)
    images = ops.image_batch(store, zeros, torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.bool), 16)
    assert torch.equal(images[0, 0], from_uint8(store[0, :, :, 0]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_model_is_an_error(value: float) -> None:
    images = torch.zeros(1, 3, 4, 4)
    assert finite(images) is images
    images[0, 1, 2, 3] = value
    for use in (finite, result_pixels):
        with pytest.raises(InputError, match="the model gives NaN"):
            use(images)
