"""`python -m benchmarks SUITE`: fused against PyTorch on this machine, each after its equivalence check.

SUITE is ops, step, systems, latency, loading, scaling, profile, fuse, or all of these.

`python -m benchmarks compare A.json B.json` tells what changed between two results beyond noise;
`python -m benchmarks html A.json OUT.html` makes the page of one again;
`python -m benchmarks readme A.json` writes the README's table and plot from one;
`python -m benchmarks ranks` tells on paper what 8 to 1024 GPUs bring;
`python -m benchmarks selftest` shows on this machine that the benchmark finds what it should.

Three baselines, at the same precision, in the same process, interleaved, each in the better of contiguous and
channels_last: eager PyTorch as people write it, torch.compile of the same, and the best known with library parts.

`compiled` and `predict` need no GPU: every GPU kernel compiled ahead of time, and what a roofline says it takes.
"""

import datetime
import json
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch

from benchmarks import selftest
from benchmarks.arguments import Arguments, check
from benchmarks.checkout import commit
from benchmarks.prediction import ranks
from benchmarks.reports import compare, page, readme, saved
from benchmarks.suites import fuse, latency, loading, operators, profile, scaling, step, systems
from benchmarks.timing.measure import Limits, measure_limits, steady_memory
from benchmarks.timing.table import Table
from engine import cli
from engine.errors import InputError
from engine.host import atomic_files, environment

Results = tuple[list[dict], list[Table]]


class Suite(NamedTuple):
    """run: measures, prints, and gives rows and tables. cases: those whose name contains a text, of all or quick."""

    run: Callable[[Arguments, Limits], Results]
    cases: Callable[[str, bool], Iterable]


SUITES = {
    "ops": Suite(operators.run, operators.cases),
    "step": Suite(step.run, step.settings),
    "systems": Suite(systems.run, systems.cases),
    "latency": Suite(latency.run, latency.cases),
    "loading": Suite(loading.run, loading.cases),
    "scaling": Suite(scaling.run, scaling.cases),
    "profile": Suite(profile.run, step.settings),
    "fuse": Suite(fuse.run, fuse.cases),
}
ON_CUDA = ("ops", "step")  # of them, what `all` runs there
# in place of a suite: of saved results, on paper, and of the benchmark itself
COMMANDS = {
    "compare": compare.main,
    "html": page.main,
    "readme": readme.main,
    "ranks": ranks.main,
    "selftest": selftest.main,
}
BUSY = 0.5  # cores that other work takes, from which figures are not to be trusted


def run_compiled(arguments: Arguments) -> Results:
    """The compiled suite: every kernel and shipped configuration, ahead of time."""
    from benchmarks.prediction import compiled_report  # loads Triton's compiler

    return compiled_report.suite(arguments.filter, arguments.quick)


def run_predict(arguments: Arguments) -> Results:
    """The predict suite: the roofline's times, and how far measured ones are from them."""
    from benchmarks.prediction import forecast

    measured = arguments.device == "cuda"
    precision = arguments.precision or "bf16"
    return forecast.suite(arguments.filter, arguments.quick, precision, arguments.gpu, measured)


WITHOUT_LIMITS = {"compiled": run_compiled, "predict": run_predict}


class Conditions(NamedTuple):
    """load_before: cores that other work took. steady_memory: of every competitor, measure.steady_memory's."""

    load_before: float | None
    steady_memory: bool


def measured(arguments: Arguments, conditions: Conditions) -> Iterator[tuple[Limits | None, list[dict], list[Table]]]:
    """This machine's limits, rows and tables: after each suite those so far. Raises InputError where no case fits."""
    nothing = InputError(f"no case contains {arguments.filter!r}")
    if arguments.suite in WITHOUT_LIMITS:
        rows, tables = WITHOUT_LIMITS[arguments.suite](arguments)
        if not rows:
            raise nothing
        yield None, rows, tables
        return
    every = list(ON_CUDA if arguments.device == "cuda" else SUITES)
    chosen = [SUITES[name] for name in (every if arguments.suite == "all" else [arguments.suite])]
    if not any(list(suite.cases(arguments.filter, arguments.quick)) for suite in chosen):
        raise nothing
    if not arguments.can_compile:
        print("no C++ compiler (g++ or clang++) here: the baseline `compile` is left out")
    limits = measure_limits(arguments.device, arguments.precision or "fp32")
    print(describe(arguments, limits, conditions))
    rows, tables = [], []
    for suite in chosen:
        more_rows, more_tables = suite.run(arguments, limits)
        rows, tables = rows + more_rows, tables + more_tables
        yield limits, rows, tables


def describe(arguments: Arguments, limits: Limits | None, conditions: Conditions) -> str:
    """The machine in one line, with its limits where they were measured."""
    cpu = environment.cpu()
    parts = [cpu["model"], f"{torch.get_num_threads()} threads", f"governor {cpu['governor'] or 'unknown'}"]
    parts.append(f"torch {torch.__version__}")
    if conditions.steady_memory:
        parts.append("freed memory kept, huge pages")
    if arguments.device == "cuda":
        parts.insert(0, torch.cuda.get_device_name())
    if limits:
        parts.append(f"matrix product {limits.matrix_flops / 1e9:,.0f} GFLOP/s")
        parts.append(f"copy {limits.copy_bytes_per_s / 1e9:,.1f} GB/s, fill {limits.fill_bytes_per_s / 1e9:,.1f} GB/s")
    return ", ".join(parts)


def result(arguments: Arguments, limits: Limits | None, rows: list[dict], conditions: Conditions) -> dict:
    """Everything that --json keeps."""
    head = {"schema": saved.SCHEMA, "commit": commit(), "date": datetime.date.today().isoformat()}
    head |= {"device": arguments.device, "precision": arguments.precision, "threads": torch.get_num_threads()}
    head |= {"limits": limits and vars(limits)} | conditions._asdict()
    return head | {"machine": environment.snapshot(), "rows": rows}


def save(
    arguments: Arguments, limits: Limits | None, rows: list[dict], tables: list[Table], conditions: Conditions
) -> None:
    """Writes the files that were asked for."""
    text = json.dumps(result(arguments, limits, rows, conditions), indent=1)
    if arguments.json:
        atomic_files.write_text(arguments.json, text)
    if arguments.html and rows:
        newest = saved.newest(json.loads(text), str(arguments.html))
        atomic_files.write_text(arguments.html, page.render(newest, arguments.html.stem))
    if arguments.markdown:
        lead = f"{describe(arguments, limits, conditions)}; commit {commit()}.\n"
        atomic_files.write_text(arguments.markdown, "\n".join([lead, *(t.markdown() for t in tables if t.rows)]))


def main(argv: list[str]) -> int:
    """Measures, prints and saves, after each suite anew. Returns 1 when a result differs from the reference."""
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:])
    arguments = cli.parse(Arguments, argv, prog="python -m benchmarks", description=__doc__)
    check(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    load = environment.load()
    if load is not None and load > BUSY and arguments.suite not in WITHOUT_LIMITS:
        print(f"! other work took {load:.1f} cores in the last minute: figures will be noisy and too slow")
    allocates = arguments.device == "cpu" and arguments.suite not in WITHOUT_LIMITS
    conditions = Conditions(load, allocates and steady_memory())
    rows: list[dict] = []
    for limits, rows, tables in measured(arguments, conditions):
        save(arguments, limits, rows, tables, conditions)
    return 1 if any("failed" in entry for entry in rows) else 0


if __name__ == "__main__":
    cli.run("benchmarks", main)
