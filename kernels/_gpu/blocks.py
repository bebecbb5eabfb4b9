"""Device functions that several operators' kernels call."""

import triton
import triton.language as tl

from .launch import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)
# activations by the number that ACTIVATION_NUMBERS of resize_conv_act gives them
ELU, RELU, LEAKY_RELU, TANH, SIGMOID, SILU = (tl.constexpr(number) for number in (1, 2, 3, 4, 5, 6))


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b with float32 sums. PRECISION of float32 inputs: "ieee", "tf32x3" (near float32) or "tf32".

    The matrix units cut sums off where float32 rounds. That is far below what half precision and TF32 resolve; for
    "tf32x3" only the products of this call are summed there, and added to acc outside.
    """
    if _INTERPRETED:  # the interpreter multiplies no bfloat16; these products are exact in float32
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    elif PRECISION == "tf32x3":
        # the last argument means nothing for float32, but keeps the compiler from moving acc into the product
        return acc + tl.dot(a, b, input_precision=PRECISION, max_num_imprecise_acc=1 << 30)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def pixels(source, start, y, x, H, W, C, c, valid):
    """(pixels, channels) of (batch, H, W, C): those at (y, x) of images that begin at pixel `start`; zero outside."""
    inside = valid & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    at = (start + y * W + x)[:, None] * C + c[None, :]
    return tl.load(source + at, mask=inside[:, None] & (c < C)[None, :], other=0.0)


@triton.jit
def rounded(value, DTYPE: tl.constexpr):
    """float32 value as DTYPE, to the nearest."""
    if _INTERPRETED and DTYPE == tl.bfloat16:  # noqa: SIM300 (where the interpreter would cut off)
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
        # the smaller of v and 0 as a selection: NaN takes the first branch
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
    """The activation's derivative as a function of its float32 output y; SILU's is none."""
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
