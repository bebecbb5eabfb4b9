"""The options of resize_conv_act that say which pixels meet which taps: their checks, the result's shape, the form."""

from typing import NamedTuple

from .._checks import refuse

NAME = "resize_conv_act"
RESIZES = ("none", "up", "down")
BORDERS = {"zeros": 0, "reflect": 1, "replicate": 2, "circular": 3}
MOST_TAPS = 7  # of a kernel along one axis
STRIDES = (1, 2)
DIRECT, TRANSFORMED, SMALL_TILES, UNPACKED = 0, 1, 2, 3
FEWEST_CHANNELS = 8  # with fewer input or output channels the direct sum is faster
# packing the weights, and making their gradient of its sums, costs as much as so many tiles; transforming a tile, as so
# many products of each of its numbers along an axis; reading weights as they lie, as so many pixels
TILES_OF_WEIGHTS, PRODUCTS_OF_A_TRANSFORM, PIXELS_OF_WEIGHTS = 14, 2.0, 1.5
# of a product with weights as they lie; what so many pixels meet stays in a cache
COST_UNPACKED, MOST_PIXELS_UNPACKED = 1.1, 128
# (up, transposed, kernel, stride) -> form -> outputs of a tile and its products, both along one axis
ALGORITHMS = {
    (True, False, 3, 1): {TRANSFORMED: (2, 3)},
    (False, False, 3, 1): {TRANSFORMED: (4, 6), SMALL_TILES: (2, 4)},
    (False, False, 4, 1): {TRANSFORMED: (3, 6)},
    (False, False, 5, 1): {TRANSFORMED: (2, 6)},
    (False, False, 3, 2): {TRANSFORMED: (4, 9), SMALL_TILES: (2, 5)},
    (False, False, 4, 2): {TRANSFORMED: (4, 10), SMALL_TILES: (2, 6)},
    (False, True, 3, 2): {TRANSFORMED: (8, 9), SMALL_TILES: (4, 5)},
    (False, True, 4, 2): {TRANSFORMED: (8, 10), SMALL_TILES: (4, 6)},
}


class Geometry(NamedTuple):
    """The options of a raw call, in its order. resize: "none" or "up"; "down" is a stride of 2."""

    resize: str
    stride: int
    padding: int
    padding_mode: str
    transposed: bool
    output_padding: int


def raw_geometry(
    kernel: int, resize: str, stride: int, padding: int | None, padding_mode: str, transposed: bool, output_padding: int
) -> Geometry:
    """The options of a public call as the raw operator takes them. Raises ValueError where resize does not fit."""
    if resize not in RESIZES:
        refuse(NAME, f"resize is {resize!r}; it must be one of {', '.join(RESIZES)}")
    if resize == "down":
        if stride != 1 or transposed:
            refuse(NAME, "resize 'down' is a stride of 2: it takes neither another stride nor transposed")
        resize, stride = "none", 2
    padding = (kernel - 1) // 2 if padding is None else padding
    return Geometry(resize, stride, padding, padding_mode, transposed, output_padding)


def check_geometry(x: tuple[int, ...], kernel: int, g: Geometry) -> None:
    """Raises ValueError unless a square kernel of so many taps meets an input (B, C, H, W) as the options say."""
    if g.resize not in ("none", "up"):
        refuse(NAME, f"resize is {g.resize!r}; it must be none or up")
    if not 1 <= kernel <= MOST_TAPS:
        refuse(NAME, f"weight has kernels of {kernel}x{kernel}; supported are 1x1 to {MOST_TAPS}x{MOST_TAPS}")
    if g.stride not in STRIDES:
        refuse(NAME, f"stride is {g.stride}; it must be 1 or 2")
    if g.padding < 0:
        refuse(NAME, f"padding is {g.padding}; it must be at least 0")
    if g.padding_mode not in BORDERS:
        refuse(NAME, f"padding_mode is {g.padding_mode!r}; it must be one of {', '.join(BORDERS)}")
    if g.resize == "up" and (kernel, g.stride, g.padding, g.padding_mode, g.transposed) != (3, 1, 1, "zeros", False):
        refuse(NAME, "resize 'up' takes a 3x3 kernel, stride 1, padding 1 of zeros, and no transposed")
    if g.transposed:
        if g.padding_mode != "zeros":
            refuse(NAME, f"padding_mode is {g.padding_mode!r}; a transposed convolution has zeros only")
        if not 0 <= g.output_padding < g.stride:
            refuse(NAME, f"output_padding is {g.output_padding}; it must lie in 0 .. stride - 1")
    elif g.output_padding:
        refuse(NAME, f"output_padding is {g.output_padding}; it is for a transposed convolution only")
    _check_sides(x, kernel, g)


def _check_sides(x: tuple[int, ...], kernel: int, g: Geometry) -> None:
    for side in x[2:]:
        most = {"reflect": side - 1, "circular": side}.get(g.padding_mode, g.padding)
        if g.padding > most:
            refuse(NAME, f"padding is {g.padding}; {g.padding_mode} takes at most {most} around x {tuple(x)}")
    for side in output_sides(x, kernel, g):
        if side < 1:
            refuse(NAME, f"x is {tuple(x)}: a {kernel}x{kernel} kernel with padding {g.padding} leaves no result")


def output_sides(x: tuple[int, ...], kernel: int, g: Geometry) -> tuple[int, int]:
    """Height and width of the result."""
    if g.transposed:
        more = kernel - 2 * g.padding + g.output_padding
        return (x[2] - 1) * g.stride + more, (x[3] - 1) * g.stride + more
    scale, less = 2 if g.resize == "up" else 1, kernel - 2 * g.padding
    return (scale * x[2] - less) // g.stride + 1, (scale * x[3] - less) // g.stride + 1


def smaller_pixels(x: tuple[int, ...], kernel: int, g: Geometry) -> int:
    """Pixels, of all images, of the smaller of input and result."""
    height, width = x[2:] if g.transposed else output_sides(x, kernel, g)
    return x[0] * height * width


def opposite(x: tuple[int, ...], kernel: int, g: Geometry) -> Geometry | None:
    """The convolution by the same weights from a result's gradient to that of x (B, C, H, W); None: there is none."""
    if g.resize != "none" or g.padding_mode != "zeros":
        return None
    if g.transposed:
        return g._replace(transposed=False, output_padding=0)
    back = g._replace(transposed=True)
    sides = output_sides((*x[:2], *output_sides(x, kernel, g)), kernel, back)
    missing = {side - other for side, other in zip(x[2:], sides, strict=True)}
    return back._replace(output_padding=missing.pop()) if missing in ({0}, {g.stride - 1}) else None


def effective_stride(x: tuple[int, ...], kernel: int, g: Geometry) -> int:
    """The stride that a pass is computed with.

    A transposed convolution of one pixel has the same result at any stride, because no other pixel is beside it: with a
    stride as long as the kernel each output takes one tap.
    """
    return kernel if g.transposed and not g.padding and tuple(x[2:]) == (1, 1) else g.stride


def native_sizes(x: tuple[int, ...], weight: tuple[int, ...], further: int, g: Geometry) -> dict[str, int]:
    """The sizes that native functions take. x, weight: shapes; further: channels of the second input."""
    batch, channels, height, width = x
    out_height, out_width = output_sides(x, weight[-1], g)
    inputs = {"batch": batch, "channels": channels, "further": further, "height": height, "width": width}
    outputs = {"out_height": out_height, "out_width": out_width, "cout": weight[g.transposed]}
    kernel = {"kernel": weight[-1], "stride": g.stride, "padding": g.padding, "border": BORDERS[g.padding_mode]}
    return {**inputs, **outputs, **kernel, "up": g.resize == "up", "transposed": g.transposed}


def form(x: tuple[int, ...], weight: tuple[int, ...], g: Geometry, exact: bool) -> int:
    """The number of the algebra that runs: DIRECT, TRANSFORMED, SMALL_TILES or UNPACKED.

    x, weight: shapes, (B, C, H, W) and (Cout, C, K, K), transposed (C, Cout, K, K). Few channels, or exact: a direct
    sum. Else the algorithm of ALGORITHMS that costs least; UNPACKED with pixels so few that a direct sum is cheaper,
    because it needs no packed weights.
    """
    few_channels = min(weight[:2]) < FEWEST_CHANNELS
    numbers = [DIRECT] if exact or few_channels else list(algorithms_of(weight[-1], g)) or [DIRECT]
    if g.resize == "none" and g.padding_mode == "zeros" and not few_channels:
        numbers += [UNPACKED] * (smaller_pixels(x, weight[-1], g) <= MOST_PIXELS_UNPACKED)
    return min(numbers, key=lambda number: sum(costs(x, weight, g, number)))


def algorithms_of(kernel: int, g: Geometry) -> dict[int, tuple[int, int]]:
    """Form -> outputs of a tile and its products, both along one axis; empty where only the direct sum is."""
    transposed = g.transposed and g.stride != 1  # at stride 1 it is a convolution with the taps reversed
    return ALGORITHMS.get((g.resize == "up", transposed, kernel, g.stride), {})


def costs(x: tuple[int, ...], weight: tuple[int, ...], g: Geometry, number: int) -> tuple[float, float]:
    """What a pass costs, in products of an input and an output channel: for its pixels, and for its weights."""
    height, width = output_sides(x, weight[-1], g)
    outputs, along = algorithms_of(weight[-1], g).get(number, (1, weight[-1]))
    products = along**2
    if number == UNPACKED:
        return products * COST_UNPACKED * smaller_pixels(x, weight[-1], g), products * PIXELS_OF_WEIGHTS
    # the direct sum of a transposed convolution takes every other tap in each output
    of_tile = products / g.stride**2 if number == DIRECT and g.transposed else products
    if number != DIRECT:
        of_tile *= 1 + PRODUCTS_OF_A_TRANSFORM * along * (1 / weight[0] + 1 / weight[1])
    return of_tile * x[0] * -(-height // outputs) * -(-width // outputs), products * TILES_OF_WEIGHTS
