"""Samples, tolerances and costs of resize_conv_act."""

from collections.abc import Callable

import torch

from .._observers import NativeCall
from .._spec import Sample, Spec, Work
from .reference import ACTIVATIONS
from .strong import resize_conv_act as strong

KINKED = ("relu", "leaky_relu")  # their derivative jumps at zero


def _sample(
    b: int, c: int, h: int, w: int, cout: int, resize: str, activation: str, *,
    second: int = 0, bias: bool = True, grad_scale: bool = False, input_grad_from: int = 0,
    layout: str = "channels_last", inference: bool = False,
) -> Sample:  # fmt: skip
    scale = 2 if resize == "up" else 1
    shapes = {"x": (b, c, h, w), "weight": (cout, c + second, 3, 3)}
    if bias:
        shapes["bias"] = (cout,)
    if second:
        shapes["second"] = (b, second, scale * h, scale * w)
    if grad_scale:
        shapes["grad_scale"] = (b,)
    extras = [f"second {second}" * bool(second), "no bias" * (not bias), "grad_scale" * grad_scale]
    extras.append("inference" * inference)
    options = {"resize": resize, "activation": activation}
    if input_grad_from:
        options["input_grad_from"] = input_grad_from
        extras.append(f"input gradient from {input_grad_from}")
    name = " ".join([f"{b}x{c}x{h}x{w}->{cout}", resize, activation, *filter(None, extras), layout])
    fixed = tuple(shapes) if inference else ()
    return Sample(name, shapes, options, layout, activation in KINKED, fixed=fixed)


def _samples() -> list[Sample]:
    samples = []
    for resize in ("none", "up", "down"):
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
            _sample(9, 32, 8, 8, 48, resize, "elu", grad_scale=True),  # several images to a work item
            _sample(3, 96, 11, 6, 112, resize, "elu", grad_scale=True),  # "down" as a gathered product
            _sample(2, 4, 12, 10, 3, resize, "elu", grad_scale=True),
            _sample(2, 16, 70, 30, 2, resize, "none", grad_scale=True),
        ]
    return samples


def _sizes(s: Sample) -> tuple[int, int, int, int]:
    """Products of the convolution as written, and elements of x with second, of the output, of the weight."""
    b, c, h, w = s.shapes["x"]
    cout, cin = s.shapes["weight"][:2]
    up, down = s.options["resize"] == "up", s.options["resize"] == "down"
    pixels = b * h * w * (4 if up else 1)
    out = b * -(-h // 2) * -(-w // 2) * cout if down else pixels * cout
    return pixels * cout * cin * 9, b * c * h * w + pixels * (cin - c), out, cout * cin * 9


def _flops(s: Sample) -> float:
    return 3 * 2.0 * _sizes(s)[0]


def _bytes(s: Sample, dtype: torch.dtype) -> float:
    _, x, out, weight = _sizes(s)
    # forward reads x and the weight and writes y; backward reads x, y, dy and the weight and writes dx and dw
    return float(dtype.itemsize) * (3 * x + 3 * out + 3 * weight)


# form -> (name, products for each output of the convolution), by resize: both as native calls number them
_FORMS = {
    0: {0: ("direct", 9), 1: ("2x2 tiles", 16 / 4), 2: ("4x4 tiles", 36 / 16)},
    1: {0: ("4 phases", 16 / 4), 1: ("9 products", 9 / 4)},
    2: {0: ("stride 2", 9), 1: ("stride 2, gathered", 9)},
}


def _work(call: NativeCall) -> Work:
    names = ("dtype", "resize", "form", "batch", "channels", "further", "height", "width", "cout")
    dtype, resize, form, b, c, c2, h, w, cout = (call.integers[name] for name in names)
    scale = 2 if resize == 1 else 1
    out = b * -(-h // 2) * -(-w // 2) if resize == 2 else b * h * w * scale**2
    name, each = _FORMS[resize][form]
    # beside nearest x2 the second input is convolved apart, by the direct sum
    first, apart = (each * c, 9 * c2) if resize == 1 else (each * (c + c2), 0)
    x, second, y = b * h * w * c, b * h * w * scale**2 * c2, out * cout
    weight = cout * (c + c2) * 9
    if not call.function.endswith(("_forward", "_backward")):
        return Work("weights kept by inference", 0.0, 8.0 * weight)
    if call.function.endswith("_forward"):
        products, moved = first + apart, x + second + weight + y
    else:
        dx, dsecond, dw = (call.pointers[name] != 0 for name in ("dx", "dsecond", "dweight"))
        products = first * ((dx or (dsecond and not apart)) + dw) + apart * (dsecond + dw)
        # y and its gradient are read once for all of them
        moved = 2 * y + weight * (1 + dw) + x * (dx + dw) + second * (dsecond + dw)
    shape = f"{b}x{c}{f'+{c2}' if c2 else ''}x{h}x{w}->{cout} {('none', 'up', 'down')[resize]}, {name}"
    return Work(shape, 2.0 * products * out * cout, moved * (2.0 if dtype else 4.0))


# batch, channels, side of the convolution: as large a batch as keeps a case near 20 GFLOP as written
_CROSSING = (
    *((25, 16, 32), (1, 16, 128), (25, 24, 64), (25, 32, 32), (16, 71, 32)),
    *((25, 64, 16), (25, 64, 32), (25, 64, 64), (1, 64, 128)),
    *((25, 128, 16), (25, 128, 32), (1, 128, 64), (25, 256, 16), (1, 256, 32)),
)


def _benchmarks() -> list[Sample]:
    samples = []
    for resize in ("none", "up", "down"):
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
    # float32: the Winograd tiles' allowance is 2e-5 (the docstring names it); what they reach is nearer 1e-6
    floor={torch.float32: 1e-6, torch.bfloat16: 1e-4, torch.float16: 2e-5},
    flops=_flops,
    bytes=_bytes,
    strong=strong,
    work=_work,
    sweeps={f"{resize} elu": _sized(resize) for resize in ("up", "none", "down")},
)
