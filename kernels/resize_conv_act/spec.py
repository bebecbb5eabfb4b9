"""Samples, tolerances and costs of resize_conv_act."""

from collections.abc import Callable
from typing import Any

import torch

from .._observers import NativeCall
from .._spec import Sample, Spec, Work
from .geometry import ALGORITHMS, DIRECT, UNPACKED, Geometry, output_sides, raw_geometry
from .reference import ACTIVATIONS
from .strong import resize_conv_act as strong

KINKED = ("relu", "leaky_relu")  # their derivative jumps at zero
KINDS = ("none", "up", "down")  # the 3x3 convolutions with padding 1, by their resize
WHERE = ("resize", "stride", "padding", "padding_mode", "transposed", "output_padding")
DEFAULTS = ("none", 1, None, "zeros", False, 0)
_SPREAD = {"stride": 2, "transposed": True}


def _sample(
    b: int, c: int, h: int, w: int, cout: int, resize: str, activation: str, *,
    kernel: int = 3, second: int = 0, bias: bool = True, scale: bool = False, residual: bool = False,
    grad_scale: bool = False, input_grad_from: int = 0, layout: str = "channels_last", inference: bool = False,
    **where: Any,
) -> Sample:  # fmt: skip
    """where: further options of WHERE."""
    times = 2 if resize == "up" else 1
    channels = (c + second, cout) if where.get("transposed") else (cout, c + second)
    shapes = {"x": (b, c, h, w), "weight": (*channels, kernel, kernel)}
    if bias:
        shapes["bias"] = (cout,)
    if scale:
        shapes["scale"] = (cout,)
    if second:
        shapes["second"] = (b, second, times * h, times * w)
    if residual:
        shapes["residual"] = (b, cout, *output_sides((b, c, h, w), kernel, _geometry(kernel, resize, where)))
    if grad_scale:
        shapes["grad_scale"] = (b,)
    extras = [f"second {second}" * bool(second), "no bias" * (not bias), "scale" * scale, "residual" * residual]
    extras += ["grad_scale" * grad_scale, "inference" * inference]
    options = {"resize": resize, "activation": activation, **where}
    if input_grad_from:
        options["input_grad_from"] = input_grad_from
        extras.append(f"input gradient from {input_grad_from}")
    kind = resize if not where and kernel == 3 else _kind(kernel, where)
    name = " ".join([f"{b}x{c}x{h}x{w}->{cout}", kind, activation, *filter(None, extras), layout])
    fixed = tuple(shapes) if inference else ()
    return Sample(name, shapes, options, layout, activation in KINKED, fixed=fixed)


def _kind(kernel: int, where: dict[str, Any]) -> str:
    """The convolution in words: "4x4/2", "transposed 3x3/2 padding 1+1", "7x7 padding 3 reflect"."""
    words = ["transposed"] if where.get("transposed") else []
    words.append(f"{kernel}x{kernel}" + (f"/{where['stride']}" if "stride" in where else ""))
    more = f"+{where['output_padding']}" if where.get("output_padding") else ""
    words += [f"padding {where['padding']}{more}"] if "padding" in where else []
    return " ".join([*words, *([where["padding_mode"]] if "padding_mode" in where else [])])


def _samples() -> list[Sample]:
    samples = []
    for resize in KINDS:
        for activation in ACTIVATIONS:
            samples.append(_sample(2, 16, 6, 8, 24, resize, activation, grad_scale=True))
        samples += [
            _sample(1, 3, 9, 7, 24, resize, "elu", bias=False),
            _sample(3, 71, 5, 6, 3, resize, "elu", second=3),
            _sample(2, 24, 16, 12, 64, resize, "elu", second=3, grad_scale=True),
            _sample(1, 8, 1, 1, 8, resize, "tanh"),
            _sample(2, 16, 9, 7, 24, resize, "silu", inference=True),  # in the epilogue only where nothing is recorded
            _sample(0, 16, 4, 4, 8, resize, "elu"),
            _sample(2, 33, 17, 19, 40, resize, "sigmoid", layout="contiguous"),
            _sample(2, 12, 10, 11, 17, resize, "elu", layout="sliced"),
            _sample(3, 16, 8, 8, 16, resize, "elu", layout="expanded"),
            _sample(1, 1, 40, 70, 1, resize, "relu", second=1),
            _sample(2, 20, 22, 37, 36, resize, "elu", second=5, grad_scale=True),  # F(4x4), tiles over both edges
            _sample(6, 3, 8, 8, 16, resize, "elu", input_grad_from=3),
            _sample(9, 32, 8, 8, 48, resize, "elu", second=3, input_grad_from=4),
            _sample(2, 16, 3, 3, 20, resize, "elu", second=3, grad_scale=True, input_grad_from=1),  # few pixels
            _sample(9, 32, 8, 8, 48, resize, "elu", grad_scale=True),  # several images to a work item
            _sample(3, 96, 11, 6, 112, resize, "elu", grad_scale=True),
            _sample(2, 4, 12, 10, 3, resize, "elu", grad_scale=True),
            _sample(2, 16, 70, 30, 2, resize, "none", grad_scale=True),
            _sample(2, 16, 10, 13, 32, resize, "relu", residual=True, grad_scale=True),
            _sample(1, 24, 6, 9, 17, resize, "tanh", residual=True, second=3, bias=False, layout="sliced"),
            _sample(2, 9, 7, 8, 3, resize, "none", residual=True, layout="contiguous"),
            _sample(2, 16, 8, 8, 16, resize, "silu", residual=True, inference=True),
            _sample(2, 16, 10, 9, 32, resize, "relu", scale=True, grad_scale=True),
            _sample(2, 16, 9, 12, 32, resize, "relu", scale=True, inference=True),
            _sample(2, 18, 7, 6, 19, resize, "elu", scale=True, second=5),
            _sample(2, 18, 7, 6, 19, resize, "silu", scale=True, second=5, residual=True, inference=True),
            _sample(2, 9, 7, 8, 3, resize, "tanh", scale=True, bias=False, layout="contiguous"),
            _sample(1, 24, 12, 17, 3, resize, "none", scale=True, residual=True, inference=True, layout="sliced"),
            _sample(1, 16, 12, 17, 16, resize, "none", scale=True, residual=True, inference=True),
            _sample(2, 16, 8, 9, 16, resize, "leaky_relu", scale=True, residual=True),
        ]
    others = [sample for kernel, where in OTHERS for sample in _of_kind(kernel, where)]
    return [*samples, *others, *_further(), *_scaled()]


def _further() -> list[Sample]:
    """Samples of other kinds: of channels that take the kernels' larger tiles, of few and of more pixels."""
    few = {"second": 3, "grad_scale": True, "input_grad_from": 1}
    return [
        *(_sample(2, 9, 23, 22, 24, "none", "leaky_relu", kernel=k, stride=2) for k in (1, 2, 3, 4, 5, 7)),
        *(_sample(2, 16, 3, 3, 20, "none", "elu", kernel=k, **few) for k in (1, 4, 5, 7)),
        *(_sample(2, 16, 3, 3, 20, "none", "elu", kernel=k, **few, **_SPREAD) for k in (2, 3, 4, 5)),
        _sample(2, 16, 4, 4, 20, "none", "tanh", kernel=3, transposed=True, residual=True, layout="sliced"),
        _sample(1, 40, 6, 6, 24, "none", "elu", kernel=3, padding=0),
        _sample(2, 64, 5, 6, 20, "none", "relu", kernel=1),
        _sample(2, 72, 6, 6, 24, "none", "leaky_relu", kernel=4, stride=2, second=3),
        _sample(1, 64, 6, 5, 20, "none", "elu", kernel=5, grad_scale=True),
        _sample(2, 64, 6, 5, 24, "none", "elu", padding_mode="reflect", grad_scale=True),
        _sample(2, 16, 4, 3, 64, "none", "relu", kernel=4, **_SPREAD),
        _sample(2, 16, 4, 3, 64, "none", "elu", kernel=4, residual=True, **_SPREAD),
        _sample(2, 16, 11, 9, 16, "none", "leaky_relu", residual=True, input_grad_from=1, padding_mode="reflect"),
        _sample(3, 40, 7, 6, 32, "none", "sigmoid", kernel=1, residual=True, stride=2),
        _sample(5, 24, 1, 1, 17, "none", "relu", kernel=4, padding=0, transposed=True, grad_scale=True),
    ]


def _scaled() -> list[Sample]:
    """Samples of other kinds with a scale: with gradients, and as inference runs them."""
    samples = [_sample(3, 24, 1, 1, 17, "none", "relu", kernel=4, padding=0, transposed=True, scale=True)]
    for kernel, where in ((1, {}), (4, {"stride": 2}), (7, {"padding_mode": "reflect"}), (4, _SPREAD), (3, _SPREAD)):
        samples += [
            _sample(2, 24, 9, 7, 17, "none", "elu", kernel=kernel, scale=True, **where),
            _sample(2, 16, 9, 8, 32, "none", "leaky_relu", kernel=kernel, scale=True, inference=True, **where),
        ]
    return samples


# the convolutions that are not 3x3 with padding 1: (kernel, further options)
OTHERS: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {}),
    (1, {"stride": 2}),
    (2, {"stride": 2}),
    (3, {"padding_mode": "reflect"}),
    (3, {"padding": 0}),
    (3, {"padding": 2, "padding_mode": "circular"}),
    (3, {"stride": 2, "padding_mode": "reflect"}),
    (4, {}),
    (4, {"stride": 2}),
    (4, {"stride": 2, "padding_mode": "replicate"}),
    (4, {"padding": 0}),
    (5, {}),
    (5, {"stride": 2}),
    (7, {"padding_mode": "reflect"}),
    (7, {"stride": 2}),
    (2, {"stride": 2, "padding": 0, "transposed": True}),
    (3, {"stride": 2, "transposed": True, "output_padding": 1}),
    (3, {"transposed": True}),
    (4, {"stride": 2, "transposed": True}),
    (4, {"stride": 2, "padding": 0, "transposed": True, "output_padding": 1}),
    (4, {"padding": 0, "transposed": True}),
    (5, {"stride": 2, "padding": 2, "transposed": True, "output_padding": 1}),
)


def _of_kind(kernel: int, where: dict[str, Any]) -> list[Sample]:
    """Samples of one kind: few channels on either side, odd sizes, a second input, all that a call can have."""
    return [
        _sample(1, 3, 11, 8, 17, "none", "elu", kernel=kernel, bias=False, layout="contiguous", **where),
        _sample(2, 18, 8, 7, 3, "none", "tanh", kernel=kernel, bias=False, grad_scale=True, **where),
        _sample(4, 9, 7, 7, 12, "none", "elu", kernel=kernel, second=3, grad_scale=True, input_grad_from=1, **where),
        _sample(1, 24, 13, 18, 17, "none", "relu", kernel=kernel, layout="sliced", **where),
    ]


def _geometry(kernel: int, resize: str, options: dict[str, Any]) -> Geometry:
    chosen = [{**options, "resize": resize}.get(name, value) for name, value in zip(WHERE, DEFAULTS, strict=True)]
    return raw_geometry(kernel, *chosen)


def _where(s: Sample) -> Geometry:
    return _geometry(s.shapes["weight"][-1], s.options["resize"], s.options)


def _sizes(s: Sample) -> tuple[int, int, int, int]:
    """Products of the convolution as written, and elements of x with second, of the output, of the weight."""
    where, kernel = _where(s), s.shapes["weight"][-1]
    b, c, h, w = s.shapes["x"]
    outputs, inputs = s.shapes["weight"][:2][:: -1 if where.transposed else 1]
    out_h, out_w = output_sides(s.shapes["x"], kernel, where)
    # each product belongs to one pixel of the smaller side; as people write nearest /2, it drops three of four results
    pixels = b * h * w if where.transposed else b * out_h * out_w
    pixels = b * h * w if s.options["resize"] == "down" else pixels
    scale = 4 if where.resize == "up" else 1
    x = b * h * w * (c + scale * (inputs - c))
    return pixels * outputs * inputs * kernel**2, x, b * out_h * out_w * outputs, outputs * inputs * kernel**2


def _flops(s: Sample) -> float:
    return 3 * 2.0 * _sizes(s)[0]


def _bytes(s: Sample, dtype: torch.dtype) -> float:
    _, x, out, weight = _sizes(s)
    # forward reads x and the weight and writes y; backward reads x, y, dy and the weight and writes dx and dw; a
    # residual is read, and its gradient written
    return float(dtype.itemsize) * (3 * x + (5 if "residual" in s.shapes else 3) * out + 3 * weight)


def _work(call: NativeCall) -> Work:
    names = ("batch", "channels", "further", "height", "width", "cout", "out_height", "out_width", "kernel", "stride")
    b, c, c2, h, w, cout, out_h, out_w, kernel, stride = (call.integers[name] for name in names)
    up, transposed, which = (call.integers[name] for name in ("up", "transposed", "form"))
    out = b * out_h * out_w
    name, each = _form(bool(up), bool(transposed), kernel, stride, which)
    # beside nearest x2 the second input is convolved apart, by the direct sum
    first, apart = (each * c, kernel**2 * c2) if up else (each * (c + c2), 0)
    x, second, y = b * h * w * c, b * h * w * (4 if up else 1) * c2, out * cout
    weight = cout * (c + c2) * kernel**2
    if not call.function.endswith(("_forward", "_backward")):
        return Work("weights kept by inference", 0.0, 8.0 * weight)
    if call.function.endswith("_forward"):
        products, moved = first + apart, x + second + weight + y * (2 if call.pointers.get("residual") else 1)
    else:
        dx, dsecond, dw = (call.pointers[name] != 0 for name in ("dx", "dsecond", "dweight"))
        products = first * ((dx or (dsecond and not apart)) + dw) + apart * (dsecond + dw)
        # y and its gradient are read once for all of them
        moved = 2 * y + weight * (1 + dw) + x * (dx + dw) + second * (dsecond + dw)
    kind = "up 3x3" if up else "transposed " * transposed + f"{kernel}x{kernel}" + f"/{stride}" * (stride > 1)
    shape = f"{b}x{c}{f'+{c2}' if c2 else ''}x{h}x{w}->{cout} {kind}, {name}"
    return Work(shape, 2.0 * products * out * cout, moved * (2.0 if call.integers["dtype"] else 4.0))


def _form(up: bool, transposed: bool, kernel: int, stride: int, which: int) -> tuple[str, float]:
    """What computes a call, in words, and its products of an input and an output channel for each output pixel."""
    if which in (DIRECT, UNPACKED):
        return "direct" if which == DIRECT else "unpacked", 4.0 if up else kernel**2 / (stride**2 if transposed else 1)
    outputs, products = ALGORITHMS[up, transposed and stride != 1, kernel, stride][which]
    return f"{outputs}x{outputs} tiles", products**2 / outputs**2


# batch, channels, side of the convolution: as large a batch as keeps a case near 20 GFLOP as written
_CROSSING = (
    *((25, 16, 32), (1, 16, 128), (25, 24, 64), (25, 32, 32), (16, 71, 32)),
    *((25, 64, 16), (25, 64, 32), (25, 64, 64), (1, 64, 128)),
    *((25, 128, 16), (25, 128, 32), (1, 128, 64), (25, 256, 16), (1, 256, 32)),
)
# of the systems at the papers' widths: dcgan and wgan (64 pixels), cyclegan (128), ggb (128), reenact (64)
_REFLECT = {"padding_mode": "reflect"}


def _benchmarks() -> list[Sample]:
    samples = []
    for resize in KINDS:
        crossing = _CROSSING if resize == "up" else (*_CROSSING, (25, 128, 8))
        for batch, channels, side in crossing:
            x_side = side // 2 if resize == "up" else side
            samples.append(_sample(batch, channels, x_side, x_side, channels, resize, "elu"))
    return [
        *samples,
        _sample(25, 3, 64, 64, 64, "none", "elu"),
        _sample(25, 64, 64, 64, 3, "none", "none"),
        _sample(25, 64, 8, 8, 64, "up", "elu", second=3),
        _sample(16, 3, 64, 64, 3, "down", "elu"),
        _sample(64, 3, 64, 64, 64, "none", "leaky_relu", kernel=4, stride=2),
        _sample(64, 64, 32, 32, 128, "none", "leaky_relu", kernel=4, stride=2),
        _sample(64, 128, 16, 16, 256, "none", "leaky_relu", kernel=4, stride=2),
        _sample(64, 256, 8, 8, 512, "none", "leaky_relu", kernel=4, stride=2),
        _sample(64, 512, 4, 4, 256, "none", "relu", kernel=4, **_SPREAD),
        _sample(64, 256, 8, 8, 128, "none", "relu", kernel=4, **_SPREAD),
        _sample(64, 128, 16, 16, 64, "none", "relu", kernel=4, **_SPREAD),
        _sample(64, 64, 32, 32, 3, "none", "tanh", kernel=4, **_SPREAD),
        _sample(8, 256, 8, 8, 512, "none", "leaky_relu", kernel=4),
        _sample(1, 256, 32, 32, 256, "none", "relu", **_REFLECT),
        _sample(1, 256, 64, 64, 256, "none", "relu", **_REFLECT),
        _sample(25, 64, 32, 32, 64, "none", "relu", **_REFLECT),
        _sample(16, 64, 64, 64, 64, "none", "relu", residual=True),
        _sample(1, 64, 128, 128, 128, "none", "relu", stride=2),
        _sample(1, 256, 32, 32, 128, "none", "relu", **_SPREAD, output_padding=1),
        _sample(1, 128, 64, 64, 64, "none", "relu", **_SPREAD, output_padding=1),
        _sample(1, 3, 128, 128, 64, "none", "relu", kernel=7, **_REFLECT),
        _sample(1, 64, 128, 128, 3, "none", "tanh", kernel=7, **_REFLECT),
        _sample(16, 64, 64, 64, 3, "none", "tanh", kernel=1),
        _sample(25, 128, 32, 32, 128, "none", "relu", kernel=1),
        _sample(25, 64, 32, 32, 64, "none", "relu", kernel=5),
        _sample(8, 128, 32, 32, 64, "none", "relu", kernel=2, **_SPREAD, padding=0),
    ]


def _sized(resize: str) -> Callable[[int, int, int], Sample]:
    """side: of the convolution."""

    def sample(batch: int, channels: int, side: int) -> Sample:
        x_side = side // 2 if resize == "up" else side
        return _sample(batch, channels, x_side, x_side, channels, resize, "elu")

    return sample


SPEC = Spec(
    operator="resize_conv_act",
    samples=_samples(),
    benchmarks=_benchmarks(),
    # float32: the Winograd tiles' allowance is 2e-5 (the docstring names it); they reach 2e-6 on inputs of so few bits
    # that direct sums, and so eager, have no error at all
    floor={torch.float32: 3e-6, torch.bfloat16: 1e-4, torch.float16: 2e-5},
    flops=_flops,
    bytes=_bytes,
    strong=strong,
    work=_work,
    sweeps={f"{resize} elu": _sized(resize) for resize in ("up", "none", "down")},
)
