"""How many times as fast as its layers as written a chain is by the operator, on a CPU in float32: predicted.

Each side's time is a sum over what it does: calls, products, numbers read and written. What one of each takes was
fitted to the chains of the models of the suite `fuse`, each measured alone on two cores; the suite writes predicted
beside measured speeds. Times are in microseconds; the speed is their ratio, which differs less between machines.
"""

from functools import lru_cache
from typing import NamedTuple

from engine.kernels.resize_conv_act.geometry import (
    DIRECT,
    FEWEST_CHANNELS,
    UNPACKED,
    Geometry,
    algorithms_of,
    costs,
    form,
    output_sides,
)

FEW_OUTPUTS = 4  # channels of the result for which a library fills a vector nevertheless
LARGE = 16, 128, 128  # batch and sides of maps on which a call's own time is nothing


class Written(NamedTuple):
    """What the layers as written take: a call of the convolution, and of each layer after it; a product, one of a 1x1
    kernel, and one for few outputs; a number read, written, and passed by each layer after it; a number of the weight.
    """

    call: float
    layer: float
    product: float
    point: float
    few: float
    read: float
    write: float
    layered: float
    weight: float


class Operator(NamedTuple):
    """What the operator takes: a call; a pixel of few outputs; a product of tiles, of the direct sum, one with few
    channels, one of a 1x1 kernel, and one with weights as they lie; a number read, written, packed; one of the weight.
    """

    call: float
    pixel: float
    tile: float
    direct: float
    few: float
    point: float
    unpacked: float
    read: float
    write: float
    packed: float
    weight: float


# of a forward pass without gradients, and of forward and backward
INFERENCE = (
    Written(
        call=19.3,
        layer=12.4,
        product=8.87e-6,
        point=6.63e-6,
        few=48.5e-6,
        read=259e-6,
        write=105e-6,
        layered=91.6e-6,
        weight=272e-6,
    ),
    Operator(
        call=46.8,
        pixel=4310e-6,
        tile=7.51e-6,
        direct=9.80e-6,
        few=9.19e-6,
        point=8.50e-6,
        unpacked=12.6e-6,
        read=125e-6,
        write=124e-6,
        packed=187e-6,
        weight=33.0e-6,
    ),
)
TRAINING = (
    Written(
        call=104,
        layer=43.9,
        product=27.0e-6,
        point=14.6e-6,
        few=84.8e-6,
        read=876e-6,
        write=1310e-6,
        layered=764e-6,
        weight=1420e-6,
    ),
    Operator(
        call=254,
        pixel=6420e-6,
        tile=30.3e-6,
        direct=30.0e-6,
        few=35.9e-6,
        point=31.0e-6,
        unpacked=41.0e-6,
        read=196e-6,
        write=377e-6,
        packed=485e-6,
        weight=383e-6,
    ),
)


@lru_cache(maxsize=4096)
def speed(x: tuple[int, ...], weight: tuple[int, ...], geometry: Geometry, operations: int, training: bool) -> float:
    """How many times as fast as the layers as written the operator is predicted to be.

    x, weight:  shapes, (B, C, H, W) and (Cout, C, K, K), transposed (C, Cout, K, K)
    geometry:   of the convolution, which has no resize
    operations: layers after it that become part of it
    training:   forward and backward; else forward, with weights that are kept packed
    """
    written, operator = TRAINING if training else INFERENCE
    kernel, (channels, outputs) = weight[-1], _channels(weight, geometry)
    height, width = output_sides(x, kernel, geometry)
    of_input, of_result = x[0] * x[2] * x[3], x[0] * height * width
    read, results, kernels = of_input * channels, of_result * outputs, channels * outputs
    few_outputs = kernel > 1 and outputs <= FEW_OUTPUTS
    of_kernel = kernels * kernel**2

    each = written.few if few_outputs else written.point if kernel == 1 else written.product
    padded = 1 + 2 * (geometry.padding_mode != "zeros")
    as_written = (
        written.call
        + written.layer * operations
        + each * of_kernel * (of_input if geometry.transposed else of_result)
        + written.read * padded * read
        + (written.write + written.layered * operations) * results
        + written.weight * of_kernel
    )

    shape = channels, outputs, kernel
    number = form(x, shape, geometry, False)
    each = {DIRECT: operator.direct, UNPACKED: operator.unpacked}.get(number, operator.tile)
    if number == DIRECT:
        each = operator.point if kernel == 1 else operator.few if min(channels, outputs) < FEWEST_CHANNELS else each
    packed = 0 if number == UNPACKED else algorithms_of(kernel, geometry).get(number, (1, kernel))[1] ** 2 * kernels
    by_operator = (
        operator.call
        + operator.pixel * few_outputs * of_result
        + each * kernels * costs(x, shape, geometry, number)[0]
        + operator.read * read
        + operator.write * results
        + operator.packed * packed
        + operator.weight * of_kernel
    )
    return as_written / by_operator


def speed_on_large_maps(weight: tuple[int, ...], geometry: Geometry, operations: int) -> float:
    """The greater of the speeds of inference and training. Arguments: as of `speed`"""
    channels, _ = _channels(weight, geometry)
    x = LARGE[0], channels, *LARGE[1:]
    return max(speed(x, weight, geometry, operations, training) for training in (False, True))


def _channels(weight: tuple[int, ...], geometry: Geometry) -> tuple[int, int]:
    """Channels of the input and of the result."""
    return weight[1 - geometry.transposed], weight[geometry.transposed]
