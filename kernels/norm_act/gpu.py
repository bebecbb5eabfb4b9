"""norm_act in Triton: parts of images are measured, the parts joined, every element normalised; backward likewise."""

from math import nan
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._gpu import tuning
from .._gpu.blocks import activate, rounded, single
from .._gpu.launch import Cost, launch, size, wide
from .._gradients import float32_sums, round_sums
from .._layout import dense_order
from ..resize_conv_act import ACTIVATION_NUMBERS
from . import dense, gradients, outputs
from .gpu_sums import (
    JOINED,
    constants,
    gradient_before,
    norm_act_join_kernel,
    norm_act_parameter_gradients_kernel,
    norm_act_slopes_kernel,
    norm_act_statistics_kernel,
    norm_act_sums_kernel,
    offsets,
    statistic_of,
)

NO_RESIDUAL, BEFORE, AFTER = 0, 1, 2


@triton.jit
def norm_act_forward_kernel(
    x, residual, weight, bias, mean, var, y, P, C, groups, of_group, part_pixels, parts, eps, slope,
    ACTIVATION: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, GROUPED: tl.constexpr,
    PLANAR: tl.constexpr, WIDE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y like x: a program takes BC channels of a part of an image's pixels."""
    eps, slope = single(eps), single(slope)
    sample, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    center, rstd, factor, shift = constants(
        mean, var, weight, bias, sample, c, C, groups, of_group, eps, WEIGHT, BIAS, GROUPED
    )
    scale = rstd * factor
    end = tl.minimum((part + 1) * part_pixels, P)
    for p0 in range(part * part_pixels, end, BP):
        p = p0 + tl.arange(0, BP)
        inside = (p < end)[:, None] & (c < C)[None, :]
        at = offsets(sample, p[:, None], c[None, :], P, C, PLANAR, WIDE)
        z = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - center[None, :]) * scale[None, :] + shift[None, :]
        if RESIDUAL == 1:
            z += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        z = activate(z, ACTIVATION, slope)
        if RESIDUAL == 2:
            z += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + at, rounded(z, y.dtype.element_ty), mask=inside)


@triton.jit
def norm_act_backward_kernel(
    grad, x, residual, weight, bias, mean, var, slopes, dx, dresidual, P, C, groups, of_group, statistics, part_pixels,
    parts, eps, slope,
    ACTIVATION: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BEFORE: tl.constexpr, GROUPED: tl.constexpr,
    CONSTANT: tl.constexpr, NEED_X: tl.constexpr, NEED_RESIDUAL: tl.constexpr,
    PLANAR: tl.constexpr, WIDE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dx and dresidual like x: a program takes BC channels of a part of an image's pixels. slopes (2, statistics)."""
    eps, slope = single(eps), single(slope)
    sample, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    center, rstd, factor, shift = constants(
        mean, var, weight, bias, sample, c, C, groups, of_group, eps, WEIGHT, BIAS, GROUPED
    )
    scale = rstd * factor
    offset, tilt = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    if not CONSTANT:
        statistic = statistic_of(sample, c, groups, of_group, GROUPED)
        offset = rstd * tl.load(slopes + statistic, mask=c < C, other=0.0)
        tilt = rstd * rstd * tl.load(slopes + statistics + statistic, mask=c < C, other=0.0)
    end = tl.minimum((part + 1) * part_pixels, P)
    for p0 in range(part * part_pixels, end, BP):
        p = p0 + tl.arange(0, BP)
        inside = (p < end)[:, None] & (c < C)[None, :]
        at = offsets(sample, p[:, None], c[None, :], P, C, PLANAR, WIDE)
        d = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - center[None, :]
        g = gradient_before(grad, residual, at, inside, d, scale[None, :], shift[None, :], slope, ACTIVATION, BEFORE)
        if NEED_RESIDUAL:
            tl.store(dresidual + at, rounded(g, dresidual.dtype.element_ty), mask=inside)
        if NEED_X:
            value = g * scale[None, :]
            if not CONSTANT:
                value -= offset[None, :] + d * tilt[None, :]
            tl.store(dx + at, rounded(value, dx.dtype.element_ty), mask=inside)


class Tiling(NamedTuple):
    """How a pass is cut: parts of an image, each read in blocks of BP pixels by BC channels."""

    BP: int
    BC: int
    warps: int
    part_pixels: int
    parts: int


def tilings(x: Tensor, planar: bool) -> list[Tiling]:
    """The likely best first. Enough elements at a time keep memory busy, a few programs each multiprocessor."""
    return [_tiling(x, planar, elements, warps) for elements, warps in ((1024, 4), (2048, 8))]


def _tiling(x: Tensor, planar: bool, elements: int, warps: int) -> Tiling:
    batch, channels, height, width = x.shape
    pixels = height * width
    if planar:
        bp = min(tuning.block(pixels, elements), triton.next_power_of_2(pixels))
        bc = max(1, min(triton.next_power_of_2(channels), elements // bp))
    else:
        bc = min(64, triton.next_power_of_2(channels))
        bp = min(tuning.block(pixels, max(1, elements // bc)), triton.next_power_of_2(pixels))
    programs = batch * triton.cdiv(channels, bc)
    parts = max(1, min(triton.cdiv(pixels, bp), triton.cdiv(8 * tuning.processors(), max(1, programs))))
    part_pixels = triton.cdiv(triton.cdiv(pixels, parts), bp) * bp
    return Tiling(bp, bc, warps, part_pixels, triton.cdiv(pixels, part_pixels))


class _Pass(NamedTuple):
    """What the launches of one pass share."""

    x: Tensor
    groups: int
    planar: bool
    tiling: Tiling

    @property
    def rows(self) -> int:
        return self.x.shape[0] * self.tiling.parts

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows, triton.cdiv(self.x.shape[1], self.tiling.BC)

    @property
    def of_group(self) -> int:
        return self.x.shape[1] // self.groups if self.groups else 1

    def joining(self) -> dict[str, object]:
        """The arguments of every kernel that joins parts."""
        named = {"rows": self.rows, "C": self.x.shape[1], "groups": self.groups or 1, "of_group": self.of_group}
        return named | {"parts": self.tiling.parts, "GROUPED": self.groups > 0, "R": JOINED, "num_warps": 4}

    def cut(self) -> dict[str, object]:
        """The arguments of every kernel that reads x by parts."""
        tiling = self.tiling
        named = {"P": self.x.shape[2] * self.x.shape[3], "C": self.x.shape[1], "part_pixels": tiling.part_pixels}
        named |= {"parts": tiling.parts, "PLANAR": self.planar, "WIDE": wide(self.x), "BP": tiling.BP, "BC": tiling.BC}
        return named | {"num_warps": tiling.warps}

    def affine(self, weight: Tensor | None, bias: Tensor | None) -> dict[str, object]:
        """The arguments of every kernel that normalises."""
        named = {"weight": self.x if weight is None else weight, "WEIGHT": weight is not None}
        named |= {"bias": self.x if bias is None else bias, "BIAS": bias is not None}
        return named | {"groups": self.groups or 1, "of_group": self.of_group, "GROUPED": self.groups > 0}


def _measure(run: _Pass, mean: Tensor, var: Tensor) -> None:
    x = run.x
    partial = x.new_empty((3, run.rows, x.shape[1]), dtype=torch.float32)
    launch(
        norm_act_statistics_kernel, run.grid, x=x, partial=partial, **run.cut(),
        cost=lambda: Cost(6.0 * x.numel(), size(x, partial)),
    )  # fmt: skip
    launch(
        norm_act_join_kernel, (mean.numel(),), partial=partial, mean=mean, var=var, P=x.shape[2] * x.shape[3],
        part_pixels=run.tiling.part_pixels, **run.joining(),
        cost=lambda: Cost(10.0 * partial.numel(), size(partial, mean, var)),
    )  # fmt: skip


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def forward(
    x, weight, bias, residual, given_mean, given_var, groups, eps, activation, negative_slope, residual_after,
    statistics_only,
):  # fmt: skip
    constant, order = given_mean is not None, dense_order(x)
    y, mean, var = outputs(x, order, constant, groups, statistics_only)
    if not x.numel():
        return y, mean.fill_(nan), var.fill_(nan)
    planar = order == torch.contiguous_format
    x, residual = dense(order, x, residual)
    weight, bias, given_mean, given_var = _contiguous(weight, bias, given_mean, given_var)
    statistics = (given_mean, given_var) if constant else (mean, var)

    def run(tiling: Tiling) -> None:
        this = _Pass(x, groups, planar, tiling)
        if not constant:
            _measure(this, mean, var)
        if statistics_only:
            return
        launch(
            norm_act_forward_kernel, this.grid, x=x, residual=x if residual is None else residual,
            mean=statistics[0], var=statistics[1], y=y, eps=eps, slope=negative_slope,
            ACTIVATION=ACTIVATION_NUMBERS[activation],
            RESIDUAL=NO_RESIDUAL if residual is None else AFTER if residual_after else BEFORE,
            **this.affine(weight, bias), **this.cut(),
            cost=lambda: Cost(12.0 * x.numel(), size(x, residual, y)),
        )  # fmt: skip

    problem = x.shape, x.dtype, groups, planar, activation, residual is not None, constant, statistics_only
    tuning.run_best("norm_act", problem, tilings(x, planar), run)
    return y, mean, var


def _slopes(run: _Pass, partial: Tensor, var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    slopes = partial.new_empty((2, var.numel()))
    elements = run.x.numel() // var.numel()
    launch(
        norm_act_slopes_kernel, (var.numel(),), partial=partial, var=var, weight=run.x if weight is None else weight,
        slopes=slopes, elements=elements, eps=eps, WEIGHT=weight is not None, **run.joining(),
        cost=lambda: Cost(4.0 * partial.numel(), size(partial, slopes)),
    )  # fmt: skip
    return slopes


def backward(
    grad, x, weight, bias, residual, mean, var, means, groups, constant, eps, activation, negative_slope, need
):
    order = dense_order(x)
    results = gradients([x, weight, bias, residual], order, need)
    if not x.numel():
        return tuple(result.zero_() for result in results)
    dx, dweight, dbias, dresidual = results
    dw, db = float32_sums([dweight, dbias], need[1:3])
    planar = order == torch.contiguous_format
    x, grad, residual = dense(order, x, grad, residual)
    weight, bias, mean, var = _contiguous(weight, bias, mean, var)
    given = means if means is None or weight is None else means * weight
    summed = need[1] or need[2] or (need[0] and not constant and means is None)
    options = {"eps": eps, "slope": negative_slope, "ACTIVATION": ACTIVATION_NUMBERS[activation]}
    read = {"grad": grad, "x": x, "residual": x if residual is None else residual, "mean": mean, "var": var}

    def run(tiling: Tiling) -> None:
        this = _Pass(x, groups, planar, tiling)
        shared = read | options | this.affine(weight, bias) | this.cut() | {"BEFORE": residual is not None}
        slopes = x if given is None else given.contiguous()
        if summed:
            partial = x.new_empty((2, this.rows, x.shape[1]), dtype=torch.float32)
            launch(
                norm_act_sums_kernel, this.grid, partial=partial, **shared,
                cost=lambda: Cost(15.0 * x.numel(), size(grad, x, residual, partial)),
            )  # fmt: skip
            if need[1] or need[2]:
                launch(
                    norm_act_parameter_gradients_kernel, (x.shape[1],), partial=partial, var=var,
                    dweight=partial if dw is None else dw, dbias=partial if db is None else db, eps=eps,
                    NEED_WEIGHT=need[1], NEED_BIAS=need[2], **this.joining(),
                    cost=lambda: Cost(4.0 * partial.numel(), size(partial, dw, db)),
                )  # fmt: skip
            if need[0] and not constant and means is None:
                slopes = _slopes(this, partial, var, weight, eps)
        if need[0] or need[3]:
            launch(
                norm_act_backward_kernel, this.grid, slopes=slopes, dx=dx, dresidual=dresidual,
                statistics=var.numel(), CONSTANT=constant, NEED_X=need[0], NEED_RESIDUAL=need[3], **shared,
                cost=lambda: Cost(18.0 * x.numel(), size(grad, x, residual, dx, dresidual)),
            )  # fmt: skip

    problem = x.shape, x.dtype, groups, planar, activation, residual is not None, constant, means is None, *need
    tuning.run_best("norm_act_backward", problem, tilings(x, planar), run)
    round_sums([dw, db], [dweight, dbias])
    return tuple(results)
