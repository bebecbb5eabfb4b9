"""What happens where memory cannot be had: each allocation of a native call, or of torch within it, fails in turn.

`python -m tests.support.failing_allocations EVERY` in a process where `preload` stands before the C library's
allocators tries every EVERY-th sample of each operator and prints, as JSON, how many failures of each kind it met.
"""

import ctypes
import json
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from engine.kernels import _spec
from tests.support.operator_digests import Case, digest

# of scratch memory and of tensors: the allocation after `left` others of these libraries fails, once
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
static long left = -1, met;
void fail_after(long others) { left = others, met = 0; }
long allocations(void) { return met; }
static int fails(void *caller) {
    Dl_info from;
    if (!dladdr(caller, &from)) return 0;
    if (!strstr(from.dli_fname, "/_native.") && !strstr(from.dli_fname, "/libc10.")) return 0;
    __atomic_fetch_add(&met, 1, __ATOMIC_RELAXED);
    return __atomic_fetch_sub(&left, 1, __ATOMIC_RELAXED) == 0;
}
void *aligned_alloc(size_t alignment, size_t size) {
    void *(*next)(size_t, size_t) = dlsym(RTLD_NEXT, "aligned_alloc");
    return fails(__builtin_return_address(0)) ? errno = ENOMEM, NULL : next(alignment, size);
}
int posix_memalign(void **to, size_t alignment, size_t size) {
    int (*next)(void **, size_t, size_t) = dlsym(RTLD_NEXT, "posix_memalign");
    return fails(__builtin_return_address(0)) ? ENOMEM : next(to, alignment, size);
}
"""
THREADS = 2


def preload(folder: Path) -> Path:
    """Builds the library to preload in this folder."""
    source, library = folder / "failing.c", folder / "failing.so"
    source.write_text(SOURCE)
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "a C compiler builds Kiln"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", source, "-o", library, "-ldl"], check=True)
    return library


def in_new_thread(run: Callable[[], None]) -> None:
    """Runs in a thread without scratch memory, whose own team has none either."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def fail_each(case: Case, allocator: ctypes.CDLL, met: Counter[str]) -> None:
    """Fails each allocation of the case once: then it raises or is right, and its next call is right."""
    expected = digest(case)
    counts: list[int] = []

    def count() -> None:
        allocator.fail_after(1 << 40)
        assert digest(case) == expected
        counts.append(allocator.allocations())

    in_new_thread(count)
    for others in range(counts[0]):
        in_new_thread(lambda others=others: _fail_one(case, allocator, others, expected, met))


def _fail_one(case: Case, allocator: ctypes.CDLL, others: int, expected: str, met: Counter[str]) -> None:
    allocator.fail_after(others)
    try:
        found = digest(case)
    except MemoryError as error:
        assert "no memory" in str(error), error
        met["MemoryError"] += 1
    except RuntimeError as error:  # torch's own, for a tensor
        assert "memory" in str(error), error
        met["of torch"] += 1
    else:
        assert found == expected, "wrong after an allocation failed"
        met["right"] += 1
    allocator.fail_after(-1)
    assert digest(case) == expected, "the call after a failed one is wrong"


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    loaded = ctypes.CDLL(None)
    loaded.fail_after.argtypes, loaded.allocations.restype = [ctypes.c_long], ctypes.c_long
    met: dict[str, Counter[str]] = {}
    for spec in _spec.specs_with_skeleton().values():
        for sample in spec.samples[:: int(sys.argv[1])]:
            fail_each((spec, sample), loaded, met.setdefault(spec.operator, Counter()))
    print(json.dumps(met))
