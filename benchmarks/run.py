"""One run of the benchmark: the machine's limits, then the chosen suites, whose rows are saved after each of them."""

import datetime
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from benchmarks.arguments import Arguments
from benchmarks.catalogue import Suite
from benchmarks.checkout import commit
from benchmarks.reports import page, saved
from benchmarks.timing.measure import Limits, measure_limits, steady_memory
from benchmarks.timing.rows import keep, kept
from benchmarks.timing.table import Table
from engine.errors import InputError
from engine.host import atomic_files, environment

BUSY = 0.5  # cores that other work takes, from which figures are not to be trusted


class Conditions(NamedTuple):
    """load_before: cores that other work took. steady_memory: what measure.steady_memory returned."""

    load_before: float | None
    steady_memory: bool


def run(arguments: Arguments, suites: Sequence[Suite]) -> int:
    """Measures, prints and saves after each suite. Returns 1 when a result differs from the reference.

    suites: arguments.suites, or what the self-test puts in their place. Raises InputError where no case fits.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    timed = any(suite.stopwatch for suite in suites)
    load = environment.load()
    if load is not None and load > BUSY and timed:
        print(f"! other work took {load:.1f} cores in the last minute: figures will be noisy and too slow")
    conditions = Conditions(load, arguments.device == "cpu" and timed and steady_memory())
    rows: list[dict] = []
    for limits, rows, tables in measured(arguments, suites, conditions):
        save(arguments, limits, rows, tables, conditions)
    return 1 if any("failed" in entry for entry in rows) else 0


def measured(
    arguments: Arguments, suites: Sequence[Suite], conditions: Conditions
) -> Iterator[tuple[Limits | None, list[dict], list[Table]]]:
    """After each suite: this machine's limits (None without a stopwatch), and all rows and tables so far."""
    no_case = InputError(f"no case contains {arguments.filter!r}")
    if not any(list(suite.cases(arguments.filter, arguments.quick)) for suite in suites):
        raise no_case
    limits = None
    if any(suite.stopwatch for suite in suites):
        if not arguments.can_compile:
            print("no C++ compiler (g++ or clang++) here: the baseline `compile` is left out")
        limits = measure_limits(arguments.device, arguments.precision or "fp32")
        print(describe(arguments, limits, conditions))
    rows: list[dict] = []
    tables: list[Table] = []
    for suite in suites:
        before = kept(arguments.rows)
        more_rows, more_tables = suite.run(arguments, limits)
        keep(arguments.rows, more_rows[kept(arguments.rows) - before :])  # of a suite that keeps none by itself
        rows, tables = rows + more_rows, tables + more_tables
        if rows:
            yield limits, rows, tables
    if not rows:  # a case of `predict` gives none if its operator lacks the precision
        raise no_case


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
