"""Random calls of every operator against the reference in float64, by the dtype rule.

One number of Hypothesis makes a call: shapes (0, 1, odd, long and thin), options, dtypes, how each tensor lies in
memory, which of them have a gradient, how the gradient arrives, the number of threads and the instruction set.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine import ops
from engine.kernels import _native, _spec
from engine.kernels.resize_conv_act import FROM_OUTPUT
from engine.kernels.resize_conv_act.geometry import DIRECT, UNPACKED, Geometry, form, output_sides, raw_geometry
from engine.kernels.resize_conv_act.reference import ACTIVATIONS
from engine.verification.checks import limited
from tests.fuzz.budget import examples
from tests.support.instruction_sets import INSTRUCTION_SETS

DTYPES = [torch.float32, torch.float32, torch.bfloat16, torch.float16]
# their derivative jumps at zero: with whole numbers, and halves in the bias, no value lies next to it
KINKED = {"relu", "leaky_relu"}
MULTIPLICATIONS = 600_000  # most of a call
WINOGRAD = 2e-5  # what its tiles may reach in float32, as with filters that are all alike
AGAIN = (24, 240)  # draws of a call whose first one, and then whose first 24, break the rule
AVAILABLE = INSTRUCTION_SETS[: INSTRUCTION_SETS.index(_native.load().machine_isa()) + 1]
INSTRUMENTED = "libasan" in os.environ.get("LD_PRELOAD", "")


@dataclass
class Drawn:
    """A call: a sample of its own, and what a sample does not say."""

    operator: str
    sample: _spec.Sample
    dtypes: dict[str, torch.dtype]
    layouts: dict[str, str]
    seed: int
    threads: int
    instruction_set: str
    exact: bool | None = None
    arrives: str = "dense"

    def tensors(self, seed: int) -> dict[str, Tensor]:
        """Rounded to their dtypes and laid out in memory."""
        draw = random.Random(seed)
        made = _spec.tensors(self.sample, torch.float32, seed=seed)
        if "landmarks" in made and draw.random() < 0.1:  # far away, or nowhere
            made["landmarks"][:, 0] = draw.choice([torch.nan, torch.inf, -torch.inf, 1e30, -3e9, 2.0**31])
        for name in made.keys() - self.sample.drawn.keys():
            made[name] = made[name].to(self.dtypes[name])
        return {name: LAYOUTS[self.layouts[name]](tensor, draw) for name, tensor in made.items()}


# sizes


def size(draw: random.Random, most: int) -> int:
    """Often very small, from 1 on."""
    return draw.choice([1, 2, 3, draw.randint(1, most), draw.randint(1, most)])


def channels(draw: random.Random) -> int:
    """Around whole vectors of 4, 8 and 16 as well."""
    near = draw.choice([4, 8, 16, 32, 48, 64]) + draw.choice([-1, 0, 0, 1])
    return draw.choice([size(draw, 20), near, near, draw.randint(90, 130)])


def batch(draw: random.Random) -> int:
    return draw.choice([0, 1, 1, 2, 3, 4, draw.randint(1, 12)])


def sides(draw: random.Random) -> tuple[int, int]:
    """Sometimes long and thin."""
    shape = draw.choice([(size(draw, 20), size(draw, 20))] * 5 + [(size(draw, 3), draw.randint(50, 700))])
    return shape if draw.random() < 0.7 else shape[::-1]


def bounded(sizes: list[int], cost: Callable[[list[int]], int]) -> list[int]:
    """The sizes, the largest halved until the call costs no more than it may."""
    while cost(sizes) > MULTIPLICATIONS:
        largest = sizes.index(max(sizes))
        sizes[largest] = (sizes[largest] + 1) // 2
    return sizes


# one function for each operator: shapes, options and how the values are drawn


def convolution(draw: random.Random) -> tuple[int, dict[str, Any]]:
    """The kernel of a convolution and the options of its kind."""
    kind = draw.choice(["same", "up", "down", "any", "any", "transposed"])
    kernel, stride = (3, 1) if kind in ("same", "up", "down") else (draw.randint(1, 7), draw.choice([1, 2]))
    where: dict[str, Any] = {"resize": kind if kind in ("up", "down") else "none", "stride": stride, "padding": 1}
    if kernel != 3 or kind in ("any", "transposed"):
        where["padding"] = draw.choice([0, (kernel - 1) // 2, draw.randint(0, kernel - 1)])
    border = kind == "any" and draw.random() < 0.5
    where["padding_mode"] = draw.choice(["reflect", "replicate", "circular"]) if border else "zeros"
    transposed = kind == "transposed"
    where |= {"transposed": transposed, "output_padding": draw.choice([0, stride - 1]) if transposed else 0}
    return kernel, where


def resize_conv_act(draw: random.Random) -> dict[str, Any]:
    activation, further = draw.choice(list(ACTIVATIONS)), draw.choice([0, 0, 0, size(draw, 12)])
    kernel, where = convolution(draw)
    times, side = (4, 2) if where["resize"] == "up" else (1, 1)
    b, c, h, w, cout = bounded(
        [batch(draw), channels(draw), *sides(draw), channels(draw)],
        lambda s: s[0] * (s[1] + further) * s[2] * s[3] * times * s[4] * kernel**2,
    )
    # large enough for the kernel and the border; the result of a transposed convolution has a pixel
    border = {"reflect": where["padding"] + 1, "circular": where["padding"]}.get(where["padding_mode"], 1)
    least = 1 + where["padding"] if where["transposed"] else max(kernel - 2 * where["padding"], border)
    h, w = max(h, least), max(w, least)
    channels_of = (c + further, cout) if where["transposed"] else (cout, c + further)
    shapes: dict[str, tuple[int, ...]] = {"x": (b, c, h, w), "weight": (*channels_of, kernel, kernel)}
    shapes |= {"bias": (cout,)} if activation in KINKED or draw.random() < 0.6 else {}
    shapes |= {"scale": (cout,)} if draw.random() < 0.3 else {}
    shapes |= {"second": (b, further, side * h, side * w)} if further else {}
    if draw.random() < 0.25:
        shapes["residual"] = (b, cout, *output_sides((b, c, h, w), kernel, raw_geometry(kernel, **where)))
    options = {**where, "activation": activation, "input_grad_from": draw.choice([0, 0, draw.randint(0, b)])}
    options["negative_slope"] = draw.choice([0.2, 0.0, 1.0, 0.01])
    return {"shapes": shapes, "options": options, "integers": activation in KINKED}


def landmark_conv(draw: random.Random) -> dict[str, Any]:
    kernel, stride, padding = (draw.randint(1, 7), draw.randint(1, 7)), draw.choice([1, 2]), draw.choice([0, 1, 3, 6])
    c, n = draw.choice([0, 1, 3, size(draw, 26)]), draw.choice([1, 3, size(draw, 12), 68])
    b, h, w, cout = bounded(
        [batch(draw), *sides(draw), channels(draw)],
        lambda s: s[0] * (c + n) * s[1] * s[2] * s[3] * kernel[0] * kernel[1],
    )
    h, w = (max(s, k - 2 * padding) for s, k in zip((h, w), kernel, strict=True))
    shapes: dict[str, tuple[int, ...]] = {"landmarks": (b, n, 2), "weight": (cout, c + n, *kernel)}
    shapes |= {"bias": (cout,)} if draw.random() < 0.7 else {}
    shapes |= {"image": (b, c, h, w)} if c else {}
    options = {"height": h, "width": w, "stride": stride, "padding": padding, **stamp(draw)}
    options |= {"activation": draw.choice(list(FROM_OUTPUT)), "negative_slope": draw.choice([0.2, 0.0, 1.0])}
    return {"shapes": shapes, "options": options} | placed(options)


def landmark_heatmap(draw: random.Random) -> dict[str, Any]:
    h, w = sides(draw)
    order = draw.choice([torch.channels_last, torch.contiguous_format])
    options = {"height": h, "width": w, "memory_format": order, **stamp(draw)}
    return {"shapes": {"landmarks": (batch(draw), size(draw, 70), 2)}, "options": options} | placed(options)


def stamp(draw: random.Random) -> dict[str, Any]:
    radius = draw.choice([1, 2, 3, draw.randint(1, 16)])
    return {"radius": radius, "sigma": radius * draw.uniform(0.25, 1.5), "subpixel": draw.random() < 0.5}


def placed(options: dict[str, Any]) -> dict[str, Any]:
    """Landmarks around the image as well; without subpixel they have no gradient."""
    reach = options["radius"] + 2.0
    fixed = () if options["subpixel"] else ("landmarks",)
    return {"uniform": {"landmarks": (-reach, max(options["height"], options["width"]) + reach)}, "fixed": fixed}


def gram(draw: random.Random) -> dict[str, Any]:
    b, c, h, w = bounded([batch(draw), channels(draw), *sides(draw)], lambda s: s[0] * s[1] ** 2 * s[2] * s[3])
    return {"shapes": {"features": (b, c, h, w)}, "integers": draw.random() < 0.3}


def style_loss(draw: random.Random) -> dict[str, Any]:
    shape = gram(draw)["shapes"]["features"]
    return {"shapes": {"a": shape, "b": shape}, "options": {"squared": draw.random() < 0.5}}


def l1_autoencoder_loss(draw: random.Random) -> dict[str, Any]:
    rest = [size(draw, 40) for _ in range(draw.randint(0, 4))]
    while len(rest) > 1 and rest[0] * rest[-1] * len(rest) > 9000:
        rest.pop()
    shape = (batch(draw), *rest)
    return {"shapes": {"target": shape, "reconstruction": shape}, "integers": draw.random() < 0.5}


def norm_act(draw: random.Random) -> dict[str, Any]:
    b, c, h, w = bounded([batch(draw), channels(draw), *sides(draw)], lambda s: 20 * s[0] * s[1] * s[2] * s[3])
    kind, activation = (
        draw.choice(["batch", "instance", "group", "layer"]),
        draw.choice(sorted(ACTIVATIONS.keys() - KINKED)),
    )
    shapes: dict[str, tuple[int, ...]] = {"x": (b, c, h, w)}
    shapes |= {name: (c,) for name in ("weight", "bias") if draw.random() < 0.6}
    options = {"kind": kind, "activation": activation, "eps": draw.choice([1e-5, 1e-3, 0.5])}
    if activation == "none" and h == 1:  # a row's sum, as gradients may arrive by, is 0 then
        options["activation"] = "elu"
    if kind == "group":
        options["groups"] = draw.choice([n for n in range(1, c + 1) if c % n == 0])
    if kind in ("batch", "instance") and draw.random() < 0.2:
        shapes |= {"running_mean": (c,), "running_var": (c,)}
        options["training"] = False
    elif h * w * (b if kind == "batch" else 1) < 3:  # two values are normalised to 1 and -1, and have no gradient
        shapes["x"] = (b, c, h + 2, w)
    if draw.random() < 0.4:
        shapes["residual"] = shapes["x"]
        options["residual_place"] = draw.choice(["before", "after"])
    drawn = {"weight": (0.5, 1.5), "running_var": (0.5, 2.0)}
    return {"shapes": shapes, "options": options, "uniform": drawn, "fixed": ("running_mean", "running_var")}


def linear(draw: random.Random) -> dict[str, Any]:
    b, inputs, outputs = batch(draw), channels(draw), channels(draw)
    bias = {"bias": (outputs,)} if draw.random() < 0.7 else {}
    return {"shapes": {"x": (b, inputs), "weight": (outputs, inputs), **bias}, "integers": draw.random() < 0.3}


def began_balance(draw: random.Random) -> dict[str, Any]:
    options = {"gamma": draw.uniform(0, 2), "lambda_k": draw.choice([0.001, 0.0, 100.0]), "lambda_r": draw.random()}
    drawn = {"per_sample": (0.05, 0.8), "content": (0.05, 0.8), "k": (0.0, 1.0)}
    return {"shapes": {"per_sample": (2 * size(draw, 200),), "content": (), "k": ()}, "options": options,
            "uniform": drawn, "fixed": tuple(drawn)}  # fmt: skip


def image_batch(draw: random.Random) -> dict[str, Any]:
    b, count, side, depth = batch(draw), size(draw, 6), size(draw, 40), size(draw, 5)
    resolution = draw.randint(1, side)

    def below(end: int, dtype: torch.dtype) -> Callable[[torch.Generator, tuple[int, ...]], Tensor]:
        return lambda generator, shape: torch.randint(0, end, shape, generator=generator).to(dtype)

    drawn = {"store": below(256, torch.uint8), "rows": below(count, torch.int64), "mirror": below(2, torch.bool)}
    drawn["offsets"] = below(side - resolution + 1, torch.int64)
    shapes = {"store": (count, side, side, depth), "rows": (b,), "offsets": (b, 2), "mirror": (b,)}
    return {"shapes": shapes, "options": {"resolution": resolution}, "drawn": drawn}


MAKERS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "resize_conv_act": resize_conv_act, "landmark_conv": landmark_conv, "landmark_heatmap": landmark_heatmap,
    "gram": gram, "style_loss": style_loss, "l1_autoencoder_loss": l1_autoencoder_loss, "linear": linear,
    "began_balance": began_balance, "image_batch": image_batch, "norm_act": norm_act,
}  # fmt: skip
WEIGHED = {"resize_conv_act", "landmark_conv", "linear"}  # those with grad_scale


# what every operator has


def draw_call(operator: str, seed: int) -> Drawn:
    draw = random.Random(f"{operator} {seed}")
    made = MAKERS[operator](draw)
    shapes: dict[str, tuple[int, ...]] = made.pop("shapes")
    first = next(iter(shapes.values()))
    if operator in WEIGHED and draw.random() < 0.4:
        shapes["grad_scale"] = first[:1]
    fixed = made.pop("fixed", ())
    fixed += tuple(name for name in shapes if draw.random() < 0.2)
    if draw.random() < 0.1:
        fixed = tuple(shapes)
    options = made.pop("options", {})
    dtype = draw.choice(DTYPES)
    dtypes = {name: torch.float32 if name == "grad_scale" else dtype for name in shapes}
    if operator == "resize_conv_act" and draw.random() < 0.3:  # parameters of an autocast layer
        dtypes["weight"] = torch.float32
    if operator == "landmark_conv" and draw.random() < 0.3:
        dtypes["landmarks"] = torch.float32
    if operator == "norm_act" and draw.random() < 0.3:  # parameters and statistics of an autocast layer
        dtypes |= {name: torch.float32 for name in shapes.keys() - {"x", "residual"}}
    if operator == "image_batch":
        options["dtype"] = dtype
    sample = _spec.Sample(operator, shapes, options, "contiguous", fixed=fixed, **made)
    layouts = {name: "offset" if name == "store" else draw.choice(list(LAYOUTS)) for name in shapes}
    return Drawn(
        operator, sample, dtypes, layouts, seed, draw.randint(1, 3), draw.choice(AVAILABLE),
        draw.choice([None, True]) if operator == "resize_conv_act" else None, draw.choice(list(ARRIVALS)),
    )  # fmt: skip


def _offset(value: Tensor, draw: random.Random) -> Tensor:
    """At an address that is a multiple of nothing but its elements' size."""
    first = draw.choice([1, 3, 7])
    flat = value.new_zeros(value.numel() + first)
    return flat[first:].view(value.shape).copy_(value)


def _sliced(value: Tensor, draw: random.Random) -> Tensor:
    """A view into a larger tensor, every second element along some axes."""
    steps = [draw.choice([1, 1, 2]) for _ in value.shape]
    before = [draw.randint(0, 2) for _ in value.shape]
    larger = value.new_zeros([a + n * s + 1 for a, n, s in zip(before, value.shape, steps, strict=True)])
    if value.is_floating_point():
        larger.fill_(torch.nan)
    view = larger[tuple(slice(a, a + n * s, s) for a, n, s in zip(before, value.shape, steps, strict=True))]
    return view.copy_(value)


def _transposed(value: Tensor, draw: random.Random) -> Tensor:
    """Its axes in another order in memory."""
    order = draw.sample(range(value.dim()), value.dim())
    return value.permute(order).contiguous().permute([order.index(axis) for axis in range(value.dim())])


def _expanded(value: Tensor, draw: random.Random) -> Tensor:
    """One sample, or one filter, repeated."""
    return value[:1].expand(value.shape) if value.dim() else value


def _channels_last(value: Tensor, draw: random.Random) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


LAYOUTS: dict[str, Callable[[Tensor, random.Random], Tensor]] = {
    "dense": lambda value, draw: value, "channels_last": _channels_last, "offset": _offset, "sliced": _sliced,
    "transposed": _transposed, "expanded": _expanded,
}  # fmt: skip
# what is done with a result, by which its gradient arrives dense, transposed, repeated or as every second element
ARRIVALS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda y: y, "transposed": lambda y: y.mT if y.dim() > 1 else y,
    "expanded": lambda y: y.sum(-1, keepdim=True) if y.dim() > 1 else y,
    "sliced": lambda y: y[..., ::2] if y.dim() else y,
}  # fmt: skip


def outcome(function: Callable, call: Drawn, made: dict[str, Tensor], double: bool) -> dict[str, Tensor]:
    """Outputs and gradients. double: the tensors and the results are float64."""
    inputs, sample = {}, call.sample
    for name, tensor in made.items():
        leaf = tensor.double().detach() if double and tensor.is_floating_point() else tensor.detach()
        inputs[name] = leaf.requires_grad_(sample.differentiable(name))
    options = sample.options | ({"dtype": torch.float64} if double and "dtype" in sample.options else {})
    outputs = function(**inputs, **options)
    outputs = [ARRIVALS[call.arrives](y) for y in (outputs if isinstance(outputs, tuple) else (outputs,))]
    leaves = {name: leaf for name, leaf in inputs.items() if leaf.requires_grad}
    generator = torch.Generator().manual_seed(1)
    upstream = [(torch.randint(-2, 3, y.shape, generator=generator) + 0.5).to(y.dtype) for y in outputs]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), upstream) if leaves else ()
    results = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    return results | {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}


def fused(call: Drawn, made: dict[str, Tensor]) -> dict[str, Tensor]:
    options = {} if call.exact is None else {"exact": call.exact}
    torch.set_num_threads(call.threads)
    try:
        with limited(call.instruction_set):
            return outcome(lambda **a: getattr(ops, call.operator)(**a, **options), call, made, double=False)
    finally:
        torch.set_num_threads(1)


def compared(call: Drawn, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Results in float64, of eager PyTorch and of the operator."""
    made = call.tensors(seed)
    reference = ops.OPERATORS[call.operator].reference
    dense = {name: tensor.contiguous() for name, tensor in made.items()}  # eager PyTorch does not take every layout
    exact, eager = (outcome(reference, call, dense, double) for double in (True, False))
    ours = fused(call, made)
    if seed % 8 == 0:
        repeated, untouched = fused(call, made), call.tensors(seed)
        assert all(torch.equal(ours[name].nan_to_num(), repeated[name].nan_to_num()) for name in ours), "other bits"
        assert all(torch.equal(made[name].nan_to_num(), untouched[name].nan_to_num()) for name in made), (
            "inputs written"
        )
    return exact, eager, ours


def broken(call: Drawn, results: tuple[dict[str, Tensor], ...]) -> list[_spec.Error]:
    """The results that break the dtype rule, or are nan elsewhere than in float64."""
    exact, eager, ours = results
    for name, truth in exact.items():
        assert ours[name].shape == truth.shape and ours[name].dtype == eager[name].dtype, name
        assert torch.equal(ours[name].isnan(), truth.isnan()), f"{name} is nan elsewhere"
    exact, eager, ours = ({n: t.double().nan_to_num() for n, t in each.items()} for each in results)
    floor = _spec.specs()[call.operator].floor[min(call.dtypes.values(), key=lambda d: d.itemsize)]
    if in_tiles(call):
        floor = WINOGRAD
    return [error for error in _spec.judge(exact, eager, ours, floor) if not error.passed]


def in_tiles(call: Drawn) -> bool:
    """Whether it computes in Winograd tiles of float32."""
    if call.operator != "resize_conv_act" or set(call.dtypes.values()) != {torch.float32}:
        return False
    shapes, options = call.sample.shapes, call.sample.options
    where = raw_geometry(shapes["weight"][-1], *(options[name] for name in Geometry._fields))
    # the other algorithms' coefficients are 0 and +-1
    winograd = where.resize == "none" and where.stride == 1
    return winograd and form(shapes["x"], shapes["weight"], where, bool(call.exact)) not in (DIRECT, UNPACKED)


def check(call: Drawn) -> None:
    results = compared(call, call.seed)
    errors = broken(call, results)
    assert all(error.fused < max(0.1, 100 * error.allowed) for error in errors), errors
    each = [results]
    for draws in AGAIN if errors else ():
        # where few elements are not 0, eager PyTorch is exact by chance: the rule judges many draws of the call as one
        each += [compared(call, call.seed + draw) for draw in range(len(each), draws)]
        together = tuple({name: torch.cat([r[way][name].flatten() for r in each]) for name in results[0]}
                         for way in range(3))  # fmt: skip
        errors = broken(call, together)
        if not errors:
            break
    assert not errors, errors


# tests of an operator: processes divide them among themselves, and `make fuzz` makes 1,000 calls in each
SHARES = {"resize_conv_act": 40, "landmark_conv": 20, "landmark_heatmap": 8, "linear": 2, "began_balance": 2}


def test_every_operator_has_calls():
    assert MAKERS.keys() == ops.OPERATORS.keys()


@pytest.mark.parametrize("operator, share", [(name, share) for name in MAKERS for share in range(SHARES.get(name, 7))])
@examples(short=3, full=200 if INSTRUMENTED else 1000)
@given(seed=st.integers(0, 2**40))
def test_random_calls(operator: str, share: int, seed: int):
    call = draw_call(operator, seed * 64 + share)
    try:
        check(call)
    except Exception as error:
        raise AssertionError(f"{call}") from error
