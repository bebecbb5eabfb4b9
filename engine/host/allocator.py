"""Tells the C library's allocator to keep freed memory, so that the next training step reuses it."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed blocks of every size in this process; by default large ones go back to the system at once.

    Every step allocates the same large tensors as the step before. Each page that comes anew from the system costs a
    page fault and is cleared first, which takes about a tenth of a training step on the CPU. Returns whether the C
    library accepts the setting (glibc does).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST))
