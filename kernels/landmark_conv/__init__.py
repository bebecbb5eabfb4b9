"""The convolution of an image and landmark heatmaps, summed from small stamps: the heatmaps are never made."""

from typing import cast

import torch
from torch import Tensor

from .. import _native, _op
from ..landmark_heatmap import check_landmarks
from ..resize_conv_act import FROM_OUTPUT
from .reference import landmark_conv as reference

NAME = "landmark_conv"
MAX_KERNEL = 7


def landmark_conv(
    landmarks: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    image: Tensor | None = None,
    height: int | None = None,
    width: int | None = None,
    stride: int = 1,
    padding: int = 0,
    sigma: float = 1.0,
    radius: int = 3,
    subpixel: bool = False,
    activation: str = "none",
    negative_slope: float = 0.2,
    grad_scale: Tensor | None = None,
) -> Tensor:
    """activation(conv2d(concat(image, landmark_heatmap(landmarks)), weight, bias, stride, padding)) without heatmaps.

    landmarks:      (B, N, 2) x, y in pixels; float32, bfloat16 or float16; any strides. As in landmark_heatmap: what
                    lies outside leaves the part of its stamp that reaches the image, NaN and infinity leave none
    weight:         (Cout, C + N, KH, KW) float32, bfloat16 or float16; KH, KW from 1 to 7; the image's channels first
    bias:           (Cout,) of weight's dtype, or None
    image:          (B, C, H, W) of weight's dtype, any strides (channels_last is read in place); None: C = 0, and
                    height and width give the size of the heatmaps
    height, width:  with an image, None or its own
    stride:         1 or 2
    padding:        >= 0 zeros on each side
    sigma, radius:  of the Gaussian, in pixels, > 0 and >= 1; a stamp is a square of 2 radius + 1 pixels
    subpixel:       False: stamps at the pixel int(x), int(y), no gradient to landmarks. True: centred at (x, y)
    activation:     "none", "elu" (alpha 1), "relu", "leaky_relu" (negative_slope), "tanh", "sigmoid"
    negative_slope: >= 0, of "leaky_relu"
    grad_scale:     (B,) float32: factor of each sample in the gradients of weight and bias only

    Returns (B, Cout, Ho, Wo) of weight's dtype, channels_last. Sums are float32. Where no stamp lies, a weight that is
    NaN or infinite is not read: there a heatmap's zero times it would be NaN.
    Gradients of first order are fused; under create_graph=True they come from the reference, for any order.
    Raises ValueError when a shape, dtype or option does not fit.
    Source: the first layer of the landmark-conditioned reenactment networks and of the refiner with landmarks.
    """
    if image is not None:
        given = (height or image.shape[-2], width or image.shape[-1])
        fits = image.dim() == 4 and given == tuple(image.shape[-2:])
        _op.require(fits, NAME, f"height and width are {given} but image is {tuple(image.shape)}")
        height, width = given
    _op.require(height is not None and width is not None, NAME, "without an image, give height and width")
    landmarks = landmarks if subpixel else landmarks.detach()
    options = (height, width, stride, padding, float(sigma), radius, subpixel, activation, float(negative_slope))
    return _forward(landmarks, weight, bias, image, grad_scale, *options)


def check(landmarks, weight, bias, image, grad_scale, height, width, stride, padding, sigma, radius, activation):
    _op.require(
        activation in FROM_OUTPUT,
        NAME,
        f"activation is {activation!r}; it must be one of {', '.join(FROM_OUTPUT)}",
    )
    check_landmarks(NAME, landmarks, height, width, sigma, radius)
    _op.require(
        weight.dtype in _op.DTYPES, NAME, f"weight is {weight.dtype}; float32, bfloat16 and float16 are supported"
    )
    batch, count = landmarks.shape[:2]
    if image is not None:
        shape = tuple(image.shape)
        _op.require(
            len(shape) == 4 and shape[0] == batch and shape[1] > 0 and shape[2:] == (height, width),
            NAME,
            f"image is {shape}; it must be ({batch}, C, {height}, {width})",
        )
    channels = count + (0 if image is None else image.shape[1])
    kernel = tuple(weight.shape)
    _op.require(
        len(kernel) == 4
        and kernel[0] > 0
        and kernel[1] == channels
        and 1 <= min(kernel[2:]) <= max(kernel[2:]) <= MAX_KERNEL,
        NAME,
        f"weight is {kernel}; it must be (Cout, {channels}, KH, KW) with kernels from 1 to {MAX_KERNEL}",
    )
    _op.require(stride in (1, 2), NAME, f"stride is {stride}; it must be 1 or 2")
    fits = padding >= 0 and height + 2 * padding >= kernel[2] and width + 2 * padding >= kernel[3]
    _op.require(
        fits, NAME, f"padding {padding} leaves no output of {height}x{width} with a {kernel[2]}x{kernel[3]} kernel"
    )
    _op.require(bias is None or bias.shape == kernel[:1], NAME, f"bias must be ({kernel[0]},)")
    _op.require(grad_scale is None or grad_scale.shape == (batch,), NAME, f"grad_scale must be ({batch},)")
    for name, tensor in (("bias", bias), ("image", image)):
        if tensor is not None:
            _op.require(tensor.dtype == weight.dtype, NAME, f"{name} is {tensor.dtype} but weight is {weight.dtype}")
    for name, tensor in (("weight", weight), ("bias", bias), ("image", image)):
        if tensor is not None:
            _op.require(
                tensor.device == landmarks.device,
                NAME,
                f"{name} is on {tensor.device} but landmarks on {landmarks.device}",
            )


def output(landmarks: Tensor, weight: Tensor, height: int, width: int, stride: int, padding: int) -> Tensor:
    rows, columns = (
        (n + 2 * padding - k) // stride + 1 for n, k in zip((height, width), weight.shape[2:], strict=True)
    )
    return torch.empty(
        (landmarks.shape[0], weight.shape[0], rows, columns),
        dtype=weight.dtype,
        device=weight.device,
        memory_format=torch.channels_last,
    )


def _float32(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().float().contiguous()


def _integers(landmarks, weight, image, y, height, width, stride, padding, radius, subpixel, activation):
    channels = 0 if image is None else image.shape[1]
    sizes = [*landmarks.shape[:2], channels, height, width, *weight.shape[2:], *y.shape[1:]]
    options = [stride, padding, subpixel, radius, FROM_OUTPUT[activation]]
    return [_op.DTYPES[weight.dtype], *options, *sizes]


def _forward_cpu(
    landmarks, weight, bias, image, grad_scale,
    height, width, stride, padding, sigma, radius, subpixel, activation, negative_slope,
):  # fmt: skip
    check(landmarks, weight, bias, image, grad_scale, height, width, stride, padding, sigma, radius, activation)
    y = output(landmarks, weight, height, width, stride, padding)
    kept = [_float32(landmarks), _float32(weight), _float32(bias), _op.channels_last(image), y]
    integers = _integers(landmarks, weight, image, y, height, width, stride, padding, radius, subpixel, activation)
    _native.call(f"{NAME}_forward", [_native.address(t) for t in kept], integers, [sigma, negative_slope])
    return y


def _forward_fake(
    landmarks, weight, bias, image, grad_scale,
    height, width, stride, padding, sigma, radius, subpixel, activation, negative_slope,
):  # fmt: skip
    check(landmarks, weight, bias, image, grad_scale, height, width, stride, padding, sigma, radius, activation)
    return output(landmarks, weight, height, width, stride, padding)


def gradients(like: list[Tensor | None], need: list[bool]) -> list[Tensor]:
    """Empty gradients of landmarks, weight, bias and image; those not needed have no elements."""
    formats = [torch.contiguous_format] * 3 + [torch.channels_last]
    given = [t if n else None for t, n in zip(like, need, strict=True)]
    weight = cast(Tensor, like[1])
    return [
        torch.empty(0, dtype=weight.dtype, device=weight.device)
        if t is None
        else torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=f)
        for t, f in zip(given, formats, strict=True)
    ]


def _backward_cpu(
    grad, y, landmarks, weight, bias, image, grad_scale,
    height, width, stride, padding, sigma, radius, subpixel, activation, negative_slope, need,
):  # fmt: skip
    results = gradients([landmarks, weight, bias, image], need)
    # sums are float32: the gradients themselves where the parameters are, else cast from these
    sums = [
        None if not n else r if r.dtype == torch.float32 else torch.empty_like(r, dtype=torch.float32)
        for r, n in zip(results[:3], need[:3], strict=True)
    ]
    kept = [
        _float32(landmarks),
        _float32(weight),
        _op.channels_last(image),
        _op.channels_last(y),
        _op.channels_last(grad),
        _float32(grad_scale),
    ]
    integers = _integers(landmarks, weight, image, grad, height, width, stride, padding, radius, subpixel, activation)
    pointers = [_native.address(t) for t in (*kept, *sums, results[3] if need[3] else None)]
    _native.call(f"{NAME}_backward", pointers, integers, [sigma, negative_slope])
    for result, total in zip(results[:3], sums, strict=True):
        if total is not None and total is not result:
            result.copy_(total)
    return tuple(results)


def _backward_fake(
    grad, y, landmarks, weight, bias, image, grad_scale,
    height, width, stride, padding, sigma, radius, subpixel, activation, negative_slope, need,
):  # fmt: skip
    return tuple(gradients([landmarks, weight, bias, image], need))


def _setup_context(ctx, inputs, output):
    landmarks, weight, bias, image, grad_scale, *ctx.options = inputs
    activation = ctx.options[-2]
    y = None if activation == "none" else output  # the activation's derivative is a function of the output
    ctx.save_for_backward(landmarks, weight, bias, image, grad_scale, y)


def _autograd(ctx, grad):
    landmarks, weight, bias, image, grad_scale, y = ctx.saved_tensors
    need = list(ctx.needs_input_grad[:4])
    height, width, stride, padding, sigma, radius, subpixel, activation, negative_slope = ctx.options
    need[0] = need[0] and subpixel
    rest = [None] * 10
    if torch.is_grad_enabled():

        def of(landmarks, weight, bias, image):
            return reference(
                landmarks, weight, bias, image=image, height=height, width=width, stride=stride, padding=padding,
                sigma=sigma, radius=radius, subpixel=subpixel, activation=activation, negative_slope=negative_slope,
                grad_scale=grad_scale,
            )  # fmt: skip

        found = _op.differentiable_gradients(of, [landmarks, weight, bias, image], need, [grad])
    else:
        found = _backward(grad, y, landmarks, weight, bias, image, grad_scale, *ctx.options, need)
    return *(g if n else None for g, n in zip(found, need, strict=True)), *rest


_OPTIONS = (
    "SymInt height, SymInt width, int stride, int padding, float sigma, int radius, bool subpixel, "
    "str activation, float negative_slope"
)
_backward = _op.define(
    f"{NAME}_backward(Tensor grad, Tensor? y, Tensor landmarks, Tensor weight, Tensor? bias, Tensor? image, "
    f"Tensor? grad_scale, {_OPTIONS}, bool[] need) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward_cpu,
    cuda=_op.gpu(__name__, "backward"),
    fake=_backward_fake,
)
_forward = _op.define(
    f"{NAME}(Tensor landmarks, Tensor weight, Tensor? bias, Tensor? image, Tensor? grad_scale, {_OPTIONS}) -> Tensor",
    cpu=_forward_cpu,
    cuda=_op.gpu(__name__, "forward"),
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_autograd,
    autocast=(),
)
_op.publish(landmark_conv, reference, lambda: _op.own_implementations(NAME))
