"""Rows of a result and cells of its tables: what the suites share that compare fused with baselines."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from benchmarks.arguments import Arguments
from benchmarks.timing.measure import Limits, Timing
from benchmarks.timing.table import Table, ms, percent

BASELINES = ("eager", "compile", "strong")
BF16 = "bf16-"  # begins the names of competitors that compute in bfloat16 beside fused in float32


def short(name: str) -> str:
    """A row's name without its layout if that is channels_last, the usual one; another layout is shortened."""
    return name.removesuffix(" channels_last").replace(" memory_format torch.", " ").removesuffix("_format")


def best(timings: dict[str, Timing], baseline: str) -> Timing | None:
    """A competitor in the better of its layouts; None if it did not run."""
    ran = [timing for name, timing in timings.items() if name.split()[0] == baseline]
    return min(ran, key=lambda timing: timing.median, default=None)


def row(
    suite: str, name: str, timings: dict[str, Timing], failed: list[str], left_out: dict[str, str] | None = None
) -> dict:
    """One result: timings and the speed-up against each baseline, or what failed in the equivalence check.

    timings:  by competitor: "fused", or a baseline and its layout, with BF16 before it for its form in bfloat16
    failed:   what differs, empty if nothing does
    left_out: competitors that could not run, and why
    """
    if failed:
        return {"suite": suite, "name": name, "failed": failed}
    fused = timings["fused"].median
    fastest = {baseline: best(timings, baseline) for baseline in BASELINES}
    if suite == "ops":
        fastest["strong"] = fastest["strong"] or fastest["eager"]  # a spec without `strong`: the reference is strongest
    allocated = {n: [t.allocated for k, t in timings.items() if k.split()[0] == n] for n in ("fused", *BASELINES)}
    return {
        "suite": suite,
        "name": name,
        "allocated": {n: min(peaks) for n, peaks in allocated.items() if peaks and None not in peaks},
        "speedup": {name: timing.median / fused for name, timing in fastest.items() if timing},
        "bf16": {name: timing.median / fused for name in BASELINES if (timing := best(timings, BF16 + name))},
        "left_out": left_out or {},
        "timings": {n: t.to_json() for n, t in timings.items()},
    }


def shares(entry: dict, limits: Limits, flops: float | None, moved: float | None) -> dict:
    """The row with its FLOPs, its least bytes, and the shares of the machine's limits that both make over its time.

    flops: that the algebra needs; moved: bytes. Each is None if unknown.
    """
    seconds = entry["timings"]["fused"]["median"]
    return entry | {"algebra_flops": flops, "bytes": moved, **limits.shares(seconds, flops, moved)}


def within(arguments: Arguments, cases: list, name: Callable[[object], str], rows: list[dict], suite: str) -> Iterator:
    """Yields cases until the budget of seconds is spent; enters a row for each that is left out, and prints it.

    The rows that a case has added are appended to --rows before the next case begins.
    """
    started, saved = time.monotonic(), len(rows)
    for case in cases:
        if time.monotonic() - started > arguments.budget:
            why = f"the budget of {arguments.budget:g} s was spent"
            rows.append({"suite": suite, "name": name(case), "not_run": why})
            tqdm.write(f"{name(case)}: not run, {why}")
        else:
            yield case
        saved += keep(arguments.rows, rows[saved:])


def keep(file: Path | None, rows: list[dict]) -> int:
    """Appends rows to a file of JSON lines (None: to no file), and returns how many these are."""
    if file:
        with file.open("a") as stream:
            stream.writelines(json.dumps(entry) + "\n" for entry in rows)
    return len(rows)


def kept(file: Path | None) -> int:
    """How many rows a file holds that `keep` writes."""
    return len(file.read_text().splitlines()) if file and file.exists() else 0


def comparison(title: str, bf16: bool = False) -> Table:
    """An empty table of fused beside the baselines; bf16: with a column of the faster baseline in bfloat16."""
    against = [column for name in BASELINES for column in ((f"{name} ms", 10), ("x", 6))]
    against += [("bf16 x", 6)] * bf16
    return Table(title, [("", 45), ("fused ms", 8), ("quartiles", 17), *against, ("matrix", 6), ("copy", 5)])


def cells(entry: dict, bf16: bool = False) -> list[str]:
    """The cells of a row of `comparison`."""
    name = short(entry["name"])
    if "failed" in entry:
        return [name, f"DIFFERENT: {entry['failed'][0]}"]
    timings, speedup = entry["timings"], entry["speedup"]
    fused = timings["fused"]["median"]
    low, high = timings["fused"]["quartiles"]
    against = [
        text
        for baseline in BASELINES
        for text in ((ms(fused * speedup[baseline]), f"{speedup[baseline]:.2f}") if baseline in speedup else ("-", "-"))
    ]
    against += [f"{min(entry['bf16'].values()):.2f}" if entry["bf16"] else "-"] * bf16
    limits = [percent(entry[share]) for share in ("share_of_matrix", "share_of_copy")]
    return [name, ms(fused), f"{ms(low)}..{ms(high)}", *against, *limits]


def guarded(arguments: Arguments, measure: Callable, *rest: object) -> tuple[dict[str, Timing], list[str]]:
    """Returns measure(*rest). On a GPU an error becomes this case's failure, so that the other cases are kept."""
    try:
        return measure(*rest)
    except Exception as error:
        if arguments.device != "cuda":
            raise
        return {}, [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]


def one_line(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {' '.join(first.split())[:300]}"


def tick(bar: tqdm) -> Callable[[int], None]:
    """A call for each round that moves a bar by one."""
    return lambda _: bar.update()
