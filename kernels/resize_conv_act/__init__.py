"""A convolution of any kind with a nearest-neighbour resize, scale, bias and activation: one operator."""

import os
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._availability import gpu_function
from .._checks import (
    DTYPES,
    refuse,
    require_activation,
    require_dtype,
    require_factors,
    require_like,
    require_need,
)
from .._contract import define, publish
from .._gradients import Gradients, empty_gradients, float32_sums, round_sums
from .._layout import channels_last, dense_order, float32, float32_in_order, in_order
from .._native import native_function
from . import packed_weights, reference
from .geometry import (
    NAME,
    Geometry,
    check_geometry,
    effective_stride,
    form,
    native_sizes,
    opposite,
    output_sides,
    raw_geometry,
)
from .reference import ACTIVATIONS

ACTIVATION_NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}
# activations whose derivative is a function of their output; silu's needs the input
FROM_OUTPUT = {name: number for name, number in ACTIVATION_NUMBERS.items() if name != "silu"}
READS_OUTPUT = FROM_OUTPUT.keys() - {"none"}  # those of them whose derivative is not constant
_native_forward, _native_backward = native_function(f"{NAME}_forward"), native_function(f"{NAME}_backward")


@publish(reference.resize_conv_act)
def resize_conv_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    resize: str = "none",
    stride: int = 1,
    padding: int | None = None,
    padding_mode: str = "zeros",
    transposed: bool = False,
    output_padding: int = 0,
    activation: str = "none",
    second: Tensor | None = None,
    residual: Tensor | None = None,
    grad_scale: Tensor | None = None,
    negative_slope: float = 0.2,
    exact: bool | None = None,
    input_grad_from: int = 0,
) -> Tensor:
    """activation(scale convolution(resize(x) with second's channels after it) + bias + residual), all in one pass.

    x:              (B, C, H, W) float32, bfloat16 or float16; any strides (channels_last is read in place)
    weight:         (Cout, C + C2, K, K), transposed (C + C2, Cout, K, K), K from 1 to 7; of x's dtype, or float32
                    beside x in half precision, as under autocast
    bias:           (Cout,) likewise, or None
    scale:          (Cout,) likewise: a factor of each channel of the convolution, or None. So a normalisation whose
                    statistics are given is part of the convolution before it, whose weight stays as it is
    resize:         "none"; "up": x is enlarged by nearest x2 before the convolution, which is 3x3 with padding 1;
                    "down": the result keeps its even rows and columns (nearest /2 after the convolution), which is a
                    stride of 2
    stride:         1 or 2
    padding:        pixels on each side of x, at least 0; None: (K - 1) // 2
    padding_mode:   what stands there: "zeros", "reflect", "replicate" or "circular", as of torch.nn.Conv2d
    transposed:     the transposed convolution, as torch.nn.ConvTranspose2d; its padding is taken off the result
    output_padding: 0, or 1 at stride 2: rows and columns that are added to a transposed convolution's result
    activation:     "none", "elu" (alpha 1), "relu", "leaky_relu" (negative_slope), "tanh", "sigmoid", "silu"
    second:         (B, C2, Hc, Wc) further input channels at the size the convolution runs at: (2H, 2W) for "up"
    residual:       like the result, any strides: a tensor that is added before the activation, or None
    grad_scale:     (B,) float32: factor of each sample in the gradients of weight and bias only (not of x, second and
                    residual)
    negative_slope: >= 0, of "leaky_relu"
    exact:          True: the direct sum of products, no Winograd tiles (norm-wise error up to 2e-5 in float32 without);
                    None: as the environment variable KILN_EXACT=1 says, else False
    input_grad_from: samples before this one get no gradient in x and second (it is 0 there, and not computed)

    Returns (B, Cout, Ho, Wo) of x's dtype, channels_last; Ho = 2H for "up", else (H + 2 padding - K) // stride + 1,
    transposed (H - 1) stride - 2 padding + K + output_padding. Sums are float32.
    Gradients of first order are fused. Under create_graph=True they have any order: that of x alone, without resize and
    with zeros around, is the convolution the other way, fused again; the others come from the reference. SiLU needs the
    sum before it: where a gradient is recorded it is an operation of its own, after the convolution.
    Raises ValueError when a shape, dtype or option does not fit. Source: the networks of Nasser 2022, figures 1 and 2;
    the convolutions of Radford et al. 2016, Isola et al. 2017 and Zhu et al. 2017.
    """
    if exact is None:
        exact = os.environ.get("KILN_EXACT", "") not in {"", "0"}
    inference = not (torch.is_grad_enabled() and weight.requires_grad)
    if inference and not torch.compiler.is_compiling():
        packed_weights.keep(weight)
    apart = activation == "silu" and torch.is_grad_enabled()
    apart = apart and any(t is not None and t.requires_grad for t in (x, weight, bias, scale, second, residual))
    where = raw_geometry(weight.shape[-1], resize, stride, padding, padding_mode, transposed, output_padding)
    options = "none" if apart else activation, float(negative_slope), exact, input_grad_from
    y = _forward(x, weight, bias, scale, second, residual, grad_scale, *where, *options)
    return F.silu(y) if apart else y


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    second: Tensor | None,
    residual: Tensor | None,
    grad_scale: Tensor | None,
    resize: str,
    stride: int,
    padding: int,
    padding_mode: str,
    transposed: bool,
    output_padding: int,
    activation: str,
    negative_slope: float,
    exact: bool,
    input_grad_from: int,
) -> None:
    require_activation(NAME, activation, ACTIVATIONS, negative_slope)
    if x.dim() != 4:
        refuse(NAME, f"x must be (B, C, H, W), not {tuple(x.shape)}")
    dtype = x.dtype
    require_dtype(NAME, "x", dtype)
    batch, channels, height, width = x.shape
    if not (channels > 0 and height > 0 and width > 0):
        refuse(NAME, f"no empty channels or sides: x is {tuple(x.shape)}")
    if second is not None:
        times = 2 if resize == "up" else 1
        if second.dim() != 4 or (second.shape[0], *second.shape[2:]) != (batch, times * height, times * width):
            wanted = f"({batch}, C2, {times * height}, {times * width})"
            refuse(NAME, f"second is {tuple(second.shape)}; it must be {wanted}")
        channels += second.shape[1]
    kernel = weight.shape
    if len(kernel) != 4 or kernel[1 - transposed] != channels or kernel[transposed] == 0 or kernel[2] != kernel[3]:
        wanted = f"({channels}, Cout, K, K)" if transposed else f"(Cout, {channels}, K, K)"
        refuse(NAME, f"weight is {tuple(kernel)}; it must be {wanted}")
    where = Geometry(resize, stride, padding, padding_mode, transposed, output_padding)
    check_geometry(x.shape, kernel[-1], where)
    cout = kernel[transposed]
    for name, values in (("bias", bias), ("scale", scale)):
        if values is not None and values.shape != (cout,):
            refuse(NAME, f"{name} must be ({cout},)")
    if not 0 <= input_grad_from <= batch:
        refuse(NAME, f"input_grad_from is {input_grad_from}; it must lie in 0 .. {batch}")
    require_factors(NAME, grad_scale, batch)
    for name, tensor, others in (
        ("weight", weight, torch.float32),
        ("bias", bias, torch.float32),
        ("scale", scale, torch.float32),
        ("second", second, dtype),
    ):
        if tensor is not None and tensor.dtype not in (dtype, others):
            refuse(NAME, f"{name} is {tensor.dtype} but x is {dtype}")
    if residual is not None:
        require_like(NAME, "residual", residual, output_shape(x, weight, where), dtype)


def check_backward(grad, y, x, weight, bias, second, grad_scale, *options):
    *where, activation, negative_slope, exact, input_grad_from, need = options
    check(x, weight, bias, None, second, None, grad_scale, *where, activation, negative_slope, exact, input_grad_from)
    check_result(NAME, grad, y, output_shape(x, weight, Geometry(*where)), x.dtype, activation)
    require_need(NAME, need, [x, weight, bias, second])


def check_result(
    operator: str, grad: Tensor, y: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, activation: str
) -> None:
    """Raises ValueError unless grad, and y where the activation's derivative reads it, are like the result."""
    if activation not in FROM_OUTPUT:
        refuse(operator, f"the fused backward pass does not know {activation}: its derivative needs the input")
    require_like(operator, "grad", grad, shape, dtype)
    if activation in READS_OUTPUT:
        if y is None:
            refuse(operator, f"y is None; the derivative of {activation} needs it")
        require_like(operator, "y", y, shape, dtype)


def output_shape(x: Tensor, weight: Tensor, where: Geometry) -> tuple[int, ...]:
    return x.shape[0], weight.shape[where.transposed], *output_sides(x.shape, weight.shape[-1], where)


def output(x: Tensor, weight: Tensor, where: Geometry) -> Tensor:
    shape = output_shape(x, weight, where)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


class Plan(NamedTuple):
    """What follows from shapes, dtypes and options."""

    shape: tuple[int, ...]  # of the result
    strides: tuple[int, ...]
    sizes: tuple[dict[str, int], dict[str, int]]  # as native calls take them, of a contiguous weight and of another


def _plan(x, weight, second, activation, exact, where):
    result = torch.empty(output_shape(x, weight, where), device="meta", memory_format=torch.channels_last)
    where = where._replace(stride=effective_stride(x.shape, weight.shape[-1], where))
    sizes = native_sizes(x.shape, weight.shape, 0 if second is None else second.shape[1], where)
    channels = x.shape[1] + (0 if where.resize == "up" else sizes["further"])
    sizes["form"] = form(x.shape, (channels, sizes["cout"], weight.shape[-1]), where, exact)
    sizes |= {"activation": ACTIVATION_NUMBERS[activation], "dtype": DTYPES[x.dtype]}
    return Plan(result.shape, result.stride(), tuple(sizes | {"weight_last": last} for last in (False, True)))


def _plan_forward(x, weight, bias, scale, second, residual, grad_scale, *options):
    return _plan(x, weight, second, options[6], options[8], Geometry(*options[:6]))


def _plan_backward(grad, y, x, weight, bias, second, grad_scale, *options):
    return _plan(x, weight, second, options[6], options[8], Geometry(*options[:6]))


def _forward_cpu(
    x,
    weight,
    bias,
    scale,
    second,
    residual,
    grad_scale,
    resize,
    stride,
    padding,
    padding_mode,
    transposed,
    output_padding,
    activation,
    negative_slope,
    exact,
    input_grad_from,
    plan,
):
    y = x.new_empty_strided(plan.shape, plan.strides)
    x, second, residual = channels_last(x), channels_last(second), channels_last(residual)
    weights = float32_in_order(weight)
    sizes = plan.sizes[not weights.is_contiguous()]
    read = {"x": x, "weight": weights, "scale": float32(scale), "bias": float32(bias)}
    read |= {"second": second, "residual": residual, "kept": packed_weights.packed(weight, weights, sizes)}
    _native_forward({**sizes, **read, "y": y, "negative_slope": negative_slope})
    return y


def _forward_fake(x, weight, bias, scale, second, residual, grad_scale, *options):
    return output(x, weight, Geometry(*options[:6]))


def gradients(like: list[Tensor | None], need: list[bool]) -> list[Tensor]:
    """Empty gradients of x, weight, bias and second, to be written; those not needed have no elements."""
    orders = [torch.channels_last, torch.contiguous_format, torch.contiguous_format, torch.channels_last]
    return empty_gradients(like, need, orders)


def ordered(results: list[Tensor], like: list[Tensor | None], need: list[bool]) -> tuple[Tensor, ...]:
    """What was written, the gradient of x and that of second in the order of their tensors, as PyTorch has them."""
    for i, tensor in ((0, like[0]), (3, like[3])):
        if need[i] and tensor is not None:
            order, written = dense_order(tensor), results[i]  # an empty tensor lies in every order
            results[i] = in_order(written, order) if len(written) else torch.empty_like(written, memory_format=order)
    return tuple(results)


def _backward_cpu(
    grad,
    y,
    x,
    weight,
    bias,
    second,
    grad_scale,
    resize,
    stride,
    padding,
    padding_mode,
    transposed,
    output_padding,
    activation,
    negative_slope,
    exact,
    input_grad_from,
    need,
    plan,
):
    results = gradients([x, weight, bias, second], need)
    dx, dweight, dbias, dsecond = results
    dw, db = float32_sums([dweight, dbias], need[1:3])
    weights = float32_in_order(weight)
    sizes = plan.sizes[not weights.is_contiguous()]
    grad = channels_last(grad)
    y = channels_last(y) if activation in READS_OUTPUT else grad
    read = {"x": channels_last(x), "weight": weights, "second": channels_last(second)}
    read |= {"y": y, "grad": grad, "grad_scale": float32(grad_scale)}
    written = {"dx": dx if need[0] else None, "dsecond": dsecond if need[3] else None, "dweight": dw, "dbias": db}
    options = {"negative_slope": negative_slope, "input_grad_from": input_grad_from}
    _native_backward({**sizes, **options, **read, **written})
    round_sums([dw, db], [dweight, dbias])
    return ordered(results, [x, weight, bias, second], need)


def _gradients(
    grad, y, x, weight, bias, scale, second, grad_scale, resize, stride, padding, padding_mode, transposed,
    output_padding, activation, negative_slope, exact, input_grad_from, need,
):  # fmt: skip
    """The gradients of x, weight, bias, scale, second and residual."""
    need_x, need_weight, need_bias, need_scale, need_second, need_residual = need
    if need_residual:  # its own gradient is that before the activation, from which the others follow
        grad, y, activation = before_activation(grad, y, activation, negative_slope), None, "none"
    where = resize, stride, padding, padding_mode, transposed, output_padding
    options = *where, activation, negative_slope, exact, input_grad_from
    need = [need_x, need_weight or need_scale, need_bias, need_second]
    if not any(need):
        return None, None, None, None, None, grad
    product = weight if scale is None else reference.scaled(weight, scale, transposed)
    dx, dweight, dbias, dsecond = _backward(grad, y, x, product, bias, second, grad_scale, *options, need)
    dscale = None
    if scale is not None and need[1]:  # what came is the gradient of the product
        dscale = (dweight.float() * weight).sum((0, 2, 3) if transposed else (1, 2, 3)).to(scale.dtype)
        dweight = reference.scaled(dweight, scale, transposed).to(weight.dtype)
    return dx, dweight, dbias, dscale, dsecond, grad


def _recorded_gradients(
    grad,
    y,
    x,
    weight,
    scale,
    second,
    grad_scale,
    resize,
    stride,
    padding,
    padding_mode,
    transposed,
    output_padding,
    activation,
    negative_slope,
    exact,
    input_grad_from,
    need,
):
    """The gradient of x alone, as the convolution that goes the other way; None where it is no such convolution."""
    where = Geometry(resize, stride, padding, padding_mode, transposed, output_padding)
    back = opposite(x.shape, weight.shape[-1], where)
    plain = second is None and grad_scale is None and not input_grad_from and activation in FROM_OUTPUT
    of_others = any(need[1:5])
    weight = weight if scale is None else reference.scaled(weight, scale, transposed)
    if back is None or not plain or not need[0] or of_others or weight.dtype != x.dtype:
        return None
    grad = before_activation(grad, y, activation, negative_slope)
    dx = _forward(grad, weight, None, None, None, None, None, *back, "none", 0.0, exact, 0)
    return dx, None, None, None, None, grad if need[5] else None


def before_activation(grad: Tensor, y: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    """The gradient at an activation's input from that at its result y, in operations that autograd differentiates."""
    if y is None:  # of no activation
        return grad
    # PyTorch's own derivatives take one pass over memory; slopes that do not change are not differentiated
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, y.detach(), 0)
    if activation == "leaky_relu":
        return torch.ops.aten.leaky_relu_backward(grad, y.detach(), negative_slope, False)
    if not torch.is_grad_enabled():
        if activation == "elu":
            return torch.ops.aten.elu_backward(grad, 1, 1, 1, True, y)
        return (torch.ops.aten.tanh_backward if activation == "tanh" else torch.ops.aten.sigmoid_backward)(grad, y)
    if activation == "elu":
        return torch.where(y > 0, grad, grad * (y + 1))
    return grad * (1 - y * y if activation == "tanh" else y * (1 - y))


def _backward_fake(grad, y, x, weight, bias, second, *options):
    orders = [dense_order(x), *[torch.contiguous_format] * 2, dense_order(x if second is None else second)]
    return tuple(empty_gradients([x, weight, bias, second], options[-1], orders))


OPTIONS = (
    "str resize, int stride, int padding, str padding_mode, bool transposed, int output_padding, str activation, "
    "float negative_slope, bool exact, SymInt input_grad_from"
)
_backward = define(
    f"{NAME}_backward(Tensor grad, Tensor? y, Tensor x, Tensor weight, Tensor? bias, Tensor? second, "
    f"Tensor? grad_scale, {OPTIONS}, bool[] need) -> (Tensor, Tensor, Tensor, Tensor)",
    check=check_backward,
    plan=_plan_backward,
    cpu=_backward_cpu,
    cuda=gpu_function(__name__, "backward"),
    fake=_backward_fake,
)
_forward = define(
    f"{NAME}(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? second, Tensor? residual, "
    f"Tensor? grad_scale, {OPTIONS}) -> Tensor",
    check=check,
    plan=_plan_forward,
    cpu=_forward_cpu,
    cuda=gpu_function(__name__, "forward"),
    fake=_forward_fake,
    reference=reference.resize_conv_act,
    gradients=Gradients(
        _gradients,
        ["x", "weight", "bias", "scale", "second", "residual"],
        along={"bias": "weight"},
        kept_for=("activation", READS_OUTPUT),
        fused_for=("activation", FROM_OUTPUT),
        recorded=_recorded_gradients,
    ),
    # they are rounded as they are packed; float32 parameters get float32 gradients
    autocast=("weight", "bias", "scale"),
)
