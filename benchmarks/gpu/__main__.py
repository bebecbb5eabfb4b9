"""`python -m benchmarks.gpu OUT` (make gpu): everything that a GPU can show of Kiln.

Each part runs in processes of its own and has a budget of seconds; a part that fails or outlasts it is a row that says
so, and the others go on. OUT gets, as it comes: gpu.json (after each part), rows.jsonl (after each result),
failures.txt (what failed, with its traceback), gpu.log (all that the parts print), profile.txt, samples.png,
metrics.jsonl and refiner.safetensors.
"""

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from benchmarks.checkout import commit
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.place import FAILED, NOT_RUN, Outcome, Part, Place
from benchmarks.timing.table import Table
from engine import cli, ops
from engine.errors import InputError
from engine.host import atomic_files

SCHEMA = 2
FILES = ("gpu.json", "rows.jsonl", "failures.txt", "gpu.log", "profile.txt")  # that begin anew with each run
LEAST_SECONDS = 10  # a part that has less is not begun, unless it needs less
MEMORY = 8 << 30  # bytes of the GPU that must be free: several processes work side by side
_PARTS = "; ".join(f"{part.name}: {part.shows} ({part.seconds:g} s)" for part in PARTS)


@dataclass(frozen=True)
class Options:
    """Options of the run."""

    out: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="OUT")] = None
    """Folder for the results."""
    parts: Annotated[
        tuple[str, ...], tyro.conf.arg(help=f"Only these parts, in this order. In order of the list: {_PARTS}.")
    ] = ()
    seconds: float = float("inf")
    """Of all parts together; those that find no time left are named."""

    def chosen(self) -> tuple[Part, ...]:
        """The parts to run. Raises InputError for an unknown name."""
        by_name = {part.name: part for part in PARTS}
        # "a,b" too, as people write it
        names = [name for word in self.parts for name in word.split(",") if name]
        if unknown := sorted(set(names) - set(by_name)):
            raise InputError(f"--parts: there is no {', '.join(unknown)}; there are {', '.join(by_name)}")
        return tuple(by_name[name] for name in names) or PARTS


def run_all(out: Path, parts: Sequence[Part], seconds: float) -> list[dict]:
    """Runs the parts in turn, each for its seconds at most and all for `seconds`; prints, keeps and returns rows."""
    started, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="kiln-gpu-") as scratch:
        for part in parts:
            left = seconds - (time.monotonic() - started)
            print(f"{part.name} ...", flush=True)
            part_started = time.monotonic()
            place = Place(part.name, out, Path(scratch), min(part.seconds, left))
            outcome = _outcome(part, place)
            took = time.monotonic() - part_started
            rows.append({"part": part.name, "seconds": round(took, 1), **asdict(outcome)})
            print(f"    {outcome.status}, {took:.0f} s: {outcome.line}", flush=True)
            whole = {
                "schema": SCHEMA,
                "commit": commit() or Kit.here().commit,
                "seconds": round(time.monotonic() - started, 1),
            }
            atomic_files.write_text(out / "gpu.json", json.dumps(whole | {"parts": rows}, indent=1, default=str))
    return rows


def _outcome(part: Part, place: Place) -> Outcome:
    """A part's outcome, whatever happens in it."""
    if place.seconds < min(part.seconds, LEAST_SECONDS):
        return Outcome(NOT_RUN, "no time was left")
    try:
        return part.run(place)
    except Exception as error:  # whatever it is, the other parts run
        place.failure(f"{type(error).__name__}", str(error))
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


def check_gpu() -> None:
    """Raises InputError, before any work, where there is no GPU, it cannot run the kernels, or its memory is taken."""
    if not torch.cuda.is_available():
        raise InputError(
            "torch finds no CUDA device; on a machine without one `make test` and `python -m benchmarks` run"
        )
    ops.require("cuda")
    free, whole = torch.cuda.mem_get_info()
    if free < MEMORY:
        raise InputError(
            f"{free / 2**30:.1f} of {whole / 2**30:.1f} GiB of the GPU's memory are free and the parts need "
            f"{MEMORY / 2**30:.0f}; end what else uses it, or take a larger GPU"
        )


def main(argv: list[str]) -> int:
    """Runs the parts; returns 1 if one failed, else 0."""
    started = time.monotonic()
    options = cli.parse(Options, argv, prog="python -m benchmarks.gpu", description=__doc__)
    if options.out is None:
        raise InputError("give one folder for the results: python -m benchmarks.gpu OUT (make gpu OUT=folder)")
    parts = options.chosen()
    Kit.here().unpack()
    check_gpu()
    out = options.out.resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (out / name).write_text("")
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; name another folder") from None
    rows = run_all(out, parts, options.seconds - (time.monotonic() - started))
    print(*tables(rows), sep="\n")
    print(f"\n{time.monotonic() - started:.0f} s in all; {out / 'gpu.json'}")
    return 1 if any(row["status"] == FAILED for row in rows) else 0


if __name__ == "__main__":
    # what several processes compile is found by all of them
    os.environ.setdefault("TRITON_CACHE_DIR", str(Kit.here().triton_cache))
    cli.run("benchmarks.gpu", main)
