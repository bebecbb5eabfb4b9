"""The convolution of an image and landmark heatmaps, summed from small stamps: the heatmaps are never made."""

import torch
from torch import Tensor

from .._availability import gpu_function
from .._checks import DTYPES, refuse, require, require_activation, require_dtype, require_factors, require_need
from .._contract import define, publish
from .._gradients import Gradients, empty_gradients, float32_sums, round_sums
from .._layout import channels_last, float32
from .._native import native_function
from ..landmark_heatmap import check_landmarks
from ..resize_conv_act import FROM_OUTPUT, READS_OUTPUT, check_result
from . import reference

NAME = "landmark_conv"
MAX_KERNEL = 7
_native_forward, _native_backward = native_function(f"{NAME}_forward"), native_function(f"{NAME}_backward")


@publish(reference.landmark_conv)
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
        require(fits, NAME, f"height and width are {given} but image is {tuple(image.shape)}")
        height, width = given
    require(height is not None and width is not None, NAME, "without an image, give height and width")
    landmarks = landmarks if subpixel else landmarks.detach()
    options = (height, width, stride, padding, float(sigma), radius, subpixel, activation, float(negative_slope))
    return _forward(landmarks, weight, bias, image, grad_scale, *options)


def check(
    landmarks, weight, bias, image, grad_scale,
    height, width, stride, padding, sigma, radius, subpixel, activation, negative_slope,
):  # fmt: skip
    require_activation(NAME, activation, FROM_OUTPUT, negative_slope)
    check_landmarks(NAME, landmarks, height, width, sigma, radius)
    require_dtype(NAME, "weight", weight.dtype)
    batch, count = landmarks.shape[:2]
    if image is not None:
        shape = tuple(image.shape)
        fits = len(shape) == 4 and shape[0] == batch and shape[1] > 0 and shape[2:] == (height, width)
        if not fits:
            refuse(NAME, f"image is {shape}; it must be ({batch}, C, {height}, {width})")
    channels = count + (0 if image is None else image.shape[1])
    kernel = tuple(weight.shape)
    fits = len(kernel) == 4 and kernel[0] > 0 and kernel[1] == channels
    if not fits or not all(1 <= side <= MAX_KERNEL for side in kernel[2:]):
        wanted = f"(Cout, {channels}, KH, KW) with kernels from 1 to {MAX_KERNEL}"
        refuse(NAME, f"weight is {kernel}; it must be {wanted}")
    if stride not in (1, 2):
        refuse(NAME, f"stride is {stride}; it must be 1 or 2")
    if not (padding >= 0 and height + 2 * padding >= kernel[2] and width + 2 * padding >= kernel[3]):
        sizes = f"{height}x{width} with a {kernel[2]}x{kernel[3]} kernel"
        refuse(NAME, f"padding {padding} leaves no output of {sizes}")
    if bias is not None and bias.shape != kernel[:1]:
        refuse(NAME, f"bias must be ({kernel[0]},)")
    require_factors(NAME, grad_scale, batch)
    for name, tensor in (("bias", bias), ("image", image)):
        if tensor is not None and tensor.dtype != weight.dtype:
            refuse(NAME, f"{name} is {tensor.dtype} but weight is {weight.dtype}")


def check_backward(
    grad, y, landmarks, weight, bias, image, grad_scale,
    height, width, stride, padding, sigma, radius, subpixel, activation, negative_slope, need,
):  # fmt: skip
    options = (height, width, stride, padding, sigma, radius, subpixel, activation, negative_slope)
    check(landmarks, weight, bias, image, grad_scale, *options)
    shape = output_shape(landmarks, weight, height, width, stride, padding)
    check_result(NAME, grad, y, shape, weight.dtype, activation)
    require_need(NAME, need, [landmarks, weight, bias, image])


def output_shape(
    landmarks: Tensor, weight: Tensor, height: int, width: int, stride: int, padding: int
) -> tuple[int, ...]:
    rows, columns = (
        (n + 2 * padding - k) // stride + 1 for n, k in zip((height, width), weight.shape[2:], strict=True)
    )
    return landmarks.shape[0], weight.shape[0], rows, columns


def output(landmarks: Tensor, weight: Tensor, height: int, width: int, stride: int, padding: int) -> Tensor:
    shape = output_shape(landmarks, weight, height, width, stride, padding)
    return torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last)


def _sizes(landmarks, weight, image, y, height, width, stride, padding):
    batch, count = landmarks.shape[:2]
    cout, _, kh, kw = weight.shape
    inputs = {"channels": 0 if image is None else image.shape[1], "height": height, "width": width}
    kernel = {"kh": kh, "kw": kw, "stride": stride, "padding": padding}
    outputs = {"cout": cout, "out_h": y.shape[2], "out_w": y.shape[3]}
    return {"dtype": DTYPES[weight.dtype], "batch": batch, "count": count, **inputs, **kernel, **outputs}


def _options(sigma, radius, subpixel, activation, negative_slope):
    stamp = {"sigma": sigma, "radius": radius, "subpixel": subpixel}
    return {**stamp, "activation": FROM_OUTPUT[activation], "negative_slope": negative_slope}


def _forward_cpu(
    landmarks, weight, bias, image, grad_scale,
    height, width, stride, padding, sigma, radius, subpixel, activation, negative_slope,
):  # fmt: skip
    y = output(landmarks, weight, height, width, stride, padding)
    read = {"landmarks": float32(landmarks), "weight": float32(weight), "bias": float32(bias)}
    sizes = _sizes(landmarks, weight, image, y, height, width, stride, padding)
    options = _options(sigma, radius, subpixel, activation, negative_slope)
    _native_forward(**read, image=channels_last(image), y=y, **sizes, **options)
    return y


def _forward_fake(
    landmarks, weight, bias, image, grad_scale,
    height, width, stride, padding, sigma, radius, subpixel, activation, negative_slope,
):  # fmt: skip
    return output(landmarks, weight, height, width, stride, padding)


def gradients(like: list[Tensor | None], need: list[bool]) -> list[Tensor]:
    """Empty gradients of landmarks, weight, bias and image; those not needed have no elements."""
    return empty_gradients(like, need, [*[torch.contiguous_format] * 3, torch.channels_last])


def _backward_cpu(
    grad, y, landmarks, weight, bias, image, grad_scale,
    height, width, stride, padding, sigma, radius, subpixel, activation, negative_slope, need,
):  # fmt: skip
    results = gradients([landmarks, weight, bias, image], need)
    sums = float32_sums(results[:3], need[:3])
    y = y if activation in READS_OUTPUT else None
    read = {"landmarks": float32(landmarks), "weight": float32(weight), "grad_scale": float32(grad_scale)}
    read |= {"image": channels_last(image), "y": channels_last(y), "grad": channels_last(grad)}
    dlandmarks, dweight, dbias = sums
    written = {"dlandmarks": dlandmarks, "dweight": dweight, "dbias": dbias, "dimage": results[3] if need[3] else None}
    sizes = _sizes(landmarks, weight, image, grad, height, width, stride, padding)
    _native_backward(**read, **written, **sizes, **_options(sigma, radius, subpixel, activation, negative_slope))
    round_sums(sums, results[:3])
    return tuple(results)


def _backward_fake(grad, y, landmarks, weight, bias, image, *options):
    return tuple(gradients([landmarks, weight, bias, image], options[-1]))


_OPTIONS = (
    "SymInt height, SymInt width, int stride, int padding, float sigma, int radius, bool subpixel, "
    "str activation, float negative_slope"
)
_backward = define(
    f"{NAME}_backward(Tensor grad, Tensor? y, Tensor landmarks, Tensor weight, Tensor? bias, Tensor? image, "
    f"Tensor? grad_scale, {_OPTIONS}, bool[] need) -> (Tensor, Tensor, Tensor, Tensor)",
    check=check_backward,
    cpu=_backward_cpu,
    cuda=gpu_function(__name__, "backward"),
    fake=_backward_fake,
)
_forward = define(
    f"{NAME}(Tensor landmarks, Tensor weight, Tensor? bias, Tensor? image, Tensor? grad_scale, {_OPTIONS}) -> Tensor",
    check=check,
    cpu=_forward_cpu,
    cuda=gpu_function(__name__, "forward"),
    fake=_forward_fake,
    reference=reference.landmark_conv,
    gradients=Gradients(
        _backward,
        ["landmarks", "weight", "bias", "image"],
        only_if={"landmarks": "subpixel"},
        along={"bias": "weight"},
        kept_for=("activation", READS_OUTPUT),
    ),
    autocast=(),
)
