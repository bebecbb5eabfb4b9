"""Samples, tolerances, costs and the strongest library form of norm_act."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._observers import NativeCall
from .._spec import Sample, Spec, Work
from ..resize_conv_act.reference import ACTIVATIONS
from .reference import as_one_dtype

KINDS = ("batch", "instance", "group", "layer")


def _sample(
    *shape: int, kind: str = "batch", activation: str = "none", residual: str | None = None, affine: bool = True,
    layout: str = "channels_last", **options: Any,
) -> Sample:  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"x": shape}
    if affine:
        shapes |= {"weight": shape[1:2], "bias": shape[1:2]}
    if residual:
        shapes["residual"] = shape
        options["residual_place"] = residual
    evaluates = options.get("training") is False
    if evaluates:
        shapes |= {"running_mean": shape[1:2], "running_var": shape[1:2]}
    extras = [f"groups {options.get('groups')}" * ("groups" in options), "evaluated" * evaluates]
    extras += [f"residual {residual}" * bool(residual), "not affine" * (not affine)]
    name = " ".join(["x".join(map(str, shape)), kind, activation, *filter(None, extras), layout])
    options |= {"kind": kind, "activation": activation}
    uniform = {"weight": (0.5, 1.5), "running_var": (0.5, 2.0)}
    return Sample(name, shapes, options, layout, uniform=uniform, fixed=("running_mean", "running_var"))


def _samples() -> list[Sample]:
    samples = [
        _sample(2, 6, 5, 4, activation="elu"),
        _sample(2, 6, 5, 4, kind="group", groups=2, activation="silu", layout="contiguous"),
    ]
    for number, activation in enumerate(ACTIVATIONS):
        for layout in ("channels_last", "contiguous"):
            kind, place = KINDS[number % 3], ("before", "after", None)[number % 3]
            groups = {"groups": 4} if kind == "group" else {}
            sample = _sample(3, 24, 9, 7, kind=kind, activation=activation, residual=place, layout=layout, **groups)
            samples.append(sample)
    for kind in KINDS:
        groups = {"groups": 3} if kind == "group" else {}
        samples += [
            _sample(2, 33, 13, 11, kind=kind, activation="relu", **groups),
            _sample(2, 3, 70, 71, kind=kind, activation="leaky_relu", layout="contiguous", **groups),
            _sample(2, 12, 10, 11, kind=kind, activation="elu", affine=False, layout="sliced", **groups),
            _sample(3, 18, 8, 8, kind=kind, activation="tanh", residual="before", layout="expanded", **groups),
            _sample(0, 6, 4, 4, kind=kind, activation="elu", **groups),
        ]
    return [
        *samples,
        _sample(9, 17, 4, 4, activation="silu", residual="before", layout="contiguous"),  # whole images in a row
        _sample(3, 1, 1, 1, activation="elu"),
        _sample(1, 1, 2, 3, kind="layer"),
        _sample(1, 64, 36, 36, kind="instance", activation="relu", residual="after"),  # several parts of an image
        _sample(2, 8, 40, 60, activation="relu", residual="before"),
        *(
            _sample(2, 17, 6, 5, activation="elu", residual="before", training=False, layout=layout)
            for layout in ("channels_last", "contiguous")
        ),
        _sample(2, 16, 6, 5, kind="instance", activation="sigmoid", training=False),
    ]


_IN_PLACE = {
    "none": lambda y, slope: y, "elu": lambda y, slope: F.elu(y, inplace=True), "relu": lambda y, slope: F.relu_(y),
    "leaky_relu": lambda y, slope: F.leaky_relu_(y, slope), "tanh": lambda y, slope: y.tanh_(),
    "sigmoid": lambda y, slope: y.sigmoid_(), "silu": lambda y, slope: F.silu(y),
}  # fmt: skip


def strong(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, kind: str, groups: int | None = None,
    running_mean: Tensor | None = None, running_var: Tensor | None = None, training: bool = True,
    momentum: float = 0.1, eps: float = 1e-5, activation: str = "none", negative_slope: float = 0.2,
    residual: Tensor | None = None, residual_place: str = "before",
) -> Tensor:  # fmt: skip
    """Sum and activation in place; instance normalisation as groups of one channel, which copies no layout."""
    weight, bias, *running = as_one_dtype(x, weight, bias, running_mean, running_var)
    if kind == "batch" or not training:
        y = F.batch_norm(x, *running, weight, bias, training, momentum, eps)
    else:
        parts = {"instance": x.shape[1], "layer": 1}.get(kind, groups or 1)
        y = F.group_norm(x, parts, weight, bias, eps)
    if residual is not None and residual_place == "before":
        y += residual
    y = _IN_PLACE[activation](y, negative_slope)
    return y + residual if residual is not None and residual_place == "after" else y


def _flops(s: Sample) -> float:
    # forward: difference, its square, two sums, scale, shift and activation; backward: about twice that
    return 24.0 * prod(s.shapes["x"])


def _bytes(s: Sample, dtype: torch.dtype) -> float:
    # forward reads x for the statistics and again to normalise it, and writes y; backward reads x and the gradient
    # twice and writes one gradient; a residual is read with them, and where an activation follows so is its gradient
    measured = s.options.get("training", True) or s.options["kind"] in ("group", "layer")
    passes = 8.0 if measured else 7.0
    if "residual" in s.shapes:
        follows = s.options["residual_place"] == "before" and s.options["activation"] != "none"
        passes += 4.0 if follows else 1.0
    return dtype.itemsize * passes * prod(s.shapes["x"])


def _work(call: NativeCall) -> Work:
    batch, channels, pixels, groups = (call.integers[name] for name in ("batch", "channels", "pixels", "groups"))
    elements, width = batch * channels * pixels, 2.0 if call.integers["dtype"] else 4.0
    given, residual = call.pointers, call.pointers["residual"] != 0
    kind = "batch" if not groups else f"{groups} groups"
    shape = f"{batch}x{channels}x{pixels} pixels, {kind}"
    if call.function.endswith("_forward"):
        measured, written = not call.integers["constant"], given["y"] != 0
        passes = measured + written * (2 + residual)
        return Work(shape, (4.0 * measured + 4.0 * written) * elements, passes * width * elements)
    writes = (given["dx"] != 0) + (given["dresidual"] != 0)
    summed = bool(given["dweight"] or given["dbias"] or not (call.integers["constant"] or given["means"]))
    passes = (summed + (writes > 0)) * (2 + residual) + writes
    return Work(shape, (8.0 * summed + 8.0 * (writes > 0)) * elements, passes * width * elements)


def _sized(kind: str) -> Callable[[int, int, int], Sample]:
    def sample(batch: int, channels: int, side: int) -> Sample:
        return _sample(batch, channels, side, side, kind=kind, activation="relu")

    return sample


SPEC = Spec(
    operator="norm_act",
    samples=_samples(),
    benchmarks=[
        _sample(64, 512, 4, 4, activation="relu"),
        _sample(64, 128, 16, 16, activation="relu"),
        _sample(64, 64, 32, 32, activation="leaky_relu"),
        _sample(8, 128, 32, 32, activation="relu", residual="before"),
        _sample(1, 64, 128, 128, kind="instance", activation="relu"),
        _sample(1, 256, 32, 32, kind="instance", activation="relu"),
        _sample(1, 256, 32, 32, kind="instance", activation="none", residual="after"),
        _sample(1, 256, 32, 32, kind="instance", activation="relu", layout="contiguous"),
        _sample(16, 128, 32, 32, kind="group", groups=32, activation="silu"),
        _sample(16, 128, 32, 32, kind="layer", activation="leaky_relu"),
        _sample(64, 128, 16, 16, activation="relu", layout="contiguous"),
    ],
    floor={torch.float32: 1e-6, torch.bfloat16: 1e-4, torch.float16: 2e-5},
    flops=_flops,
    bytes=_bytes,
    strong=strong,
    work=_work,
    sweeps={kind: _sized(kind) for kind in ("batch", "instance", "layer")},
)
