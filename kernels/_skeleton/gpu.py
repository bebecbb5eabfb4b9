"""skeleton in Triton: the same two calls on CUDA tensors, and interpreted on CPU tensors under TRITON_INTERPRET=1."""

import triton
import triton.language as tl

from .._gpu.blocks import rounded
from .._gpu.launch import Cost, launch, size
from .._gradients import float32_sums, round_sums
from . import gradients, output

BLOCK = 1024


@triton.jit
def skeleton_forward_kernel(x, scale, y, size, parts, BLOCK: tl.constexpr):
    """y (batch, size): a program takes BLOCK elements of one sample."""
    sample, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    within = tl.cast(part, tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = tl.cast(sample, tl.int64) * size + within
    value = tl.load(x + at, mask=within < size, other=0.0).to(tl.float32) * tl.load(scale + sample).to(tl.float32)
    tl.store(y + at, rounded(value, y.dtype.element_ty), mask=within < size)


@triton.jit
def skeleton_backward_kernel(
    grad, x, scale, dx, dscale, size, NEED_X: tl.constexpr, NEED_SCALE: tl.constexpr, BLOCK: tl.constexpr
):
    """dx (batch, size), dscale (batch,) float32: a program takes one sample, and so always sums in the same order."""
    sample = tl.cast(tl.program_id(0), tl.int64)
    factor = tl.load(scale + sample).to(tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        within = start + tl.arange(0, BLOCK)
        at = sample * size + within
        g = tl.load(grad + at, mask=within < size, other=0.0).to(tl.float32)
        if NEED_X:
            tl.store(dx + at, rounded(g * factor, dx.dtype.element_ty), mask=within < size)
        if NEED_SCALE:
            sums += g * tl.load(x + at, mask=within < size, other=0.0).to(tl.float32)
    if NEED_SCALE:
        tl.store(dscale + sample, tl.sum(sums, axis=0))


def forward(x, scale):
    y = output(x)
    elements = x.shape[1:].numel()
    parts = triton.cdiv(elements, BLOCK)
    launch(
        skeleton_forward_kernel, (len(x) * parts,), x=x.contiguous(), scale=scale.contiguous(), y=y, size=elements,
        parts=parts, BLOCK=BLOCK, cost=lambda: Cost(1.0 * x.numel(), size(x, scale, y)),
    )  # fmt: skip
    return y


def backward(grad, x, scale, need):
    dx, dscale = gradients(x, scale, need)
    (sums,) = float32_sums([dscale], need[1:])
    launch(
        skeleton_backward_kernel, (len(x),), grad=grad.contiguous(), x=x.contiguous(), scale=scale.contiguous(), dx=dx,
        dscale=dx if sums is None else sums, size=x.shape[1:].numel(), NEED_X=need[0], NEED_SCALE=need[1], BLOCK=BLOCK,
        cost=lambda: Cost(3.0 * x.numel(), size(grad, x, scale, dx, sums)),
    )  # fmt: skip
    round_sums([sums], [dscale])
    return dx, dscale
