"""Device functions that several operators' kernels call."""

import triton
import triton.language as tl

from .launch import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)
# the activations' numbers, as in ACTIVATION_NUMBERS of resize_conv_act; 0 is none
ELU, RELU, LEAKY_RELU, TANH, SIGMOID, SILU = (tl.constexpr(number) for number in (1, 2, 3, 4, 5, 6))


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b with float32 sums. PRECISION of float32 inputs: "ieee", "tf32x3" (near float32) or "tf32".

    The matrix units cut sums off where float32 rounds. The error is far below what half precision and TF32 resolve. For
    "tf32x3" the matrix units sum only the products of this call, and their sum is added to acc outside of them.
    """
    if _INTERPRETED:  # the interpreter cannot multiply bfloat16; products of bfloat16 are exact in float32
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    elif PRECISION == "tf32x3":
        # max_num_imprecise_acc has no meaning for float32, but keeps the compiler from moving acc into the product
        return acc + tl.dot(a, b, input_precision=PRECISION, max_num_imprecise_acc=1 << 30)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def pixels(source, start, y, x, H, W, C, c, valid):
    """Loads (pixels, channels) of source (batch, H, W, C) at (y, x) of the images that begin at pixel `start`.

    It is zero outside of the image, past channel C and where not `valid`.
    """
    inside = valid & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    at = (start + y * W + x)[:, None] * C + c[None, :]
    return tl.load(source + at, mask=inside[:, None] & (c < C)[None, :], other=0.0)


@triton.jit
def quotient(numbers, divisor):
    """numbers // divisor by one division of two scalars, for numbers below 2^20 / divisor and 2^11 divisor."""
    return (numbers * tl.cdiv(1 << 20, divisor)) >> 20


@triton.jit
def single(number):
    """A number of the host as float32, which a launch makes of it; torch.compile passes it as float64."""
    return tl.cast(number, tl.float32)


@triton.jit
def rounded(value, DTYPE: tl.constexpr):
    """Rounds float32 `value` to the nearest of DTYPE."""
    if _INTERPRETED and DTYPE == tl.bfloat16:  # noqa: SIM300 (the interpreter itself would cut the value off)
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        value = tl.where(value == value, bits.to(tl.float32, bitcast=True), value)
    return value.to(DTYPE)


@triton.jit
def expm1(v):
    """exp(v) - 1 of float32 v <= 0, accurate also near zero: a polynomial for v > -0.35."""
    p = 1.0 / 5040.0
    p = p * v + 1.0 / 720.0
    p = p * v + 1.0 / 120.0
    p = p * v + 1.0 / 24.0
    p = p * v + 1.0 / 6.0
    p = p * v + 0.5
    p = p * v + 1.0
    return tl.where(v > -0.35, p * v, tl.exp(v) - 1.0)


@triton.jit
def tanh(v):
    """tanh of float32, accurate also near zero."""
    e = expm1(-2.0 * tl.abs(v))
    magnitude = -e / (e + 2.0)
    return tl.where(v < 0, -magnitude, magnitude)


@triton.jit
def activate(v, ACTIVATION: tl.constexpr, slope):
    """The activation of float32 v; NaN stays NaN."""
    if ACTIVATION == ELU:
        # the inner selection is a min(v, 0) that keeps a NaN; expm1 of a NaN is a NaN
        return tl.where(v > 0, v, expm1(tl.where(v > 0, 0.0, v)))
    elif ACTIVATION == RELU:
        return tl.where(v < 0, 0.0, v)
    elif ACTIVATION == LEAKY_RELU:
        return tl.where(v < 0, v * slope, v)
    elif ACTIVATION == TANH:
        return tanh(v)
    elif ACTIVATION == SIGMOID:
        return 1.0 / (1.0 + tl.exp(-v))
    elif ACTIVATION == SILU:
        return v / (1.0 + tl.exp(-v))
    else:
        return v


@triton.jit
def derivative(y, ACTIVATION: tl.constexpr, slope):
    """The activation's derivative as a function of its float32 output y; not for SILU, which needs the input."""
    if ACTIVATION == ELU:
        return tl.where(y > 0, 1.0, y + 1.0)
    elif ACTIVATION == RELU:
        return tl.where(y > 0, 1.0, 0.0)
    elif ACTIVATION == LEAKY_RELU:
        return tl.where(y > 0, 1.0, slope)
    elif ACTIVATION == TANH:
        return 1.0 - y * y
    elif ACTIVATION == SIGMOID:
        return y * (1.0 - y)
    else:
        return y * 0.0 + 1.0


@triton.jit
def derivative_at(v, ACTIVATION: tl.constexpr, slope):
    """The activation's derivative as a function of its float32 input v."""
    if ACTIVATION == SILU:
        sigmoid = 1.0 / (1.0 + tl.exp(-v))
        return sigmoid * (1.0 + v * (1.0 - sigmoid))
    else:
        return derivative(activate(v, ACTIVATION, slope), ACTIVATION, slope)
