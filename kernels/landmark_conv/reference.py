"""landmark_conv in plain differentiable PyTorch: the oracle, the baseline and the --eager path."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .._grad_scale import weigh_samples
from ..landmark_heatmap.reference import landmark_heatmap
from ..resize_conv_act.reference import ACTIVATIONS


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
    """The same signature and result as the public operator."""
    height, width = image.shape[2:] if image is not None else (height, width)
    x = landmark_heatmap(landmarks, height, width, sigma=sigma, radius=radius, subpixel=subpixel, dtype=weight.dtype)
    if image is not None:
        x = torch.cat([image, x], dim=1)
    convolved = partial(F.conv2d, stride=stride, padding=padding)
    y = weigh_samples(convolved, [x], weight, bias, grad_scale, x.dtype)
    return ACTIVATIONS[activation](y, negative_slope)
