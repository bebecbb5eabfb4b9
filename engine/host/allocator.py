"""The C library's allocator, told to keep freed memory: what one training step gives back, the next one takes."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Freed blocks of any size stay with this process; by default large ones go back to the system at once.

    A step allocates the same large tensors as the one before it, and every page that comes anew from the system costs a
    fault and is cleared first: about a tenth of a training step on the CPU. Returns whether the C library takes the
    setting (glibc does).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST))
