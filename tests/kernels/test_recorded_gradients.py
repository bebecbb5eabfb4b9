"""Gradients of resize_conv_act under create_graph=True, and gradients that nothing asks for."""

from typing import Any

import pytest
import torch
from torch import Tensor

from engine import ops
from engine.kernels import _spec
from engine.kernels._observers import NativeCall, OperatorCall, observed
from engine.training.fused_share import Products

GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"kernel_size": 4, "stride": 2},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 5, "padding": 0},
    {"kernel_size": 4, "stride": 2, "padding": 1, "transposed": True},
    {"kernel_size": 3, "stride": 2, "output_padding": 1, "transposed": True},
    {"kernel_size": 4, "padding": 0, "transposed": True},
    {"resize": "down"},
]
REFERENCES: list[dict[str, Any]] = [{"resize": "up"}, {"padding_mode": "reflect"}]
ACTIVATIONS = ("none", "relu", "leaky_relu", "elu", "tanh", "sigmoid", "silu")


def _tensors(side: int, *, kernel_size: int = 3, transposed: bool = False, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 9, side, side + 2, generator=generator)
    channels = (9, 10) if transposed else (10, 9)
    weight = torch.randn(*channels, kernel_size, kernel_size, generator=generator) / (3 * kernel_size)
    return x, weight, torch.randn(10, generator=generator)


def _penalty(function: Any, tensors: tuple[Tensor, ...], options: dict[str, Any]) -> tuple[Tensor, ...]:
    """The gradients of a penalty for the gradient of x."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    y = function(*leaves[:3], **options, scale=leaves[3] if len(leaves) > 3 else None)
    (first,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
    (first.square().sum() + y.sum()).backward()
    return first.detach(), *(leaf.grad for leaf in leaves)


def _same(geometry: dict[str, Any], activation: str, side: int, scaled: bool = False) -> Products:
    options = {"activation": activation, **geometry}
    options.pop("kernel_size", None)
    tensors, operator = _tensors(side, **geometry), ops.OPERATORS["resize_conv_act"]
    tensors = (*tensors, torch.linspace(-1, 2, 10)) if scaled else tensors
    expected = _penalty(operator.reference, tensors, options)
    for fused, eager in zip(_penalty(operator.function, tensors, options), expected, strict=True):
        assert _spec.relative_error(fused, eager) < 2e-5
    with Products() as products:
        _penalty(operator.function, tensors, options)
    return products


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_penalty_for_the_gradient_of_x_runs_no_convolution_of_pytorch(geometry: dict[str, Any]) -> None:
    for activation in ACTIVATIONS:
        for side in (7, 8):
            products = _same(geometry, activation, side)
            assert products.kiln and not products.rest, (activation, side)
    products = _same(geometry, "elu", 8, scaled=True)
    assert products.kiln and not products.rest


@pytest.mark.parametrize("geometry", REFERENCES, ids=str)
def test_other_gradients_are_those_of_the_reference(geometry: dict[str, Any]) -> None:
    assert _same(geometry, "elu", 8).rest and _same(geometry, "elu", 8, scaled=True).rest


def test_unlike_sides_are_left_to_the_reference() -> None:
    """No one output_padding makes an even and an odd side of the gradient."""
    x, weight = torch.randn(1, 9, 7, 8), torch.randn(10, 9, 4, 4)
    operator = ops.OPERATORS["resize_conv_act"]
    fused, eager = (
        _penalty(function, (x, weight, torch.zeros(10)), {"stride": 2})
        for function in (operator.function, operator.reference)
    )
    assert all(_spec.relative_error(a, b) < 2e-5 for a, b in zip(fused, eager, strict=True))


def test_a_third_derivative() -> None:
    x, weight, _ = _tensors(6)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))

    def third(function: Any) -> Tensor:
        leaf = x.clone().requires_grad_()
        value = function(leaf, weight, activation="tanh").sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
            value = (gradient * direction).sum()
        return torch.autograd.grad(value, leaf)[0]

    operator = ops.OPERATORS["resize_conv_act"]
    assert _spec.relative_error(third(operator.function), third(operator.reference)) < 2e-5


def _written(call: Any) -> set[str]:
    """The gradients that the last backward pass within a call wrote."""
    calls: list[NativeCall] = []

    def note(event: OperatorCall | NativeCall) -> None:
        if isinstance(event, NativeCall) and event.function.endswith("_backward"):
            calls.append(event)

    with observed(note):
        call()
    (only,) = calls
    return {name for name in ("dx", "dweight", "dbias") if only.pointers[name]}


def test_only_gradients_that_are_asked_for_are_formed() -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in _tensors(16))

    def y() -> Tensor:
        return ops.resize_conv_act(x, weight, bias, activation="elu").sum()

    assert _written(lambda: y().backward()) == {"dx", "dweight", "dbias"}
    assert _written(lambda: y().backward(inputs=[x])) == {"dx"}
    assert _written(lambda: torch.autograd.grad(y(), x)) == {"dx"}
    assert _written(lambda: torch.autograd.grad(y(), [weight, bias])) == {"dweight", "dbias"}
    before = 2 * x  # a tensor that is no leaf
    inner = ops.resize_conv_act(before, weight, bias).sum()
    assert _written(lambda: torch.autograd.grad(inner, before)) == {"dx"}
    without_bias = ops.resize_conv_act(x, weight).sum()
    assert _written(lambda: torch.autograd.grad(without_bias, weight)) == {"dweight"}
