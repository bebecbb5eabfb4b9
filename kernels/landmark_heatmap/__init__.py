"""Gaussian heatmaps of landmarks: each map written once, zeros and one small stamp."""

from math import inf

import torch
from torch import Tensor

from .._availability import gpu_function
from .._checks import DTYPES, refuse, require, require_dtype
from .._contract import define, publish
from .._gradients import Gradients
from .._layout import float32
from .._native import native_function
from . import reference

NAME = "landmark_heatmap"
MAX_RADIUS = 1 << 20
_native_forward, _native_backward = native_function(f"{NAME}_forward"), native_function(f"{NAME}_backward")


@publish(reference.landmark_heatmap)
def landmark_heatmap(
    landmarks: Tensor,
    height: int,
    width: int,
    *,
    sigma: float = 1.0,
    radius: int = 3,
    subpixel: bool = False,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """One map per landmark: a Gaussian of peak 1, cut to a square of 2 radius + 1 pixels and to the image, on zeros.

    landmarks:     (B, N, 2) x, y in pixels, 0 the centre of the first; float32, bfloat16 or float16; any strides.
                   What lies outside leaves the part of its stamp that reaches the image; NaN and infinity leave none.
    sigma, radius: in pixels, > 0 and >= 1
    subpixel:      False: the stamp is centred at the pixel int(x), int(y), and the result has no gradient.
                   True: the Gaussian is centred at (x, y) and the window at the nearest pixel; gradients reach the
                   landmarks through the exponent (the choice of the window has none).
    dtype:         of the result: float32, bfloat16 or float16; None: that of landmarks
    memory_format: of the result: torch.channels_last, as a following convolution reads it, or torch.contiguous_format

    Returns (B, N, height, width). Under create_graph=True the gradient comes from the reference, for any order.
    Raises ValueError when a shape, dtype or option does not fit.
    Source: the 7x7 stamp (variance 1/3 on a [-1, 1] grid of 7: sigma 1, radius 3) of the landmark-conditioned
    reenactment; with subpixel=True its differentiable form.
    """
    landmarks = landmarks if subpixel else landmarks.detach()
    channels_last = memory_format is torch.channels_last
    require(
        channels_last or memory_format is torch.contiguous_format,
        NAME,
        f"memory_format is {memory_format}; it must be torch.channels_last or torch.contiguous_format",
    )
    return _forward(landmarks, height, width, float(sigma), radius, subpixel, dtype or landmarks.dtype, channels_last)


def check_landmarks(name: str, landmarks: Tensor, height: int, width: int, sigma: float, radius: int) -> None:
    """The checks that landmark_heatmap and landmark_conv share."""
    shape = tuple(landmarks.shape)
    if not (len(shape) == 3 and shape[2] == 2 and shape[1] > 0):
        refuse(name, f"landmarks must be (B, N, 2), not {shape}")
    require_dtype(name, "landmarks", landmarks.dtype)
    if not (height > 0 and width > 0):
        refuse(name, f"height and width must be positive, not {height} and {width}")
    # the smallest sigma whose square float32 still divides by
    if not 1e-6 <= sigma < inf:
        refuse(name, f"sigma is {sigma}; it must be positive and finite")
    if not 1 <= radius <= MAX_RADIUS:
        refuse(name, f"radius is {radius}; it must be from 1 to {MAX_RADIUS}")


def output(landmarks: Tensor, height: int, width: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    return torch.empty(
        (*landmarks.shape[:2], height, width),
        dtype=dtype,
        device=landmarks.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def _sizes(maps, channels_last):
    batch, count, height, width = maps.shape
    sizes = {"batch": batch, "count": count, "height": height, "width": width}
    return {"dtype": DTYPES[maps.dtype], "channels_last": channels_last, **sizes}


def check(landmarks, height, width, sigma, radius, subpixel, dtype, channels_last):
    check_landmarks(NAME, landmarks, height, width, sigma, radius)
    require_dtype(NAME, "dtype", dtype)


def check_backward(grad, landmarks, sigma, radius):
    if grad.dim() != 4 or grad.shape[:2] != landmarks.shape[:2]:
        refuse(NAME, f"grad is {tuple(grad.shape)}; it must be (B, N, height, width)")
    check(landmarks, *grad.shape[2:], sigma, radius, True, grad.dtype, True)


def _forward_cpu(landmarks, height, width, sigma, radius, subpixel, dtype, channels_last):
    maps = output(landmarks, height, width, dtype, channels_last)
    stamp = {"sigma": sigma, "radius": radius, "subpixel": subpixel}
    _native_forward(landmarks=float32(landmarks), maps=maps, **stamp, **_sizes(maps, channels_last))
    return maps


def _forward_fake(landmarks, height, width, sigma, radius, subpixel, dtype, channels_last):
    return output(landmarks, height, width, dtype, channels_last)


def gradient(landmarks: Tensor) -> Tensor:
    return torch.empty(landmarks.shape, dtype=landmarks.dtype, device=landmarks.device)


def _backward_cpu(grad, landmarks, sigma, radius):
    channels_last = grad.is_contiguous(memory_format=torch.channels_last)
    grad = grad if channels_last else grad.contiguous()
    at = float32(landmarks)
    sums = torch.empty_like(at)
    stamp = {"sigma": sigma, "radius": radius, "subpixel": True}
    _native_backward(landmarks=at, grad=grad, dlandmarks=sums, **stamp, **_sizes(grad, channels_last))
    return gradient(landmarks).copy_(sums)


def _backward_fake(grad, landmarks, sigma, radius):
    return gradient(landmarks)


def _reference(landmarks, height, width, sigma, radius, subpixel, dtype, channels_last):
    order = torch.channels_last if channels_last else torch.contiguous_format
    options = {"sigma": sigma, "radius": radius, "subpixel": subpixel, "dtype": dtype, "memory_format": order}
    return reference.landmark_heatmap(landmarks, height, width, **options)


_backward = define(
    f"{NAME}_backward(Tensor grad, Tensor landmarks, float sigma, int radius) -> Tensor",
    check=check_backward,
    cpu=_backward_cpu,
    cuda=gpu_function(__name__, "backward"),
    fake=_backward_fake,
)
_forward = define(
    f"{NAME}(Tensor landmarks, SymInt height, SymInt width, float sigma, int radius, bool subpixel, "
    "ScalarType dtype, bool channels_last) -> Tensor",
    check=check,
    cpu=_forward_cpu,
    cuda=gpu_function(__name__, "forward"),
    fake=_forward_fake,
    reference=_reference,
    gradients=Gradients(_backward, ["landmarks"], ["maps"], only_if={"landmarks": "subpixel"}),
)
