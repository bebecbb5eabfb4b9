"""The networks against textbook modules built from torch.nn, and their published sizes."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.errors import InputError
from engine.networks.autoencoder import Autoencoder, Decoder, check_levels
from engine.networks.initialisation import initialise
from engine.networks.landmarks import LandmarkEstimator, normalise
from engine.networks.layers import Conv, Linear, from_rows, level_sizes, parameter_count, to_rows
from engine.networks.refiner import RefinerGenerator, check_inject, cubic, enlarge, landmark_maps, pyramid
from tests.support.training_fakes import smooth_images

MODES = pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])


def conv_like(layer: Conv) -> nn.Conv2d:
    out_channels, in_channels = layer.weight.shape[:2]
    plain = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    return plain


def textbook_decoder(decoder: Decoder, x: torch.Tensor, injected: dict[int, torch.Tensor]) -> torch.Tensor:
    """Build the decoder that BEGAN describes: two convs with ELU a level, nearest x2 after each level but the last."""
    convs = iter(map(conv_like, [*decoder.blocks, decoder.last]))
    depths = dict(zip(decoder.sizes, decoder.depths, strict=True))
    while True:
        if x.shape[-1] in injected:
            x = torch.cat([x, injected[x.shape[-1]]], 1)
        for _ in range(depths[x.shape[-1]]):
            x = F.elu(next(convs)(x))
        if x.shape[-1] == decoder.sizes[-1]:
            return next(convs)(x)
        x = F.interpolate(x, scale_factor=2, mode="nearest")


def textbook_discriminator(network: Autoencoder, images: torch.Tensor) -> torch.Tensor:
    encoder = network.encoder
    x = F.elu(conv_like(encoder.first)(images))
    for index, block in enumerate(encoder.blocks):
        x = F.elu(conv_like(block)(x))
        if index % 2 and x.shape[-1] > 8:
            x = F.interpolate(x, scale_factor=0.5, mode="nearest")
    flat = x.permute(0, 2, 3, 1).flatten(1)
    hidden = F.linear(flat, network.encode.weight, network.encode.bias)
    maps = F.linear(hidden, network.decode.weight, network.decode.bias).unflatten(1, (8, 8, -1)).permute(0, 3, 1, 2)
    return textbook_decoder(network.decoder, maps, {})


@MODES
@pytest.mark.parametrize(("resolution", "channels"), [(16, 1), (32, 3), (64, 3)])
def test_discriminator_is_the_textbook_autoencoder(resolution: int, channels: int, fused: bool) -> None:
    network = Autoencoder(resolution, 3, channels, hidden=5, fused=fused)
    initialise(network, 1)
    images = smooth_images(0, 2, resolution, channels)
    torch.testing.assert_close(network(images), textbook_discriminator(network, images), rtol=1e-4, atol=1e-5)


@MODES
@pytest.mark.parametrize("inject", [(8,), (8, 16), (8, 32), (8, 16, 32)])
@pytest.mark.parametrize(("widths", "depths"), [((), ()), ((5, 4, 2, 3), (1, 4, 3, 2))], ids=["even", "uneven"])
def test_generator_is_the_textbook_decoder_of_shrunken_images(
    inject: tuple[int, ...], widths: tuple[int, ...], depths: tuple[int, ...], fused: bool
) -> None:
    network = RefinerGenerator(64, 3, 3, inject=inject, widths=widths, depths=depths, fused=fused)
    assert widths in ((), network.decoder.widths) and (depths or (2, 2, 2, 2)) == network.decoder.depths
    initialise(network, 1)
    images = smooth_images(0, 2, 64)
    copies = {size: F.interpolate(images, size=size, mode="nearest") for size in inject}
    first = F.elu(conv_like(network.first)(copies.pop(8)))
    wanted = textbook_decoder(network.decoder, first, copies)
    torch.testing.assert_close(network(pyramid(images, inject)), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [8, 16, 32])
def test_enlarging_is_cubic_and_keeps_the_pixels_of_the_pyramid(side: int) -> None:
    images = torch.randn(2, 3, 64, 64)
    factor = 64 // side
    small = pyramid(images, (side,))[side]
    matrix = cubic(side, 64)
    large = enlarge(small, matrix)
    assert torch.equal(large[:, :, ::factor, ::factor], small)
    # torch's own cubic interpolation (a = -3/4 is fixed there) aligns centres; a straight line and a parabola are exact
    x = torch.arange(64.0)
    for curve in (0.3 * x - 1, 0.01 * x**2 - 0.2 * x):
        picture = curve.expand(1, 1, 64, 64)
        inner = slice(factor, 64 - 2 * factor)
        enlarged = enlarge(pyramid(picture, (side,))[side], matrix)
        torch.testing.assert_close(enlarged[..., inner], picture[..., inner], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(enlarge(pyramid(picture.mT, (side,))[side], matrix).mT, enlarged)


def test_sizes_are_those_published() -> None:
    # carpedm20/BEGAN-tensorflow, n = 128, z = 64, 64x64: its G (FC and decoder) has 1,716,611 parameters
    network = Autoencoder(64, 128, 3, hidden=64)
    assert parameter_count(network.decode) + parameter_count(network.decoder) == 1_716_611
    # the encoder of the paper: conv 3->n, then at each level a conv that keeps the width, and one that widens to i*n
    n = 128
    widths = [
        (3, n),
        (n, n),
        (n, n),
        (n, n),
        (n, 2 * n),
        (2 * n, 2 * n),
        (2 * n, 3 * n),
        (3 * n, 3 * n),
        (3 * n, 4 * n),
    ]
    assert parameter_count(network.encoder) == sum(9 * a * b + b for a, b in widths)
    assert network.encode.weight.shape == (64, 8 * 8 * 4 * n)


def test_levels() -> None:
    assert level_sizes(16) == [8, 16]
    assert level_sizes(256) == [8, 16, 32, 64, 128, 256]
    for wrong in (8, 48, 100, 512, 0, -16):
        with pytest.raises(InputError, match="16, 32, 64, 128 or 256"):
            level_sizes(wrong)


def test_lists_of_levels() -> None:
    check_levels((), (), 64)
    check_levels((4, 5, 6), (), 32)
    for widths, depths, says in (
        ((1, 2), (), "--g-widths needs a number from 1 to 16384 for each of the levels 8, 16, 32, got 1,2"),
        ((), (1, 0, 2), "--g-depths"),
    ):
        with pytest.raises(InputError, match=says):
            check_levels(widths, depths, 32)


def test_inject_lists() -> None:
    assert check_inject([16, 8, 8], 32) == (8, 16)
    with pytest.raises(InputError, match="8x8"):
        check_inject([16], 64)
    with pytest.raises(InputError, match="cannot inject at 64"):
        check_inject([8, 64], 64)  # the size of the image itself: G would have nothing left to generate
    with pytest.raises(InputError, match="cannot inject at 12"):
        check_inject([8, 12], 64)


def test_generator_sees_only_the_pixels_it_is_given() -> None:
    network = RefinerGenerator(32, 2, 3, inject=(8,))
    initialise(network, 0)
    images = smooth_images(0, 1, 32)
    other = torch.randn_like(images)
    other[:, :, ::4, ::4] = images[:, :, ::4, ::4]
    assert torch.equal(network(pyramid(images, (8,))), network(pyramid(other, (8,))))


@MODES
def test_everything_stays_channels_last_and_flattens_without_a_copy(fused: bool) -> None:
    network = RefinerGenerator(16, 4, 3, inject=(8,), fused=fused)
    result = network(pyramid(smooth_images(0, 2, 16), (8,)))
    assert result.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 5, 8, 8).contiguous(memory_format=torch.channels_last)
    assert to_rows(x).data_ptr() == x.data_ptr()
    assert from_rows(to_rows(x), 8).data_ptr() == x.data_ptr()
    assert torch.equal(from_rows(to_rows(x), 8), x)


def test_start_values_depend_on_the_seed_alone() -> None:
    networks = [Autoencoder(16, 4, 3, fused=fused) for fused in (False, True, True)]
    for network, seed in zip(networks, (3, 3, 4), strict=True):
        torch.randn(7)  # random numbers drawn before must not matter
        initialise(network, seed)
    eager, fused, other = (network.state_dict() for network in networks)
    assert eager.keys() == fused.keys()
    assert all(torch.equal(eager[key], fused[key]) for key in eager)
    assert not torch.equal(eager["encode.weight"], other["encode.weight"])


def test_start_values_keep_the_signal_through_all_layers() -> None:
    network = Autoencoder(64, 16, 3)
    initialise(network, 0)
    stds = []
    for layer in network.modules():
        if isinstance(layer, (Conv, Linear)):
            layer.register_forward_hook(lambda _, __, result: stds.append(result.std().item()))
    network(torch.rand(4, 3, 64, 64) * 2 - 1)
    assert len(stds) == 20
    assert all(0.25 < std < 1.2 for std in stds)


@MODES
def test_grad_scale_reaches_every_parameter_and_no_input(fused: bool) -> None:
    network = Autoencoder(16, 2, 3, hidden=4, fused=fused)
    initialise(network, 0)
    images = smooth_images(0, 2, 16)

    def gradients(v: torch.Tensor, scale: torch.Tensor | None) -> list[torch.Tensor]:
        v = v.clone(memory_format=torch.preserve_format).requires_grad_()
        return list(torch.autograd.grad(network(v, scale).square().sum(), [v, *network.parameters()]))

    first, second = gradients(images[:1], None), gradients(images[1:], None)
    both = gradients(images, torch.tensor([1.0, -0.3]))
    torch.testing.assert_close(both[0], torch.cat([first[0], second[0]]), rtol=1e-4, atol=1e-5)
    for mixed, a, b in zip(both[1:], first[1:], second[1:], strict=True):
        torch.testing.assert_close(mixed, a - 0.3 * b, rtol=1e-3, atol=1e-4)


@MODES
def test_landmark_maps_are_gaussians_at_subpixel_centres(fused: bool) -> None:
    landmarks = torch.tensor([[[3.5, 3.5], [12.0, 20.0]] + [[-500.0, 0.0]] * 66])
    maps = landmark_maps(landmarks, 64, fused=fused)
    assert maps.shape == (1, 68, 8, 8)
    assert maps[0, 0].max() == maps[0, 0, 0, 0] == 1  # 3.5 is the middle of the first cell of 8 pixels
    assert maps[0, 2].max() < 1e-6  # the landmark lies far outside
    for y in range(8):
        for x in range(8):
            squared = (x - (12.5 / 8 - 0.5)) ** 2 + (y - (20.5 / 8 - 0.5)) ** 2
            assert maps[0, 1, y, x].item() == pytest.approx(math.exp(-squared / 2), abs=1e-6)


@MODES
def test_mirrored_landmarks_give_mirrored_maps(fused: bool) -> None:
    landmarks = torch.rand(2, 68, 2) * 32
    mirrored = torch.stack([31 - landmarks[..., 0], landmarks[..., 1]], -1)
    maps = landmark_maps(landmarks, 32, fused=fused)
    torch.testing.assert_close(landmark_maps(mirrored, 32, fused=fused), maps.flip(-1))


def test_landmark_estimator_and_its_scale() -> None:
    for resolution in (16, 64):
        assert LandmarkEstimator(resolution, 2, 3, fused=False)(smooth_images(0, 2, resolution)).shape == (2, 136)
    corners = torch.tensor([[[-0.5, -0.5], [63.5, 31.5]] + [[0.0, 0.0]] * 66])
    assert normalise(corners, 64)[0, :4].tolist() == [-1, -1, 1, 0]
