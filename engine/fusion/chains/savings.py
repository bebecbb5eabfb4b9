"""What fusing a chain saves: products of the convolution as written, and as the operator computes them.

The rule, from the benchmark's results: nearest x2 before a convolution takes 9 of 36 products (16 with fewer than 8
channels), nearest /2 after it a quarter, and an activation saves a pass over memory; these always pay. A convolution of
the same size alone pays on a CPU in float32, by Winograd tiles, from 64 channels on, and where the maps are so large
that a call's own cost does not matter and the tiles save a fifth or more. A stride of 2 alone takes the same products
as before: nothing to gain.
"""

from operator import attrgetter

import torch
from torch import Tensor, nn

from engine.fusion.lookups import Onlooker
from engine.kernels._observers import NativeCall
from engine.kernels.resize_conv_act.geometry import SMALL_TILES, TRANSFORMED, Geometry, cost, form, native_sizes
from engine.kernels.resize_conv_act.spec import SPEC

SAME_SIZE = Geometry("none", 1, 1, "zeros", False, 0)
FEWEST_CHANNELS = 64
FEWEST_PIXELS = 4096  # of all images of a batch together
WORTH = (
    0.8  # the largest part of the products as written that tiles may leave, for a convolution of the same size alone
)


def why_no_gain(weight: Tensor, resize: str, activation: str) -> str:
    """Why a chain does not pay whatever the size of its images; "" where it may pay.

    weight (Cout, C, 3, 3); resize and activation as of Chain
    """
    if activation != "none" or resize not in ("none", "stride 2"):
        return ""
    if resize == "stride 2":
        return "nothing to gain: a stride of 2 alone takes as many products"
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return "nothing to gain: a convolution alone, not on a CPU in float32"
    fewest = min(weight.shape[:2])
    return f"nothing to gain: a convolution alone, of {fewest} channels" if fewest < FEWEST_CHANNELS else ""


def too_small(x_shape: tuple[int, ...], weight: Tensor) -> bool:
    """Whether a convolution of the same size alone has maps too small for tiles to pay. x_shape: (B, C, H, W)."""
    pixels = x_shape[0] * x_shape[2] * x_shape[3]
    if pixels < FEWEST_PIXELS:
        return True
    products = min(cost(x_shape, weight.shape, SAME_SIZE, number) for number in (TRANSFORMED, SMALL_TILES))
    return products > WORTH * 9 * pixels


def expected_saving(weight: Tensor, resize: str) -> str:
    """The saving in words, where sizes are not known: products for each value of the result and channel of x."""
    many = min(weight.shape[:2]) >= 8
    if resize == "up":
        written, left = 9, 2.25 if many else 4
    elif resize in ("nearest /2", "slice"):
        written, left = 36, 9
    else:
        written, left = 9, 2.25 if many and resize == "none" else 9
    return f"{written} -> {left:g} products a value" if written != left else "one pass, as many products"


class Savings(Onlooker):
    """Counts, within its block, the products of the fused chains of a model: as written, and as the operator has them.

    paths: of the weights, or of the convolutions that own them, from the model

    weights, products, shapes: the weight, (products as written, products computed), and the shapes of the inputs of
    each path. A chain that ran as written counts no products.
    """

    def __init__(self, model: nn.Module, paths: list[str]):
        super().__init__()
        self.owners: dict[int, tuple[str, object]] = {}  # (path, stride) by the address of the weight
        self.weights: dict[str, Tensor] = {}
        self.products, self.shapes = {path: (0, 0) for path in paths}, {path: [] for path in paths}
        for path in paths:
            part = attrgetter(path)(model)
            weight = part if isinstance(part, Tensor) else part.weight
            self.owners[weight.data_ptr()] = path, getattr(part, "stride", None)
            self.weights[path] = weight

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.kiln.resize_conv_act.default and args[1].data_ptr() in self.owners:
            self._count(args[0].shape, args[1], Geometry(*args[5:11]), args[13])
        elif function is torch.ops.aten.convolution.default and args[1].data_ptr() in self.owners:
            self.shapes[self.owners[args[1].data_ptr()][0]].append(tuple(args[0].shape))  # ran as written
        return function(*args, **(kwargs or {}))

    def _count(self, x_shape: torch.Size, weight: Tensor, where: Geometry, exact: bool) -> None:
        path, stride = self.owners[weight.data_ptr()]
        b, c, h, w = x_shape
        cout = len(weight)
        sizes = native_sizes(x_shape, weight.shape, 0, where) | {"form": form(x_shape, weight.shape, where, exact)}
        computed = int(
            SPEC.work(NativeCall("resize_conv_act_forward", {}, sizes | {"dtype": 0}, seconds=0.0)).flops / 2
        )
        pixels = b * h * w * (4 if where.resize == "up" else 1)
        if stride == (2, 2):
            pixels = b * -(-h // 2) * -(-w // 2)
        before = self.products[path]
        self.products[path] = before[0] + pixels * c * cout * 9, before[1] + computed
        self.shapes[path].append(tuple(x_shape))

    def text(self, path: str) -> str:
        """What fusing saves at a path, in words."""
        written, computed = self.products[path]
        return f"{written:,} -> {computed:,} products" if written else "not reached by example_inputs"

    @property
    def total(self) -> tuple[int, int]:
        """Products of all chains as written and as computed."""
        return tuple(map(sum, zip(*self.products.values(), strict=True))) if self.products else (0, 0)
