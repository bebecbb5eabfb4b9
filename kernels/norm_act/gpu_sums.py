"""Statistics and sums of norm_act in Triton: parts of images are summed apart, then joined in a fixed order."""

import triton
import triton.language as tl

from .._gpu.blocks import derivative_at, single

JOINED = 256  # parts that a joining program reads at a time


@triton.jit
def offsets(sample, p, c, P, C, PLANAR: tl.constexpr, WIDE: tl.constexpr):
    """Where pixels p and channels c of an image lie, in a dense tensor (batch, C, P) (PLANAR) or (batch, P, C)."""
    if WIDE:
        sample, c, p = tl.cast(sample, tl.int64), tl.cast(c, tl.int64), tl.cast(p, tl.int64)
    if PLANAR:
        return (sample * C + c) * P + p
    else:
        return (sample * P + p) * C + c


@triton.jit
def statistic_of(sample, c, groups, of_group, GROUPED: tl.constexpr):
    """The numbers of the statistics of channels c of an image."""
    return sample * groups + c // of_group if GROUPED else c


@triton.jit
def constants(mean, var, weight, bias, sample, c, C, groups, of_group, eps,
              WEIGHT: tl.constexpr, BIAS: tl.constexpr, GROUPED: tl.constexpr):  # fmt: skip
    """Mean, 1 / sqrt(var + eps), weight and bias of channels c of an image, float32."""
    statistic = statistic_of(sample, c, groups, of_group, GROUPED)
    inside = c < C
    center = tl.load(mean + statistic, mask=inside, other=0.0).to(tl.float32)
    spread = tl.load(var + statistic, mask=inside, other=1.0).to(tl.float32)
    rstd = tl.div_rn(tl.full(spread.shape, 1.0, tl.float32), tl.sqrt_rn(spread + eps))
    factor = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32) if WEIGHT else tl.full(c.shape, 1.0, tl.float32)
    shift = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32) if BIAS else tl.zeros(c.shape, tl.float32)
    return center, rstd, factor, shift


@triton.jit
def gradient_before(grad, residual, at, inside, d, scale, shift, slope, ACTIVATION: tl.constexpr, BEFORE: tl.constexpr):
    """The gradient before the activation, zero where not `inside`; d is x less its mean."""
    value = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION != 0:
        z = d * scale + shift
        if BEFORE:
            z += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(inside, value * derivative_at(z, ACTIVATION, slope), 0.0)
    return value


@triton.jit
def norm_act_statistics_kernel(
    x, partial, P, C, part_pixels, parts, PLANAR: tl.constexpr, WIDE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr
):
    """partial (3, batch * parts, C) float32, of each channel over a part of an image's pixels.

    Its first value, the mean of the differences from it, and the sum of squared differences from the mean.
    """
    row, rows = tl.program_id(0), tl.num_programs(0)
    sample, part = row // parts, row % parts
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    first = part * part_pixels
    end = tl.minimum(first + part_pixels, P)
    origin = tl.load(x + offsets(sample, first, c, P, C, PLANAR, WIDE), mask=c < C, other=0.0).to(tl.float32)
    mean, squares = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    for p0 in range(first, end, BP):
        p = p0 + tl.arange(0, BP)
        inside = (p < end)[:, None] & (c < C)[None, :]
        value = tl.load(x + offsets(sample, p[:, None], c[None, :], P, C, PLANAR, WIDE), mask=inside, other=0.0)
        difference = tl.where(inside, value.to(tl.float32) - origin[None, :], 0.0)
        count, before = tl.cast(tl.minimum(end - p0, BP), tl.float32), tl.cast(p0 - first, tl.float32)
        block_mean = tl.sum(difference, axis=0) / count
        difference = tl.where(inside, difference - block_mean[None, :], 0.0)
        step, share = block_mean - mean, count / (before + count)
        mean += step * share
        squares += tl.sum(difference * difference, axis=0) + step * step * (share * before)
    plane = tl.cast(rows, tl.int64) * C
    at = tl.cast(row, tl.int64) * C + c
    tl.store(partial + at, origin, mask=c < C)
    tl.store(partial + plane + at, mean, mask=c < C)
    tl.store(partial + 2 * plane + at, squares, mask=c < C)


@triton.jit
def items(start, count, row0, c0, C, of_group, R: tl.constexpr):
    """R of the parts that belong to one statistic: rows, channels, where they lie, and which of them there are."""
    i = start + tl.arange(0, R)
    row, c = row0 + i // of_group, c0 + i % of_group
    return row, c, tl.cast(row, tl.int64) * C + c, i < count


@triton.jit
def norm_act_join_kernel(
    partial, mean, var, rows, P, C, groups, of_group, part_pixels, parts, GROUPED: tl.constexpr, R: tl.constexpr
):
    """mean and var from the parts (3, rows, C): a program joins a channel's, or (GROUPED) an image's group's."""
    statistic = tl.program_id(0)
    row0 = (statistic // groups) * parts if GROUPED else 0
    c0 = (statistic % groups) * of_group if GROUPED else statistic
    count = parts * of_group if GROUPED else rows
    plane = tl.cast(rows, tl.int64) * C
    origin = tl.load(partial + tl.cast(row0, tl.int64) * C + c0)
    total, elements = tl.zeros((R,), tl.float32), tl.zeros((R,), tl.float32)
    for start in range(0, count, R):
        row, _, at, there = items(start, count, row0, c0, C, of_group, R)
        size = tl.where(there, tl.minimum(part_pixels, P - (row % parts) * part_pixels), 0).to(tl.float32)
        away = tl.load(partial + at, mask=there, other=0.0) - origin
        away += tl.load(partial + plane + at, mask=there, other=0.0)
        total += tl.where(there, away * size, 0.0)
        elements += size
    all_elements = tl.sum(elements, axis=0)
    center = tl.sum(total, axis=0) / all_elements
    squares = tl.zeros((R,), tl.float32)
    for start in range(0, count, R):
        row, _, at, there = items(start, count, row0, c0, C, of_group, R)
        size = tl.minimum(part_pixels, P - (row % parts) * part_pixels).to(tl.float32)
        away = tl.load(partial + at, mask=there, other=0.0) - origin
        away += tl.load(partial + plane + at, mask=there, other=0.0) - center
        within = tl.load(partial + 2 * plane + at, mask=there, other=0.0)
        squares += tl.where(there, within + size * away * away, 0.0)
    tl.store(mean + statistic, origin + center)
    tl.store(var + statistic, tl.sum(squares, axis=0) / all_elements)


@triton.jit
def norm_act_sums_kernel(
    grad, x, residual, weight, bias, mean, var, partial, P, C, groups, of_group, part_pixels, parts, eps, slope,
    ACTIVATION: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BEFORE: tl.constexpr, GROUPED: tl.constexpr,
    PLANAR: tl.constexpr, WIDE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """partial (2, batch * parts, C) float32: of each channel over a part of an image the sums of g and g (x - mean)."""
    eps, slope = single(eps), single(slope)
    row, rows = tl.program_id(0), tl.num_programs(0)
    sample, part = row // parts, row % parts
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    center, rstd, factor, shift = constants(
        mean, var, weight, bias, sample, c, C, groups, of_group, eps, WEIGHT, BIAS, GROUPED
    )
    scale = rstd * factor
    total, product = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    end = tl.minimum((part + 1) * part_pixels, P)
    for p0 in range(part * part_pixels, end, BP):
        p = p0 + tl.arange(0, BP)
        inside = (p < end)[:, None] & (c < C)[None, :]
        at = offsets(sample, p[:, None], c[None, :], P, C, PLANAR, WIDE)
        d = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - center[None, :]
        g = gradient_before(grad, residual, at, inside, d, scale[None, :], shift[None, :], slope, ACTIVATION, BEFORE)
        total += tl.sum(g, axis=0)
        product += tl.sum(tl.where(inside, g * d, 0.0), axis=0)
    to = tl.cast(row, tl.int64) * C + c
    tl.store(partial + to, total, mask=c < C)
    tl.store(partial + tl.cast(rows, tl.int64) * C + to, product, mask=c < C)


@triton.jit
def norm_act_parameter_gradients_kernel(
    partial, var, dweight, dbias, rows, C, groups, of_group, parts, eps,
    NEED_WEIGHT: tl.constexpr, NEED_BIAS: tl.constexpr, GROUPED: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """dweight and dbias (C,) float32 from the sums (2, rows, C): a program joins those of one channel."""
    eps = single(eps)
    c = tl.program_id(0)
    total, product = tl.zeros((R,), tl.float32), tl.zeros((R,), tl.float32)
    for start in range(0, rows, R):
        row = start + tl.arange(0, R)
        there = row < rows
        at = tl.cast(row, tl.int64) * C + c
        statistic = (row // parts) * groups + c // of_group if GROUPED else row * 0 + c
        spread = tl.load(var + statistic, mask=there, other=1.0).to(tl.float32) + eps
        rstd = tl.div_rn(tl.full((R,), 1.0, tl.float32), tl.sqrt_rn(spread))
        total += tl.load(partial + at, mask=there, other=0.0)
        gd = tl.load(partial + tl.cast(rows, tl.int64) * C + at, mask=there, other=0.0)
        product += tl.where(there, gd * rstd, 0.0)
    if NEED_WEIGHT:
        tl.store(dweight + c, tl.sum(product, axis=0))
    if NEED_BIAS:
        tl.store(dbias + c, tl.sum(total, axis=0))


@triton.jit
def norm_act_slopes_kernel(
    partial, var, weight, slopes, rows, C, groups, of_group, parts, elements, eps,
    WEIGHT: tl.constexpr, GROUPED: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """slopes (2, statistics) float32: the means of weight g and of weight g times the normalised x over a statistic."""
    eps = single(eps)
    statistic = tl.program_id(0)
    row0 = (statistic // groups) * parts if GROUPED else 0
    c0 = (statistic % groups) * of_group if GROUPED else statistic
    count = parts * of_group if GROUPED else rows
    total, product = tl.zeros((R,), tl.float32), tl.zeros((R,), tl.float32)
    for start in range(0, count, R):
        _, c, at, there = items(start, count, row0, c0, C, of_group, R)
        g = tl.load(partial + at, mask=there, other=0.0)
        gd = tl.load(partial + tl.cast(rows, tl.int64) * C + at, mask=there, other=0.0)
        if WEIGHT:
            factor = tl.load(weight + c, mask=there, other=0.0).to(tl.float32)
            g, gd = g * factor, gd * factor
        total += g
        product += gd
    n = tl.cast(elements, tl.float32)
    rstd = tl.div_rn(tl.cast(1.0, tl.float32), tl.sqrt_rn(tl.load(var + statistic).to(tl.float32) + eps))
    tl.store(slopes + statistic, tl.sum(total, axis=0) / n)
    tl.store(slopes + tl.num_programs(0) + statistic, tl.sum(product, axis=0) * rstd / n)
