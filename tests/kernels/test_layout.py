"""Changes of the order in memory, by a kernel and by PyTorch where there is none: values, strides, gradients."""

import pytest
import torch

from engine import ops
from engine.kernels import _layout

ORDERS = [torch.contiguous_format, torch.channels_last]
# whole blocks and parts of them, one image and several; few channels and few numbers, which PyTorch copies
SHAPES = [(1, 32, 16, 16), (2, 37, 13, 21), (3, 8, 33, 31), (1, 200, 7, 9), (2, 3, 64, 64), (2, 9, 2, 2), (0, 16, 4, 4)]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_strides(shape: tuple[int, ...], dtype: torch.dtype, order: torch.memory_format) -> None:
    for given in ORDERS:
        x = torch.randn(shape).to(dtype).contiguous(memory_format=given)
        found = _layout.in_order(x, order)
        assert torch.equal(found, x) and found.stride() == x.contiguous(memory_format=order).stride()
        assert (found is x) == x.is_contiguous(memory_format=order)
    sliced = torch.randn(*shape[:3], 2 * shape[3])[..., ::2]
    assert torch.equal(_layout.in_order(sliced, order), sliced)


def test_autograd_and_transforms() -> None:
    x = torch.randn(2, 16, 20, 20).to(memory_format=torch.channels_last).requires_grad_()
    y = _layout.contiguous(x)
    assert torch.equal(y, x) and y.is_contiguous() and y.data_ptr() != x.data_ptr()
    upstream = torch.randn(2, 16, 20, 20)
    assert torch.equal(torch.autograd.grad(y, x, upstream)[0], upstream)
    squares = torch.func.grad(lambda t: _layout.contiguous(t).square().sum())(x.detach())
    torch.testing.assert_close(squares, 2 * x.detach())
    torch.library.opcheck(torch.ops.kiln.contiguous.default, (x,))


@pytest.mark.parametrize("given", ORDERS, ids=str)
def test_gradients_of_images_lie_as_the_images(given: torch.memory_format) -> None:
    """As PyTorch has them: what comes before a convolution gets a gradient in its own order."""
    x, second = (torch.randn(2, c, 16, 16).contiguous(memory_format=given).requires_grad_() for c in (16, 8))
    weight = torch.randn(8, 24, 3, 3, requires_grad=True)
    y = ops.resize_conv_act(x, weight, second=second)
    expected = torch.nn.functional.conv2d(torch.cat([x, second], 1), weight, padding=1)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, second), upstream)
    for gradient, tensor in zip(found, (x, second), strict=True):
        assert gradient.stride() == tensor.stride()
    for gradient, of_torch in zip(found, torch.autograd.grad(expected, (x, second), upstream), strict=True):
        torch.testing.assert_close(gradient, of_torch, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"resize": "up"}, {"transposed": True, "stride": 2}], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(40, 36), (16, 3), (5, 17)])
def test_weights_in_channels_last_order_give_the_same_bits(inputs: int, outputs: int, options: dict) -> None:
    shape = (inputs, outputs) if options.get("transposed") else (outputs, inputs)
    x, weight = torch.randn(2, inputs, 24, 24), torch.randn(*shape, 3, 3)
    results = []
    for order in ORDERS:
        given = x.clone().requires_grad_(), weight.contiguous(memory_format=order).requires_grad_()
        y = ops.resize_conv_act(*given, **options)
        with torch.no_grad():
            kept = [ops.resize_conv_act(*given, **options) for _ in range(2)]
        results.append([y, *kept, *torch.autograd.grad(y.square().sum(), given)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", [{"stride": 2}, {"transposed": True, "stride": 2}], ids=str)
def test_weights_read_as_they_lie_are_summed_in_their_order(options: dict) -> None:
    """Few pixels: each order of memory has an order of sums, and both are right."""
    x, weight = torch.randn(1, 40, 4, 4), torch.randn(40, 40, 3, 3)
    convolve = torch.nn.functional.conv_transpose2d if options.get("transposed") else torch.nn.functional.conv2d
    exact = convolve(x.double(), weight.double(), stride=2, padding=1)
    for order in ORDERS:
        y = ops.resize_conv_act(x, weight.contiguous(memory_format=order), **options)
        torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
