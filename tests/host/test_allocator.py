"""Freed memory stays with the process, whatever the size of the blocks."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from engine.host.allocator import keep_freed_memory
kept = keep_freed_memory() if {keep} else None
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(n << 20) for n in (4, 13, 13, 3, 13, 1)]
    held = held[::2] + [torch.ones(13 << 20)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
rounds = [faults() for _ in range(12)]
print(kept, sum(rounds[-4:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the page faults of Linux")
def test_steps_take_again_what_they_gave_back():
    def run(keep: bool) -> tuple[str, int]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(keep=keep)], check=True, capture_output=True, text=True
        )
        kept, faults = done.stdout.split()
        return kept, int(faults)

    kept, faults = run(True)
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert faults < 50 < run(False)[1]  # 200 MiB a round are 51,200 pages, or 100 huge ones
