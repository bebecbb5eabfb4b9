"""What fusing a chain saves: products of the convolution as written, and as the operator computes them.

The rule, from the benchmark's results: nearest x2 before a convolution takes 9 of 36 products (16 with fewer than 8
channels), nearest /2 after it a quarter; these always pay. For all others `speed` predicts, on a CPU in float32, how
many times as fast the operator is on large maps. It counts products and numbers moved, each with what they take: an
activation or a sum of its own is a pass over the result, a padding of its own one over the input. A chain that is
predicted to be slower is left, and one whose maps are so small that a call's own cost is more than what it saves. A
convolution alone needs a margin, and 16 channels. Where nothing is predicted (GPUs, half precision) an activation or a
sum pays, and a convolution alone does not.
"""

from functools import lru_cache
from math import prod
from operator import attrgetter

import torch
from torch import Tensor, nn

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
LEAST, LEAST_ALONE = 1.0, 1.15  # predicted speeds from which on a chain is replaced, and a convolution alone is
# products that a library's convolution makes in the time that one number is read or written; in that by which a call of
# the operator is longer than one of a library, whatever its size; and in that in which a number of the weight is packed
PRODUCTS_OF_A_NUMBER, PRODUCTS_OF_A_CALL, PRODUCTS_OF_A_WEIGHT = 20.0, 5e6, 4.0
# products that the operator makes while a library's convolution makes one: of tiles, of the direct sum, of 1x1 kernels
RATE_OF_TILES, RATE_OF_DIRECT, RATE_OF_POINTS = 0.7, 0.9, 0.85
# a library makes so many times the products for a few outputs, as many as for a vector of them
FEW_OUTPUTS, PRODUCTS_OF_FEW_OUTPUTS = 4, 3.0


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
    times = speed(weight, geometry, operations) if predicted else LEAST
    alone = "" if operations else "a convolution alone, "
    least = LEAST_ALONE if alone else LEAST
    return f"nothing to gain: {alone}predicted {times:.2f} times as fast" if times < least else ""


def why_not_folded(weight: Tensor, geometry: Geometry, resize: str, operations: int) -> str:
    """Why a normalisation is not folded into the convolution before it, in evaluation; "" where it may pay.

    weight, geometry, resize: as of `why_no_gain`; operations: those after the normalisation
    """
    if resize != "none":
        return ""
    if not is_predicted(weight):
        return "" if operations else "folded it would be a convolution alone, not on a CPU in float32"
    times = speed(weight, geometry, 1 + operations)
    return f"folded in evaluation, predicted {times:.2f} times as fast" if times < LEAST else ""


def is_predicted(weight: Tensor) -> bool:
    """Whether the speed of chains with this weight is predicted."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def speed(weight: Tensor, geometry: Geometry, operations: int) -> float:
    """How many times as fast as the layers as written the operator is predicted to be, on large maps.

    weight, geometry, operations: as of `why_no_gain`
    """
    written, computed = _costs(weight.shape, geometry, operations)
    return written / computed


def _costs(weight: tuple[int, ...], geometry: Geometry, operations: int) -> tuple[float, float]:
    """What a value of the result takes on large maps, in products of a library: as written, and by the operator."""
    written, computed = products_of_a_value(weight, geometry)
    channels, outputs = weight[1 - geometry.transposed], weight[geometry.transposed]
    # of each value of the result: reads of the input, and the write of the result
    spread = 1 / geometry.stride**2 if geometry.transposed else geometry.stride**2
    moved = 1 + spread * channels / outputs
    passes = 2 * operations + 2 * (geometry.padding_mode != "zeros") * (moved - 1)
    rate = RATE_OF_TILES if computed < written else RATE_OF_DIRECT
    rate = RATE_OF_POINTS if weight[-1] == 1 else rate
    few, number = outputs <= FEW_OUTPUTS < channels and weight[-1] > 1, PRODUCTS_OF_A_NUMBER
    of_library = channels * written * (PRODUCTS_OF_FEW_OUTPUTS if few else 1) + number * (moved + passes)
    return of_library, channels * computed / (1 if few else rate) + number * moved


def products_of_a_value(weight: tuple[int, ...], geometry: Geometry) -> tuple[float, float]:
    """Products of a value of the result and a channel of the input: as written, and at best as computed.

    weight: its shape
    """
    written = weight[-1] ** 2 / (geometry.stride**2 if geometry.transposed else 1)
    algorithms = algorithms_of(weight[-1], geometry) if min(weight[:2]) >= FEWEST_CHANNELS else {}
    return written, min([written, *((products / outputs) ** 2 for outputs, products in algorithms.values())])


def too_small(x_shape: tuple[int, ...], weight: Tensor, geometry: Geometry, operations: int) -> bool:
    """Whether a chain without resize has maps so small that a call's own cost is more than what it would save.

    x_shape: (B, C, H, W); others: as of `why_no_gain`
    """
    return is_predicted(weight) and _saved(x_shape, weight.shape, geometry, operations) < PRODUCTS_OF_A_CALL


@lru_cache(maxsize=1024)
def _saved(x: tuple[int, ...], weight: tuple[int, ...], geometry: Geometry, operations: int) -> float:
    """The products that a chain saves. x, weight: shapes"""
    height, width = output_sides(x, weight[-1], geometry)
    written, computed = _costs(weight, geometry, operations)
    of_maps = x[0] * height * width * weight[geometry.transposed] * (written - computed)
    return of_maps + PRODUCTS_OF_A_WEIGHT * prod(weight) * (1 - computed / written)


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
