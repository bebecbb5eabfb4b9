"""`python -m benchmarks.gpu.one_step NAME PRECISION SETTING [profile|ncu]`: one competitor of the suite `step`, alone.

In a process of its own a competitor cannot take another with it: after a recording that fails or a lost context nothing
that follows can be trusted. The last line printed is JSON: seconds of a step, memory and losses.

profile: prints a table of the step's kernels by GPU time, launched one by one
ncu:     runs a single step between cudaProfilerStart and cudaProfilerStop, which ncu looks at, and measures nothing
"""

import json
import sys
import time

import torch

from benchmarks.suites import step
from benchmarks.timing.measure import PRECISIONS, allocation_peak, interleaved
from engine.host.tf32 import tf32_allowed

ROWS = 45  # of the table of kernels
STEPS = 3  # that the table is of
ROUNDS = 10


def main(argv: list[str], device: str = "cuda") -> int:
    """Measures or profiles the competitor."""
    name, precision, setting, *more = argv
    begun = time.perf_counter()
    with tf32_allowed(PRECISIONS[precision].tf32):
        system, batch = step.build(name, step.SETTINGS[setting], device, precision)
        losses = [{loss: float(value) for loss, value in system.step(batch).items()} for _ in range(step.CHECKED)]
        built = time.perf_counter() - begun
        if more == ["ncu"]:
            return _between_marks(lambda: system.step(batch))
        if more == ["profile"]:
            print(kernels(lambda: system.step(batch), device))
        peak = allocation_peak(lambda: system.step(batch), device)
        call = step.stepper(name, system, batch)
        timing = interleaved({name: call}, rounds=ROUNDS)[name]
        last = {loss: float(value) for loss, value in call().items()}
    row = {"name": name, "precision": precision, "setting": setting, "seconds": timing.median}
    row |= {"quartiles": timing.quartiles, "samples": timing.samples, "allocated": peak, "built": round(built, 1)}
    print(json.dumps(row | {"losses": losses, "last": last}))
    return 0


def kernels(call, device: str) -> str:
    """A table of the kernels of STEPS calls, those that take longest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(STEPS):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
    by = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=70)


def _between_marks(call) -> int:
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
