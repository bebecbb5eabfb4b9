"""Samples, tolerances and costs of landmark_heatmap."""

from math import prod

import torch
from torch import Tensor

from .._constants import constant
from .._spec import Sample, Spec


def _sample(
    b: int, n: int, height: int, width: int, *, subpixel: bool = True, layout: str = "contiguous", **options
) -> Sample:
    options |= {"height": height, "width": width, "subpixel": subpixel}
    name = f"{b}x{n}x{height}x{width}" + " subpixel" * subpixel + " expanded" * (layout == "expanded")
    extras = [f"{key} {value}" for key, value in options.items() if key in ("sigma", "radius", "memory_format")]
    return Sample(
        " ".join([name, *extras]),
        {"landmarks": (b, n, 2)},
        options,
        layout,
        uniform={"landmarks": (-6.0, max(height, width) + 6.0)},  # some stamps are cut, some lie outside
        fixed=() if subpixel else ("landmarks",),
    )


PLANES = torch.contiguous_format


def strong(
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
    """All stamps at once, added into zeros by one scatter: no exponential and no product outside of the windows."""
    at = landmarks.float() if landmarks.dtype.itemsize < 4 else landmarks
    size = constant((width, height), at)
    pixel = at.detach().round() if subpixel else at.detach().trunc()
    reaches = ((pixel >= -radius) & (pixel <= size - 1 + radius)).all(-1, keepdim=True)
    pixel, centre = (torch.where(reaches, t, 0) for t in (pixel, at if subpixel else pixel))
    window = pixel.unsqueeze(2) + torch.arange(-radius, radius + 1, dtype=at.dtype, device=at.device).unsqueeze(1)
    inside = (window >= 0) & (window < size) & reaches.unsqueeze(2)
    along = torch.where(inside, torch.exp(-((window - centre.unsqueeze(2)) ** 2) / (2 * sigma**2)), 0)
    stamps = (along[..., 1].unsqueeze(3) * along[..., 0].unsqueeze(2)).flatten(2)
    # what is cut off is zero, and may be added anywhere
    column, row = (window.clamp(at.new_zeros(2), size - 1)).long().unbind(-1)
    places = (row.unsqueeze(3) * width + column.unsqueeze(2)).flatten(2)
    batch, count = at.shape[:2]
    if memory_format == PLANES:
        maps = at.new_zeros(batch, count, height * width).scatter_add(2, places, stamps)
        return maps.view(batch, count, height, width).to(dtype or landmarks.dtype)
    maps = at.new_zeros(batch, height * width, count).scatter_add(1, places.mT, stamps.mT)
    return maps.view(batch, height, width, count).permute(0, 3, 1, 2).to(dtype or landmarks.dtype)


SPEC = Spec(
    operator="landmark_heatmap",
    samples=[
        _sample(2, 7, 16, 24),
        _sample(2, 7, 16, 24, subpixel=False),
        _sample(1, 68, 33, 17),
        _sample(3, 5, 64, 70, subpixel=False),
        _sample(2, 20, 19, 21, memory_format=PLANES),
        _sample(2, 20, 19, 21, memory_format=PLANES, subpixel=False),
        _sample(2, 9, 8, 8, radius=15),
        _sample(2, 9, 40, 31, radius=1, sigma=0.5),
        _sample(2, 9, 40, 31, radius=9, sigma=3.0, memory_format=PLANES),
        _sample(1, 3, 1, 1),
        _sample(0, 4, 8, 8),
        _sample(3, 4, 12, 9, layout="expanded"),
    ],
    benchmarks=[
        _sample(25, 68, side, side, subpixel=subpixel, memory_format=layout)
        for side in (64, 128)
        for subpixel in (False, True)
        for layout in (torch.channels_last, PLANES)
    ],
    floor={torch.float32: 3e-7, torch.bfloat16: 1e-4, torch.float16: 2e-5},
    strong=strong,
    # one product per pixel of a window; 3 more for the gradient
    flops=lambda s: prod(s.shapes["landmarks"][:2]) * (2.0 * s.options.get("radius", 3) + 1) ** 2 * 4,
    # the write of the maps; the gradient reads the windows only
    bytes=lambda s, dtype: (
        float(dtype.itemsize)
        * prod(s.shapes["landmarks"][:2])
        * (s.options["height"] * s.options["width"] + s.options["subpixel"] * 49)
    ),
)
