"""The last step of a loss in Triton: the parts of each sample summed in their order, and the mean over the batch."""

import triton
import triton.language as tl
from torch import Tensor

from .launch import Cost, launch, size

_ROWS, _COLUMNS = 16, 64


@triton.jit
def per_sample_and_mean_kernel(
    parts, per_sample, mean, batch, columns, divisor, ROOT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """per_sample (batch,) = sums of the rows of parts (batch, columns) / divisor, their root where ROOT; mean () of it.

    One program, sums in float64. The mean of no samples is NaN.
    """
    total = tl.zeros((ROWS,), tl.float64)
    for first in range(0, batch, ROWS):
        row = first + tl.arange(0, ROWS)
        sums = tl.zeros((ROWS,), tl.float64)
        for start in range(0, columns, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = (row < batch)[:, None] & (column < columns)[None, :]
            part = tl.load(parts + tl.cast(row, tl.int64)[:, None] * columns + column[None, :], mask=inside, other=0.0)
            sums += tl.sum(part.to(tl.float64), axis=1)
        # the division and the root of float64 are subroutines with a stack
        value = tl.div_rn(sums.to(tl.float32), tl.cast(divisor, tl.float32))
        if ROOT:
            value = tl.sqrt_rn(value)
        tl.store(per_sample + row, value, mask=row < batch)
        total += value.to(tl.float64)
    tl.store(mean, tl.div_rn(tl.sum(total, axis=0).to(tl.float32), tl.cast(batch, tl.float32)))


def per_sample_and_mean(parts: Tensor, per_sample: Tensor, mean: Tensor, divisor: int, root: bool = False) -> None:
    """per_sample (B,) and mean () of parts (B, columns), all float32: sums / divisor, their square root with root."""
    launch(
        per_sample_and_mean_kernel, (1,), parts, per_sample, mean, *parts.shape, divisor,
        ROOT=root, ROWS=_ROWS, COLUMNS=_COLUMNS,
        cost=lambda: Cost(float(parts.numel()), size(parts, per_sample, mean)),
    )  # fmt: skip
