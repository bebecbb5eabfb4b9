"""The last step of a loss in Triton: sums each sample's parts in a fixed order, and takes the mean over the batch."""

import triton
import triton.language as tl
from torch import Tensor

from .launch import Cost, launch, size

_ROWS, _COLUMNS = 16, 64


@triton.jit
def per_sample_and_mean_kernel(
    parts, per_sample, mean, batch, columns, divisor, ROOT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """per_sample (batch,) = row sums of parts (batch, columns) / divisor, or their roots (ROOT); mean () = their mean.

    One program; it sums in float64. The mean of no samples is NaN.
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
        # in float32: the division and the root of float64 are subroutines with a stack
        value = tl.div_rn(sums.to(tl.float32), tl.cast(divisor, tl.float32))
        if ROOT:
            value = tl.sqrt_rn(value)
        tl.store(per_sample + row, value, mask=row < batch)
        total += value.to(tl.float64)
    tl.store(mean, tl.div_rn(tl.sum(total, axis=0).to(tl.float32), tl.cast(batch, tl.float32)))


def per_sample_and_mean(parts: Tensor, per_sample: Tensor, mean: Tensor, divisor: int, root: bool = False) -> None:
    """Writes per_sample (B,) = row sums of parts (B, columns) / divisor, with `root` their square roots, and mean ().

    All tensors are float32.
    """
    batch, columns = parts.shape
    launch(
        per_sample_and_mean_kernel, (1,), parts=parts, per_sample=per_sample, mean=mean, batch=batch, columns=columns,
        divisor=divisor, ROOT=root, ROWS=_ROWS, COLUMNS=_COLUMNS,
        cost=lambda: Cost(float(parts.numel()), size(parts, per_sample, mean)),
    )  # fmt: skip
