"""`python -m benchmarks.gpu OUT` (make gpu): everything that a GPU can show of Kiln, in under eight minutes.

The parts: facts about build and machine, the GPU tests, compute-sanitizer, the benchmark, the roofline's error and a
real training run. Each part runs in a process of its own and has a budget of seconds; a part that fails or outlasts it
is a row that says so, and the others go on. OUT gets gpu.json, gpu.log (all that the parts print), metrics.jsonl and
samples.png.
"""

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.checkout import commit
from benchmarks.gpu.parts import (
    FAILED,
    NOT_RUN,
    Outcome,
    Part,
    Place,
    benchmark,
    machine,
    roofline,
    sanitized,
    tests,
    training,
)
from benchmarks.timing.table import Table
from engine import cli
from engine.errors import InputError
from engine.host import atomic_files

SCHEMA = 1
SECONDS = 460  # of all parts together; the rest of eight minutes is for starting processes and for builds
PARTS = (
    Part("machine", 10, machine),
    Part("GPU tests", 100, tests),
    Part("steps, bf16", 90, benchmark("step", "bf16", "--filter", "64 filters")),
    Part("operators, bf16", 75, benchmark("ops", "bf16", "--quick")),
    Part("training, bf16", 90, training),
    Part("memcheck", 50, sanitized("memcheck")),
    Part("racecheck", 50, sanitized("racecheck")),
    Part("roofline", 40, roofline),
    Part("steps, fp32", 60, benchmark("step", "fp32", "--filter", "64 filters")),
    Part("operators, fp32", 50, benchmark("ops", "fp32", "--quick")),
    # last, in the time that is left, because it compiles longest
    Part("steps, bf16, max-autotune", 120, benchmark("step", "bf16", "--filter", "64 filters", "--autotune")),
)


def run_all(out: Path, parts: tuple[Part, ...] = PARTS, seconds: float = SECONDS) -> list[dict]:
    """Runs the parts in turn, each for its seconds at most and all for `seconds`; prints and returns their rows."""
    started, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="kiln-gpu-") as scratch:
        for part in parts:
            left = seconds - (time.monotonic() - started)
            print(f"{part.name} ...", flush=True)
            part_started = time.monotonic()
            outcome = _outcome(part, Place(out, Path(scratch), min(part.seconds, left)))
            took = time.monotonic() - part_started
            rows.append({"part": part.name, "seconds": round(took, 1), **asdict(outcome)})
            print(f"    {outcome.status}, {took:.0f} s: {outcome.line}", flush=True)
    return rows


def _outcome(part: Part, place: Place) -> Outcome:
    """A part's outcome, whatever happens in it."""
    if place.seconds < min(part.seconds, 10):
        return Outcome(NOT_RUN, "no time was left")
    try:
        return part.run(place)
    except Exception as error:  # whatever it is, the other parts run
        return Outcome(FAILED, f"{type(error).__name__}: {error}")


def tables(rows: list[dict]) -> list[Table]:
    """Two tables: what each part came to, and the speed-ups if there are any."""
    parts = Table("Parts", [("part", 26), ("status", 8), ("seconds", 7), ("", 100)], left=2)
    speed = Table(
        "Fused on this GPU",
        [("", 60), ("precision", 9), ("fused us", 9), ("eager x", 8), ("compile x", 9), ("strong x", 8), ("memory", 6)],
    )
    for row in rows:
        parts.add([row["part"], row["status"], f"{row['seconds']:.0f}", row["line"]])
        for figures in row["figures"]:
            speed.add(figures)
    return [parts, *([speed] if speed.rows else [])]


def main(argv: list[str]) -> int:
    """Runs the parts and writes gpu.json; returns 1 if one failed, else 0."""
    if len(argv) != 1 or argv[0].startswith("-"):
        raise InputError("give one folder for the results: python -m benchmarks.gpu OUT (make gpu OUT=folder)")
    if not torch.cuda.is_available():
        raise InputError(
            "torch finds no CUDA device; on a machine without one `make test` and `python -m benchmarks` run"
        )
    out = Path(argv[0]).resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.log").write_text("")
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; name another folder") from None
    started = time.monotonic()
    rows = run_all(out)
    shown = tables(rows)
    print(*shown, sep="\n")
    everything = {"schema": SCHEMA, "commit": commit(), "seconds": round(time.monotonic() - started, 1), "parts": rows}
    atomic_files.write_text(out / "gpu.json", json.dumps(everything, indent=1))
    print(f"\n{everything['seconds']:.0f} s in all; {out / 'gpu.json'}")
    return 1 if any(row["status"] == FAILED for row in rows) else 0


if __name__ == "__main__":
    cli.run("benchmarks.gpu", main)
