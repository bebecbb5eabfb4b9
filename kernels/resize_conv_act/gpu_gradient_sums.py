"""The last step of resize_conv_act's weight and bias gradients in Triton: sums of their parts in a fixed order."""

import triton
import triton.language as tl
from torch import Tensor

from .._gpu.blocks import rounded
from .._gpu.launch import Cost, launch, size


@triton.jit(do_not_specialize=["splits", "C", "CP", "N", "taps", "first", "by_c", "by_n", "bias_count"])
def sum_gradients_kernel(
    partial, splits, dweight, C, CP, N, NP, taps, first, by_c, by_n, bias_rows, bias_count, dbias, outputs,
    FOLD: tl.constexpr, WITH_WEIGHT: tl.constexpr, WITH_BIAS: tl.constexpr,
    BC: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Sums partial (splits, taps, CP, NP) to dweight, and bias_rows (bias_count, outputs) to dbias (outputs,).

    The order of every sum is fixed. The kernel of channels c < C and n < N is at dweight + first + c by_c + n by_n.
    FOLD: each of its 3x3 taps is the sum of the four of 4x4 taps that hold it. Program axis 1 counts the kernel's taps,
    then the bias.
    """
    block, tap = tl.program_id(0), tl.program_id(1)
    if WITH_WEIGHT and tap < taps:
        n_blocks = tl.cdiv(N, BN)
        n, c = (block % n_blocks) * BN + tl.arange(0, BN), block // n_blocks * BC + tl.arange(0, BC)
        inside = (c < C)[:, None] & (n < N)[None, :]
        total = tl.zeros((BC, BN), tl.float32)
        for split in range(splits):
            start = partial + tl.cast(split, tl.int64) * ((16 if FOLD else taps) * CP) * NP
            if FOLD:
                for i in tl.static_range(2):
                    for j in tl.static_range(2):
                        folded = (2 - tap // 3 + i) * 4 + 2 - tap % 3 + j
                        total += tl.load(start + (folded * CP + c)[:, None] * NP + n[None, :], mask=inside, other=0.0)
            else:
                total += tl.load(start + (tap * CP + c)[:, None] * NP + n[None, :], mask=inside, other=0.0)
        to = dweight + first + (c * by_c)[:, None] + (n * by_n)[None, :] + tap
        tl.store(to, rounded(total, dweight.dtype.element_ty), mask=inside)
    elif WITH_BIAS:  # noqa: SIM102 (known when this is compiled; block is not)
        if block * BN < outputs:
            n = block * BN + tl.arange(0, BN)
            sums = tl.zeros((BN,), tl.float32)
            for r0 in range(0, bias_count, BR):
                r = r0 + tl.arange(0, BR)
                inside = (r < bias_count)[:, None] & (n < outputs)[None, :]
                sums += tl.sum(tl.load(bias_rows + r[:, None] * outputs + n[None, :], mask=inside, other=0.0), axis=0)
            tl.store(dbias + n, rounded(sums, dbias.dtype.element_ty), mask=n < outputs)


def sum_gradients(
    partial: Tensor | None, c: tuple[int, int], n: tuple[int, int], dweight: Tensor, first: int,
    bias_rows: Tensor | None, dbias: Tensor, *, fold: bool,
) -> None:  # fmt: skip
    """Writes kernels of dweight (A, B, K, K) as sums of partial, and dbias of bias_rows; what is None has no sums.

    partial:   (splits, taps, C, N) float32, its channels padded
    c, n:      how many channels there are on either axis of partial, and how far apart they are in dweight
    first:     element of dweight that the first kernel begins with
    bias_rows: (rows, outputs) float32
    """
    read = bias_rows if partial is None else partial  # stands for the one that is not there
    taps = 0 if partial is None else dweight.shape[-1] ** 2
    outputs = 0 if bias_rows is None else bias_rows.shape[1]
    bc, bn = 16, min(64, max(16, triton.next_power_of_2(n[0] if taps else outputs)))
    blocks = max(triton.cdiv(c[0], bc) * triton.cdiv(n[0], bn) if taps else 0, triton.cdiv(outputs, bn))
    launch(
        sum_gradients_kernel, (blocks, taps + (outputs > 0)), partial=read, splits=len(read), dweight=dweight, C=c[0],
        CP=read.shape[-2], N=n[0], NP=read.shape[-1], taps=taps, first=first, by_c=c[1], by_n=n[1],
        bias_rows=read if bias_rows is None else bias_rows, bias_count=0 if bias_rows is None else len(bias_rows),
        dbias=dbias, outputs=outputs,
        FOLD=fold, WITH_WEIGHT=taps > 0, WITH_BIAS=outputs > 0, BC=bc, BN=bn, BR=64,
        cost=lambda: Cost(
            (4.0 if fold else 1.0) * (0 if partial is None else partial.numel()),
            size(partial, bias_rows) + taps * c[0] * n[0] * dweight.element_size() + outputs * dbias.element_size(),
        ),
    )  # fmt: skip
