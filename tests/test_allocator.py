"""Freed memory stays with the process, whatever the size of the block."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from engine.allocator import keep_freed_memory
kept = keep_freed_memory() if {keep} else None
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(4):
    faults()
print(kept, faults() + faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the page faults of Linux")
def test_large_blocks_are_taken_again():
    def run(keep: bool) -> tuple[str, int]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(keep=keep)], check=True, capture_output=True, text=True
        )
        kept, faults = done.stdout.split()
        return kept, int(faults)

    kept, faults = run(True)
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert faults < 20 < run(False)[1]  # 64 MiB are 16,384 pages, or 32 huge ones
