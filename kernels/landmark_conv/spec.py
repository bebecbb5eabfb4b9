"""Samples, tolerances and costs of landmark_conv."""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from .._checks import DTYPES
from .._spec import Sample, Spec
from ..landmark_heatmap import landmark_heatmap
from ..landmark_heatmap.reference import landmark_heatmap as eager_heatmap
from ..resize_conv_act import FROM_OUTPUT
from .reference import ACTIVATIONS
from .reference import landmark_conv as reference


def _sample(
    b: int, n: int, c: int, h: int, w: int, cout: int, k: int | tuple[int, int] = 3, *,
    subpixel: bool = True, bias: bool = True, grad_scale: bool = False, layout: str = "contiguous",
    image_gradient: bool = True, **options,
) -> Sample:  # fmt: skip
    kernel = (k, k) if isinstance(k, int) else k
    shapes = {"landmarks": (b, n, 2), "weight": (cout, c + n, *kernel)}
    if bias:
        shapes["bias"] = (cout,)
    if c:
        shapes["image"] = (b, c, h, w)
    if grad_scale:
        shapes["grad_scale"] = (b,)
    extras = ["subpixel" * subpixel, "no bias" * (not bias), "grad_scale" * grad_scale]
    extras += ["fixed image" * (not image_gradient), "expanded" * (layout == "expanded")]
    extras += [f"{name} {value}" for name, value in options.items()]
    name = f"{b}x({c}+{n})x{h}x{w}->{cout} {kernel[0]}x{kernel[1]} " + " ".join(filter(None, extras))
    return Sample(
        name.strip(),
        shapes,
        options | {"height": h, "width": w, "subpixel": subpixel},
        layout,
        uniform={"landmarks": (-6.0, max(h, w) + 6.0)},  # some stamps are cut, some lie outside
        fixed=("landmarks",) * (not subpixel) + ("image",) * (not image_gradient),
    )


def _samples() -> list[Sample]:
    samples = [
        _sample(2, 5, 3, 12, 14, 8, padding=1, activation="elu", grad_scale=True),
        _sample(1, 4, 0, 9, 9, 3, (2, 5), subpixel=False),
        _sample(0, 4, 3, 8, 8, 8, padding=1),
        _sample(3, 6, 1, 20, 17, 20, 3, padding=1, stride=2, bias=False),
        _sample(2, 68, 3, 33, 29, 24, 5, padding=1, subpixel=False, grad_scale=True),
        _sample(9, 3, 3, 24, 25, 17, 4, padding=2, stride=2, subpixel=False),  # stamps formed once
        _sample(9, 3, 0, 30, 41, 65, 3, padding=5, subpixel=False),
        _sample(4, 6, 24, 15, 16, 33, 3, padding=1, layout="expanded"),
        _sample(2, 3, 6, 11, 10, 7, (7, 6), padding=3, stride=2, radius=2, sigma=0.7),
        _sample(3, 7, 3, 8, 8, 16, 3, padding=1, radius=15, activation="elu"),
        _sample(1, 2, 3, 1, 1, 5, 1),
        _sample(1, 2, 3, 5, 5, 5, 1, stride=2, padding=3),
        _sample(2, 4, 4, 70, 40, 40, 7, padding=4, subpixel=False, image_gradient=False),
    ]
    samples += [
        _sample(2, 4, 2, 10, 11, 12, padding=1, activation=activation, subpixel=activation < "l", negative_slope=0.1)
        for activation in FROM_OUTPUT
    ]
    return samples


def strong(
    landmarks: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    image: Tensor | None = None,
    height: int | None = None,
    width: int | None = None,
    stride: int = 1,
    padding: int = 0,
    activation: str = "none",
    negative_slope: float = 0.2,
    grad_scale: Tensor | None = None,
    subpixel: bool = False,
    **stamp: float,
) -> Tensor:
    """With library parts: fused heatmaps, then one convolution or two, so that heatmaps without gradient get none."""
    if grad_scale is not None:
        options = {"height": height, "width": width, "stride": stride, "padding": padding, "subpixel": subpixel}
        options |= {"activation": activation, "negative_slope": negative_slope, "grad_scale": grad_scale}
        return reference(landmarks, weight, bias, image=image, **options, **stamp)
    height, width = image.shape[2:] if image is not None else (height, width)
    heatmap = landmark_heatmap if landmarks.dtype in DTYPES else eager_heatmap
    maps = heatmap(landmarks, height, width, subpixel=subpixel, dtype=weight.dtype, **stamp)
    if image is None:
        y = F.conv2d(maps, weight, bias, stride, padding)
    elif subpixel:
        y = F.conv2d(torch.cat([image, maps], dim=1), weight, bias, stride, padding)
    else:
        channels = image.shape[1]
        of_image = F.conv2d(image, weight[:, :channels], bias, stride, padding)
        y = of_image + F.conv2d(maps, weight[:, channels:], None, stride, padding)
    return ACTIVATIONS[activation](y, negative_slope)


def _sizes(s: Sample) -> tuple[int, int, int]:
    """Elements of the image, the output and the weight."""
    cout, _, kh, kw = s.shapes["weight"]
    stride, padding = s.options.get("stride", 1), s.options.get("padding", 0)
    rows, columns = (
        (n + 2 * padding - k) // stride + 1 for n, k in ((s.options["height"], kh), (s.options["width"], kw))
    )
    image = prod(s.shapes["image"]) if "image" in s.shapes else 0
    return image, s.shapes["landmarks"][0] * cout * rows * columns, prod(s.shapes["weight"])


def _flops(s: Sample) -> float:
    _, out, weight = _sizes(s)
    passes = 2 + (s.differentiable("landmarks") or ("image" in s.shapes and s.differentiable("image")))
    return passes * 2.0 * out * weight / s.shapes["weight"][0]


def _bytes(s: Sample, dtype: torch.dtype) -> float:
    image, out, weight = _sizes(s)
    # forward reads the image and the weight and writes y; backward reads them and dy and writes two gradients
    return float(dtype.itemsize) * (3 * image + 2 * out + 3 * weight)


SPEC = Spec(
    operator="landmark_conv",
    samples=_samples(),
    benchmarks=[
        *(
            _sample(b, 68, 3, 64, 64, 64, k, padding=1, subpixel=s)
            for b in (8, 25)
            for k in (3, 5)
            for s in (False, True)
        ),
        _sample(8, 68, 3, 64, 64, 64, 5, padding=1, subpixel=False, image_gradient=False),
        _sample(8, 68, 0, 64, 64, 64, 5, padding=1, subpixel=False),
        _sample(8, 68, 3, 64, 64, 32, 4, padding=1, stride=2, subpixel=False),
    ],
    floor={torch.float32: 1e-6, torch.bfloat16: 1e-4, torch.float16: 2e-5},
    flops=_flops,
    bytes=_bytes,
    strong=strong,
    # channels: of the result
    sweeps={"3x3": lambda batch, channels, side: _sample(batch, 68, 3, side, side, channels, 3, padding=1)},
)
