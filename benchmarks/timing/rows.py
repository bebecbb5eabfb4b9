"""A result's rows and its tables' cells: what suites that set fused against baselines share."""

import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from benchmarks.arguments import Arguments
from benchmarks.timing.measure import Limits, Timing
from benchmarks.timing.table import Table, ms, percent
from engine.config import TrainConfig

BASELINES = ("eager", "compile", "strong")


def short(name: str) -> str:
    """A row's name without its layout where that is the usual one, and in short where it is not."""
    return name.removesuffix(" channels_last").replace(" memory_format torch.", " ").removesuffix("_format")


def best(timings: dict[str, Timing], baseline: str) -> Timing | None:
    """A competitor in the better of its layouts; None where it did not run."""
    ran = [timing for name, timing in timings.items() if name.split()[0] == baseline]
    return min(ran, key=lambda timing: timing.median, default=None)


def row(suite: str, name: str, timings: dict[str, Timing], failed: list[str]) -> dict:
    """One result: the speed-up against each baseline; none of it where the equivalence check failed."""
    if failed:
        return {"suite": suite, "name": name, "failed": failed}
    fused = timings["fused"].median
    found = {baseline: best(timings, baseline) for baseline in BASELINES}
    if suite == "ops":
        found["strong"] = found["strong"] or found["eager"]  # where no library part is stronger than the reference
    allocated = {n: [t.allocated for k, t in timings.items() if k.split()[0] == n] for n in ("fused", *BASELINES)}
    return {
        "suite": suite,
        "name": name,
        "allocated": {n: min(taken) for n, taken in allocated.items() if taken and None not in taken},
        "speedup": {baseline: found[baseline].median / fused for baseline in BASELINES if found[baseline]},
        "timings": {n: t.to_json() for n, t in timings.items()},
    }


def shares(entry: dict, limits: Limits, flops: float | None, moved: float | None) -> dict:
    """The row with its rates: FLOPs that the algebra needs and least bytes, over time, as shares of the limits."""
    seconds = entry["timings"]["fused"]["median"]
    return entry | {"algebra_flops": flops, "bytes": moved, **limits.shares(seconds, flops, moved)}


def within(arguments: Arguments, cases: list, name: Callable[[object], str], rows: list[dict], suite: str) -> Iterator:
    """The cases begun before the budget is spent; the others become rows that say so."""
    begun = time.monotonic()
    for case in cases:
        if time.monotonic() - begun > arguments.budget:
            rows.append(
                {"suite": suite, "name": name(case), "not_run": f"the budget of {arguments.budget:g} s was spent"}
            )
            tqdm.write(f"{name(case)}: not run, the budget of {arguments.budget:g} s was spent")
        else:
            yield case


def comparison(title: str) -> Table:
    """The table of the ops and step suites."""
    against = [column for name in BASELINES for column in ((f"{name} ms", 10), ("x", 6))]
    return Table(title, [("", 45), ("fused ms", 8), ("quartiles", 17), *against, ("matrix", 6), ("copy", 5)])


def cells(entry: dict) -> list[str]:
    """A row of the table."""
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
    limits = [percent(entry[share]) for share in ("share_of_matrix", "share_of_copy")]
    return [name, ms(fused), f"{ms(low)}..{ms(high)}", *against, *limits]


def guarded(arguments: Arguments, measure: Callable, *rest: object) -> tuple[dict[str, Timing], list[str]]:
    """measure(*rest). On a GPU an error becomes the case's failure: what was measured before it is kept."""
    try:
        return measure(*rest)
    except Exception as error:
        if arguments.device != "cuda":
            raise
        return {}, [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]


def tick(bar: tqdm) -> Callable[[int], None]:
    """Moves a bar on by one after each round."""
    return lambda _: bar.update()


def by_config(
    suite: str, title: str, chosen: dict[str, TrainConfig], measure: Callable, arguments: Arguments, limits: Limits
) -> tuple[list[dict], list[Table]]:
    """Rows and table of a suite whose cases are configurations by name, each measured alike.

    measure(config, device, rounds, tick, compiled): timings of every competitor, and what disagrees (then none).
    """
    rows, table = [], comparison(title)
    if chosen:
        tqdm.write(table.head())
    for name, config in within(arguments, list(chosen.items()), lambda case: case[0], rows, suite):
        with tqdm(total=arguments.rounds, desc=name, leave=False, disable=None) as bar:
            compiled = arguments.can_compile and not arguments.quick
            more = (config, arguments.device, arguments.rounds, tick(bar), compiled)
            timings, failed = guarded(arguments, measure, *more)
        entry = row(suite, name, timings, failed)
        rows.append(entry if failed else shares(entry, limits, None, None))
        tqdm.write(table.add(cells(rows[-1])))
    return rows, [table]
