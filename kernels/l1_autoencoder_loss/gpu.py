"""l1_autoencoder_loss in Triton: one pass over both tensors forward, two bits per element backward."""

import triton
import triton.language as tl

from .._gpu import tuning
from .._gpu.blocks import rounded
from .._gpu.launch import Cost, launch, size
from .._gpu.sums import per_sample_and_mean
from . import gradients, order, outputs

# elements of a program: 16 to a thread, which reads each tensor in four (float32) or two (half) accesses of 16 bytes
LARGEST, SMALLEST = 4096, 1024


@triton.jit
def l1_autoencoder_loss_forward_kernel(
    target, reconstruction, partial, signs, size, packed, parts, WITH_SIGNS: tl.constexpr, BLOCK: tl.constexpr
):
    """partial (batch, parts) float32: sums of |reconstruction - target| over BLOCK elements of (batch, size).

    signs (batch, packed) uint8: byte j has two bits for each of elements 4 j to 4 j + 3, which are the difference's
    sign as a two-bit whole number, -2 for a NaN, 0 past the last element.
    """
    sample, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    start = tl.cast(part, tl.int64) * BLOCK
    at = tl.arange(0, BLOCK)
    inside = start + at < size
    first = tl.cast(sample, tl.int64) * size + start
    b = tl.load(reconstruction + first + at, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(target + first + at, mask=inside, other=0.0).to(tl.float32)
    difference = b - a
    tl.store(partial + tl.program_id(0), tl.sum(tl.abs(difference), axis=0))
    if WITH_SIGNS:
        # two-bit whole numbers: -1 is 3 and -2 is 2; a NaN is neither above, below nor equal, so it takes 2
        above, below = difference > 0.0, difference < 0.0
        code = tl.where(above, 1, tl.where(below, 3, tl.where(difference == 0.0, 0, 2)))
        shift = 2 * tl.arange(0, 4)
        bytes_of_four = tl.sum(tl.reshape(code, (BLOCK // 4, 4)) << shift[None, :], axis=1)
        byte = start // 4 + tl.arange(0, BLOCK // 4)
        row = signs + tl.cast(sample, tl.int64) * packed
        tl.store(row + byte, bytes_of_four.to(tl.uint8), mask=byte < packed)


@triton.jit
def l1_autoencoder_loss_backward_kernel(
    signs, of_samples, of_samples_stride, of_mean, for_target, for_reconstruction, batch, size, packed, parts,
    HAS_SAMPLES: tl.constexpr, HAS_MEAN: tl.constexpr, TARGET: tl.constexpr, RECONSTRUCTION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients (batch, size) that are wanted (TARGET, RECONSTRUCTION): sign times upstream gradient / size.

    A program takes BLOCK elements. of_samples, of_mean: the gradients of the loss's per-sample values and of their
    mean, read where HAS_SAMPLES and HAS_MEAN.
    """
    sample, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    upstream = tl.cast(0.0, tl.float32)
    if HAS_MEAN:
        upstream += tl.div_rn(tl.load(of_mean).to(tl.float32), tl.cast(batch, tl.float32))
    if HAS_SAMPLES:
        upstream += tl.load(of_samples + tl.cast(sample, tl.int64) * of_samples_stride).to(tl.float32)
    coefficient = tl.div_rn(upstream, tl.cast(size, tl.float32))
    start = tl.cast(part, tl.int64) * BLOCK
    byte = start // 4 + tl.arange(0, BLOCK // 4)
    four = tl.load(signs + tl.cast(sample, tl.int64) * packed + byte, mask=byte < packed, other=0).to(tl.int32)
    code = (four[:, None] >> (2 * tl.arange(0, 4))[None, :]) & 3
    code = tl.reshape(code, (BLOCK,))
    sign = tl.where(code == 2, float("nan"), tl.where(code == 3, -1.0, code.to(tl.float32)))
    gradient = sign * coefficient
    at = tl.arange(0, BLOCK)
    inside = start + at < size
    first = tl.cast(sample, tl.int64) * size + start
    if RECONSTRUCTION:
        of = for_reconstruction.dtype.element_ty
        tl.store(for_reconstruction + first + at, rounded(gradient, of), mask=inside)
    if TARGET:
        tl.store(for_target + first + at, rounded(-gradient, for_target.dtype.element_ty), mask=inside)


def _blocks(batch: int, elements: int) -> tuple[int, int]:
    """Gives the elements of a program and the programs of a sample: large blocks where they fill the GPU twice over."""
    block = LARGEST if batch * triton.cdiv(elements, LARGEST) >= 2 * tuning.processors() else SMALLEST
    block = min(block, max(128, triton.next_power_of_2(elements)))
    return block, triton.cdiv(elements, block)


def _warps(block: int) -> int:
    return max(1, min(8, block // 256))


def forward(target, reconstruction, with_signs):
    per_sample, mean, signs = outputs(reconstruction, with_signs)
    batch = target.shape[0]
    dense = order(reconstruction)
    target, reconstruction = target.contiguous(memory_format=dense), reconstruction.contiguous(memory_format=dense)
    elements = target.shape[1:].numel()
    block, parts = _blocks(batch, elements)
    partial = per_sample.new_empty((batch, parts))
    launch(
        l1_autoencoder_loss_forward_kernel, (batch * parts,), target=target, reconstruction=reconstruction,
        partial=partial, signs=signs, size=elements, packed=signs.shape[1], parts=parts,
        WITH_SIGNS=with_signs, BLOCK=block, num_warps=_warps(block),
        cost=lambda: Cost((8.0 if with_signs else 3.0) * target.numel(), size(target, reconstruction, partial, signs)),
    )  # fmt: skip
    per_sample_and_mean(partial, per_sample, mean, elements)
    return per_sample, mean, signs


def backward(signs, like, grad_per_sample, grad_mean, need):
    for_target, for_reconstruction = gradients(like, need)
    batch, elements = like.shape[0], like.shape[1:].numel()
    block, parts = _blocks(batch, elements)
    signs = signs.contiguous()
    launch(
        l1_autoencoder_loss_backward_kernel, (batch * parts,), signs=signs,
        of_samples=signs if grad_per_sample is None else grad_per_sample,
        of_samples_stride=0 if grad_per_sample is None else grad_per_sample.stride(0),
        of_mean=signs if grad_mean is None else grad_mean, for_target=for_target,
        for_reconstruction=for_reconstruction, batch=batch, size=elements, packed=signs.shape[1], parts=parts,
        HAS_SAMPLES=grad_per_sample is not None, HAS_MEAN=grad_mean is not None, TARGET=need[0],
        RECONSTRUCTION=need[1], BLOCK=block, num_warps=_warps(block),
        cost=lambda: Cost(5.0 * like.numel(), size(signs, grad_per_sample, grad_mean, for_target, for_reconstruction)),
    )  # fmt: skip
    return for_target, for_reconstruction
