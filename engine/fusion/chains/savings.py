"""What fusing a chain saves: time, and products of the convolution as written and as the operator computes them.

The rule, from the benchmark's results: nearest x2 before a convolution takes 9 of 36 products (16 with fewer than 8
channels), nearest /2 after it a quarter; these always pay. For all others speed.py predicts, on a CPU in float32, how
many times as fast the operator is. A chain that is slower on large maps is left, and at each call one that is slower on
maps of that size runs as written. A convolution alone needs a margin, 16 channels, and a kernel of more than one tap.
Where nothing is predicted (GPUs, half precision) an activation or a sum pays, and a convolution alone does not.
"""

from operator import attrgetter

import torch
from torch import Tensor, nn

from engine.fusion.chains.speed import speed, speed_on_large_maps
from engine.fusion.lookups import Onlooker
from engine.kernels._observers import NativeCall
from engine.kernels.resize_conv_act.geometry import (
    FEWEST_CHANNELS,
    Geometry,
    algorithms_of,
    form,
    native_sizes,
    output_sides,
)
from engine.kernels.resize_conv_act.spec import SPEC

CHANNELS_ALONE = 16  # the fewest of the input of a convolution alone
LEAST, LEAST_ALONE = 1.0, 1.1  # predicted speeds from which on a chain is replaced, and a convolution alone is


def why_no_gain(weight: Tensor, geometry: Geometry, resize: str, operations: int) -> str:
    """Why a chain does not pay whatever the size of its images; "" where it may pay.

    weight:     (Cout, C, K, K), transposed (C, Cout, K, K)
    geometry, resize: as of Chain
    operations: layers after the convolution that become part of it, each a pass over its result as written
    """
    if resize != "none":
        return ""
    predicted = is_predicted(weight)
    if not operations:
        if not predicted:
            return "nothing to gain: a convolution alone, not on a CPU in float32"
        channels = weight.shape[1 - geometry.transposed]
        if channels < CHANNELS_ALONE:
            return f"nothing to gain: a convolution alone, of {channels} channels"
        if weight.shape[-1] == 1:
            return "nothing to gain: a 1x1 convolution alone is one matrix product either way"
    if not predicted:
        return ""
    times = speed_on_large_maps(weight.shape, geometry, operations)
    alone = "" if operations else "a convolution alone, "
    return "" if _pays(times, operations) else f"nothing to gain: {alone}predicted {times:.2f} times as fast"


def _pays(times: float, operations: int) -> bool:
    """Whether a predicted speed is enough."""
    return times >= (LEAST if operations else LEAST_ALONE)


def why_not_folded(weight: Tensor, geometry: Geometry, resize: str, operations: int) -> str:
    """Why a normalisation is not folded into the convolution before it, in evaluation; "" where it may pay.

    weight, geometry, resize: as of `why_no_gain`; operations: those after the normalisation
    """
    if resize != "none":
        return ""
    if not is_predicted(weight):
        return "" if operations else "folded it would be a convolution alone, not on a CPU in float32"
    times = speed_on_large_maps(weight.shape, geometry, 1 + operations)
    return "" if _pays(times, 1) else f"folded in evaluation, predicted {times:.2f} times as fast"


def is_predicted(weight: Tensor) -> bool:
    """Whether the speed of chains with this weight is predicted."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def products_of_a_value(weight: tuple[int, ...], geometry: Geometry) -> tuple[float, float]:
    """Products of a value of the result and a channel of the input: as written, and at best as computed.

    weight: its shape
    """
    written = weight[-1] ** 2 / (geometry.stride**2 if geometry.transposed else 1)
    algorithms = algorithms_of(weight[-1], geometry) if min(weight[:2]) >= FEWEST_CHANNELS else {}
    return written, min([written, *((products / outputs) ** 2 for outputs, products in algorithms.values())])


def is_slower(x: tuple[int, ...], weight: Tensor, geometry: Geometry, operations: int, training: bool) -> bool:
    """Whether a chain without resize is predicted to be slower than as written, on maps of this size.

    x:        (B, C, H, W)
    training: forward and backward; else forward alone
    others:   as of `why_no_gain`
    """
    return is_predicted(weight) and not _pays(speed(x, weight.shape, geometry, operations, training), operations)


def expected_saving(weight: Tensor, geometry: Geometry, resize: str) -> str:
    """The saving in words, where sizes are not known: products for each value of the result and channel of x."""
    written, computed = products_of_a_value(weight.shape, geometry)
    if resize == "up":
        written, computed = 9, 2.25 if min(weight.shape[:2]) >= FEWEST_CHANNELS else 4
    elif resize != "none":
        written, computed = 4 * written, written
    return f"{written:g} -> {computed:.3g} products a value" if written != computed else "one pass, as many products"


class Savings(Onlooker):
    """Counts, within its block, the products of the fused chains of a model: as written, and as the operator has them.

    chains: the Geometry and the resize of each convolution, by the path from the model of it or of its weight

    weights, products, shapes: by path the weight, (products as written, products computed), and the shapes of the
    inputs. A chain that ran as written counts no products.
    """

    def __init__(self, model: nn.Module, chains: dict[str, tuple[Geometry, str]]):
        super().__init__()
        self.chains = chains
        self.owners: dict[int, str] = {}  # path by the address of the weight
        self.weights: dict[str, Tensor] = {}
        self.products, self.shapes = {path: (0, 0) for path in chains}, {path: [] for path in chains}
        for path in chains:
            part = attrgetter(path)(model)
            weight = part if isinstance(part, Tensor) else part.weight
            self.owners[weight.data_ptr()] = path
            self.weights[path] = weight

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.kiln.resize_conv_act.default and args[1].data_ptr() in self.owners:
            self._count(args[0].shape, args[1], Geometry(*args[7:13]), args[15])
        elif function is torch.ops.aten.convolution.default and args[1].data_ptr() in self.owners:
            self.shapes[self.owners[args[1].data_ptr()]].append(tuple(args[0].shape))  # ran as written
        return function(*args, **(kwargs or {}))

    def _count(self, x_shape: torch.Size, weight: Tensor, where: Geometry, exact: bool) -> None:
        path = self.owners[weight.data_ptr()]
        sizes = native_sizes(x_shape, weight.shape, 0, where) | {"form": form(x_shape, weight.shape, where, exact)}
        call = NativeCall("resize_conv_act_forward", {}, sizes | {"dtype": 0}, seconds=0.0)
        before = self.products[path]
        self.products[path] = before[0] + self._written(path, x_shape), before[1] + int(SPEC.work(call).flops / 2)
        self.shapes[path].append(tuple(x_shape))

    def _written(self, path: str, x_shape: torch.Size) -> int:
        """Products of one call as written, the borders of a transposed convolution counted as the operator does."""
        geometry, resize = self.chains[path]
        scale = 2 if resize == "up" else 1
        height, width = output_sides(
            (*x_shape[:2], scale * x_shape[2], scale * x_shape[3]), self.kernel(path), geometry
        )
        taps = self.kernel(path) ** 2 / (geometry.stride**2 if geometry.transposed else 1)
        return int(x_shape[0] * height * width * self.weights[path].shape[:2].numel() * taps)

    def kernel(self, path: str) -> int:
        """Taps along one axis."""
        return self.weights[path].shape[-1]

    def text(self, path: str) -> str:
        """What fusing saves at a path, in words."""
        written, computed = self.products[path]
        return f"{written:,} -> {computed:,} products" if written else "not reached by example_inputs"

    @property
    def total(self) -> tuple[int, int]:
        """Products of all chains as written and as computed."""
        return tuple(map(sum, zip(*self.products.values(), strict=True))) if self.products else (0, 0)
