"""Gradients of resize_conv_act and norm_act under create_graph=True, and gradients that nothing asks for."""

from typing import Any

import pytest
import torch
from torch import Tensor

from engine import ops
from engine.kernels import _spec
from engine.kernels._observers import NativeCall, OperatorCall, observed
from engine.kernels.norm_act import KINDS
from engine.training.fused_share import Products
from tests.support.normalisation import kind_options

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


def _norm_penalty(function: Any, order: torch.memory_format, affine: bool, options: dict[str, Any]) -> list[Tensor]:
    """The gradient of x, and those of a penalty for it with respect to x, weight, bias and the gradient of y."""
    generator = torch.Generator().manual_seed(5)
    x, upstream, direction = (torch.randn(3, 12, 5, 6, generator=generator) for _ in range(3))
    x = x.contiguous(memory_format=order)
    parameters = [torch.linspace(-1, 2, 12), torch.linspace(1, -1, 12)] if affine else []
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *parameters)]
    upstream.requires_grad_()
    y = function(*leaves, **options)
    (first,) = torch.autograd.grad(y, leaves[0], upstream, create_graph=True)
    value = (first.square() * direction).sum() + y.square().sum()
    return [first.detach(), *torch.autograd.grad(value, [*leaves, upstream])]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_penalty_for_the_gradient_of_what_is_normalised(kind: str, activation: str) -> None:
    operator = ops.OPERATORS["norm_act"]
    options = {**kind_options(kind, 12), "activation": activation, "negative_slope": 0.3}
    for order in (torch.channels_last, torch.contiguous_format):
        for affine in (False, True):
            fused, eager = (_norm_penalty(f, order, affine, options) for f in (operator.function, operator.reference))
            for ours, theirs in zip(fused, eager, strict=True):
                assert _spec.relative_error(ours, theirs) < 5e-6


@pytest.mark.parametrize("activation", ("none", "relu", "leaky_relu"))
def test_a_penalty_normalises_by_the_operator(activation: str) -> None:
    """PyTorch's normalisations run in no pass of it."""
    with torch.profiler.profile() as profiler:
        _norm_penalty(ops.norm_act, torch.channels_last, True, {"kind": "layer", "activation": activation})
    names = {event.key for event in profiler.key_averages()}
    assert "kiln::norm_act_backward" in names
    assert not [name for name in names if name.startswith(("aten::native_group_norm", "aten::var_mean"))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_third_derivative_of_what_is_normalised(kind: str) -> None:
    generator = torch.Generator().manual_seed(7)
    x, direction = (torch.randn(3, 12, 5, 6, generator=generator) for _ in range(2))

    def third(function: Any) -> list[Tensor]:
        leaves = [x.clone().requires_grad_(), torch.linspace(-1, 2, 12).requires_grad_()]
        value = (function(*leaves, activation="leaky_relu", **kind_options(kind, 12)).square() * direction).sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(value, leaves[0], create_graph=True)
            value = (gradient.square() * direction).sum()
        return list(torch.autograd.grad(value, leaves))

    operator = ops.OPERATORS["norm_act"]
    for fused, eager in zip(third(operator.function), third(operator.reference), strict=True):
        assert _spec.relative_error(fused, eager) < 2e-5


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
