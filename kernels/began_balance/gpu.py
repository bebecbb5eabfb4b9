"""began_balance in Triton: one program of one warp, since all the data is a few hundred bytes."""

import triton
import triton.language as tl

from .._gpu.blocks import single
from .._gpu.launch import Cost, launch, size
from . import output

BLOCK = 128  # values of the real and of the generated half that are read at a time: four to a thread


@triton.jit
def began_balance_forward_kernel(
    per_sample, content, k, numbers, n, gamma, lambda_k, lambda_r, BLOCK: tl.constexpr
):  # fmt: skip
    """numbers (6,) float32 = l_real, l_fake, loss_d, loss_g, the next k and the measure, from per_sample (2n,).

    Each lane sums every BLOCK-th value, then the lanes are summed as a tree: the order is always the same.
    """
    gamma, lambda_k, lambda_r = single(gamma), single(lambda_k), single(lambda_r)
    real, fake = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        real += tl.load(per_sample + at, mask=at < n, other=0.0).to(tl.float32)
        fake += tl.load(per_sample + n + at, mask=at < n, other=0.0).to(tl.float32)
    count = tl.cast(n, tl.float32)
    l_real, l_fake = tl.div_rn(tl.sum(real, axis=0), count), tl.div_rn(tl.sum(fake, axis=0), count)
    used = tl.load(k).to(tl.float32)
    balance = gamma * l_real - l_fake
    moved = used + lambda_k * balance
    tl.store(numbers, l_real)
    tl.store(numbers + 1, l_fake)
    tl.store(numbers + 2, l_real - used * l_fake)
    tl.store(numbers + 3, (1.0 - lambda_r) * l_fake + lambda_r * tl.load(content).to(tl.float32))
    # a clamp by comparisons: a NaN is neither below 0 nor above 1, so it stays
    tl.store(numbers + 4, tl.where(moved < 0.0, 0.0, tl.where(moved > 1.0, 1.0, moved)))
    tl.store(numbers + 5, l_real + tl.abs(balance))


def forward(per_sample, content, k, gamma, lambda_k, lambda_r):
    numbers = output(per_sample)
    launch(
        began_balance_forward_kernel, (1,), per_sample=per_sample.contiguous(), content=content, k=k, numbers=numbers,
        n=per_sample.shape[0] // 2, gamma=gamma, lambda_k=lambda_k, lambda_r=lambda_r, BLOCK=BLOCK, num_warps=1,
        cost=lambda: Cost(per_sample.numel() + 15.0, size(per_sample, content, k, numbers)),
    )  # fmt: skip
    return numbers
