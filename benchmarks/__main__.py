"""`python -m benchmarks [ops|step|systems|loading|scaling|profile|all]`: fused against PyTorch here, equivalence first.

`python -m benchmarks compare A.json B.json` tells what changed between two results beyond noise;
`python -m benchmarks html A.json OUT.html` makes the page of one again;
`python -m benchmarks readme A.json` writes the README's table and plot from one.

Three baselines, at the same precision, in the same process, interleaved, each in the better of contiguous and
channels_last: eager PyTorch as people write it, torch.compile of the same, and the best known with library parts.

`compiled` and `predict` need no GPU: every GPU kernel compiled ahead of time, and what a roofline says it takes.
"""

import datetime
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tqdm import tqdm

from benchmarks import compare, loading, operators, page, profile, readme, saved, scaling, step, systems
from benchmarks.measure import PRECISIONS, Limits, Timing, commit, measure_limits
from benchmarks.table import Table, ms, percent
from engine import atomic, cli, environment
from engine.errors import InputError

BASELINES = ("eager", "compile", "strong")
LEAST_ROUNDS = 10


@dataclass(frozen=True)
class Arguments:
    """Options of the benchmark."""

    suite: Annotated[
        Literal["ops", "step", "systems", "loading", "scaling", "profile", "all", "compiled", "predict"],
        tyro.conf.Positional,
    ] = "all"
    """Operators; whole training steps of the refiner; those of the other systems; the loaders of pictures; the first
    two at 1 to all threads; where a fused step's time goes on the CPU; or all of these. compiled: GPU kernels ahead
    of time; predict: their times by a roofline, with cuda also measured."""
    filter: str = ""
    """Only cases whose name contains this text."""
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    """A few operator shapes, the small step, and systems at 32x32 uncompiled: minutes. For compiled: what the tests
    compile."""
    json: Path | None = None
    """Write every sample to this file, with machine, versions and commit."""
    markdown: Path | None = None
    """Write the tables to this file."""
    html: Path | None = None
    """Write a page with figures to this file."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to measure."""
    precision: Literal["fp32", "tf32", "bf16"] | None = None
    """Arithmetic of every competitor; default fp32, for predict bf16. tf32 and bf16 need cuda or predict."""
    gpu: Literal["a100", "h100", "h200", "b200"] = "h100"
    """The GPU to predict for, without --device cuda."""
    autotune: tyro.conf.FlagCreatePairsOff[bool] = False
    """On cuda: also torch.compile in mode max-autotune, which takes minutes for each step and long for each shape."""
    budget: float = float("inf")
    """Seconds after which no further case of ops or step is begun; those left out are named."""
    rounds: int = LEAST_ROUNDS
    """Interleaved rounds; medians and quartiles are over them."""
    threads: int = 0
    """CPU threads; 0 = PyTorch's own choice."""


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
    found["strong"] = found["strong"] or found["eager"]  # where no library part is stronger than the reference
    return {
        "suite": suite,
        "name": name,
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
    name = entry["name"].removesuffix(" channels_last")
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


def run_operators(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The ops suite."""
    precision = arguments.precision or "fp32"
    rows, table = [], comparison(f"Operators, forward + backward, {precision}")
    chosen = list(operators.cases(arguments.filter, arguments.quick))
    if chosen:
        tqdm.write(table.head())
    bar = tqdm(chosen, desc="operators", leave=False, disable=None)
    for spec, sample in within(arguments, bar, lambda case: f"{case[0].operator} {case[1].name}", rows, "ops"):
        timings, failed = _guarded(
            arguments,
            operators.measure,
            *(spec, sample, arguments.device, arguments.rounds, has_compiler(), precision, arguments.autotune),
        )
        entry = row("ops", f"{spec.operator} {sample.name}", timings, failed)
        if not failed:
            flops = operators.flops(spec, sample, arguments.device)
            moved = spec.bytes(sample, PRECISIONS[precision].dtype)
            entry = shares(entry, limits, flops, moved) | {"flops_as_written": spec.flops(sample)}
        rows.append(entry)
        tqdm.write(table.add(cells(entry)))
    return rows, [table]


def run_steps(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The step suite, with peak memory."""
    precision = arguments.precision or "fp32"
    rows, table = [], comparison(f"Training steps, {precision}")
    columns = [("", 45), ("fused MiB", 10), *((f"{name} MiB", 12) for name in BASELINES), ("of eager", 9)]
    memory = Table("Peak training memory: what three steps add to a process", columns)
    chosen = step.settings(arguments.filter, arguments.quick)
    competitors = (*step.COMPETITORS, *([step.AUTOTUNED] if arguments.autotune else []))
    competitors = tuple(name for name in competitors if not name.startswith("compile") or has_compiler())
    if chosen:
        tqdm.write(table.head())
    for name, setting in within(arguments, list(chosen.items()), lambda case: case[0], rows, "step"):
        with tqdm(total=arguments.rounds, desc=name, leave=False, disable=None) as bar:
            tick = functools.partial(_update, bar)
            settings = (setting, arguments.device, arguments.rounds, tick, competitors, precision)
            timings, failed = _guarded(arguments, step.measure, *settings)
        entry = row("step", name, timings, failed)
        if not failed:
            entry = shares(entry, limits, step.flops(setting, arguments.device), None)
        tqdm.write(table.add(cells(entry)))
        if not failed:
            entry["memory"] = _peaks(setting, arguments.device, competitors, precision)
            mib = ["-" if v is None else f"{v / 2**20:.0f}" for v in entry["memory"].values()]
            memory.add([name, *mib, percent(entry["memory"]["fused"] / entry["memory"]["eager"])])
        rows.append(entry)
    if memory.rows:
        print(memory)
    return rows, [table, memory]


def run_systems(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The systems suite."""
    rows, table = [], comparison("Training steps of every system, quick preset, fp32")
    chosen = systems.cases(arguments.filter, arguments.quick)
    if chosen:
        tqdm.write(table.head())
    for name, config in within(arguments, list(chosen.items()), lambda case: case[0], rows, "systems"):
        with tqdm(total=arguments.rounds, desc=name, leave=False, disable=None) as bar:
            tick = functools.partial(_update, bar)
            settings = (config, arguments.device, arguments.rounds, tick, has_compiler() and not arguments.quick)
            timings, failed = _guarded(arguments, systems.measure, *settings)
        entry = row("systems", name, timings, failed)
        rows.append(entry if failed else shares(entry, limits, None, None))
        tqdm.write(table.add(cells(rows[-1])))
    return rows, [table]


def run_loading(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The loading suite."""
    rows, table = [], loading.table()
    chosen = loading.cases(arguments.filter, arguments.quick)
    if chosen:
        tqdm.write(table.head())
    for setting in within(arguments, chosen, lambda case: case.name, rows, "loading"):
        if why := loading.missing():
            more = [{"suite": "loading", "name": setting.name, "not_run": why}]
        else:
            with tqdm(total=arguments.rounds, desc=setting.name, leave=False, disable=None) as bar:
                more = loading.measure(setting, arguments.rounds, functools.partial(_update, bar))
        rows += more
        for entry in more:
            tqdm.write(table.add(loading.cells(entry)))
    return rows, [table]


def _guarded(arguments: Arguments, measure: Callable, *rest: object) -> tuple[dict[str, Timing], list[str]]:
    """measure(*rest). On a GPU an error becomes the case's failure: what was measured before it is kept."""
    try:
        return measure(*rest)
    except Exception as error:
        if arguments.device != "cuda":
            raise
        return {}, [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]


def _peaks(setting: dict, device: str, competitors: tuple[str, ...], precision: str) -> dict[str, int | None]:
    """Peak memory of fused and of each baseline in its better form; None where it does not run."""
    peaks = {n: step.peak_memory(n, setting, device, precision) for n in competitors}
    return {n: min((v for k, v in peaks.items() if k.split()[0] == n), default=None) for n in ("fused", *BASELINES)}


def run_scaling(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The scaling suite: fused and eager by thread count."""
    rows = []
    columns = [("", 45), ("", 6), ("threads", 8), ("ms", 9), ("quartiles", 17), ("speed-up over 1", 16)]
    table = Table("Threads", columns, left=2)
    chosen = list(scaling.cases(arguments.filter, arguments.quick, arguments.device))
    if chosen:
        tqdm.write(table.head())
    for name, prepare in tqdm(chosen, desc="threads", leave=False, disable=None):
        calls, failed = prepare()
        label = name.removesuffix(" channels_last")
        if failed:
            rows.append({"suite": "scaling", "name": name, "failed": failed})
            tqdm.write(table.add([label, f"DIFFERENT: {failed[0]}"]))
            continue
        by_name = scaling.measure(calls, arguments.rounds)
        gains = {n: {t: by[1].median / timing.median for t, timing in by.items()} for n, by in by_name.items()}
        timings = {n: {t: timing.to_json() for t, timing in by.items()} for n, by in by_name.items()}
        rows.append({"suite": "scaling", "name": name, "speedup_over_one_thread": gains, "timings": timings})
        for which, by in by_name.items():
            for threads, timing in by.items():
                low, high = timing.quartiles
                figures = [ms(timing.median), f"{ms(low)}..{ms(high)}", f"{gains[which][threads]:.2f}"]
                tqdm.write(table.add([label, which, str(threads), *figures]))
    return rows, [table]


def run_profile(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The profile suite: the native calls of a fused step, the longest first, and the rest of the step."""
    rows, tables = [], []
    for name, setting in step.settings(arguments.filter, arguments.quick).items():
        with tqdm(total=arguments.rounds, desc=name, leave=False, disable=None) as bar:
            tick = functools.partial(_update, bar)
            found = profile.measure(setting, arguments.device, arguments.rounds, tick)
        rows.append({"suite": "profile", "name": name, **found.to_json(limits)})
        for table in (profile.inside(name, found, limits), profile.outside(name, found)):
            print(table)
            tables.append(table)
    return rows, tables


def _update(bar: tqdm, _: int) -> None:
    bar.update()


def run_compiled(arguments: Arguments, limits: None) -> tuple[list[dict], list[Table]]:
    """The compiled suite: every kernel and shipped configuration, ahead of time."""
    from benchmarks import compiled_report  # loads Triton's compiler

    return compiled_report.suite(arguments.filter, arguments.quick)


def run_predict(arguments: Arguments, limits: None) -> tuple[list[dict], list[Table]]:
    """The predict suite: the roofline's times, and how far measured ones are from them."""
    from benchmarks import forecast

    measured = arguments.device == "cuda"
    precision = arguments.precision or "bf16"
    return forecast.suite(arguments.filter, arguments.quick, precision, arguments.gpu, measured)


SUITES = {
    "ops": run_operators,
    "step": run_steps,
    "systems": run_systems,
    "loading": run_loading,
    "scaling": run_scaling,
    "profile": run_profile,
}
ON_CUDA = ("ops", "step")  # of them, what `all` runs there
WITHOUT_LIMITS = {"compiled": run_compiled, "predict": run_predict}
# of saved results, in place of a suite
COMMANDS = {"compare": compare.main, "html": page.main, "readme": readme.main}


def has_compiler() -> bool:
    """Whether torch.compile can build CPU code here."""
    return bool(shutil.which("g++") or shutil.which("clang++"))


def check(arguments: Arguments) -> None:
    """Raises InputError with what to do when the arguments do not fit."""
    if arguments.rounds < LEAST_ROUNDS:
        raise InputError(f"--rounds must be at least {LEAST_ROUNDS}: medians of fewer say little")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device here; use --device cpu")
    cuda_alone = {"--autotune": arguments.autotune, "--precision": (arguments.precision or "fp32") != "fp32"}
    for option, given in cuda_alone.items():
        if given and arguments.device != "cuda" and arguments.suite != "predict":
            raise InputError(f"{option} {arguments.precision if option == '--precision' else ''}".rstrip()
                             + " needs --device cuda")  # fmt: skip
    if arguments.device == "cuda" and arguments.suite in ("loading", "scaling", "profile"):
        raise InputError(f"{arguments.suite} is measured on the CPU alone; leave --device cuda out")
    if arguments.html and arguments.suite in WITHOUT_LIMITS:
        raise InputError(f"{arguments.suite} has no page; leave --html out, or give --markdown")
    files = {"--json": arguments.json, "--markdown": arguments.markdown, "--html": arguments.html}
    for option, path in files.items():
        if path and not path.parent.is_dir():
            raise InputError(f"{path.parent} is not a folder; create it or give {option} another")


def describe(arguments: Arguments, limits: Limits | None) -> str:
    """The machine in one line, with its limits where they were measured."""
    parts = [environment.cpu()["model"], f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"]
    if arguments.device == "cuda":
        parts.insert(0, torch.cuda.get_device_name())
    if limits:
        parts.append(f"matrix product {limits.matrix_flops / 1e9:,.0f} GFLOP/s")
        parts.append(f"copy {limits.copy_bytes_per_s / 1e9:,.1f} GB/s, fill {limits.fill_bytes_per_s / 1e9:,.1f} GB/s")
    return ", ".join(parts)


def result(arguments: Arguments, limits: Limits | None, rows: list[dict]) -> dict:
    """Everything that --json keeps."""
    head = {"schema": saved.SCHEMA, "commit": commit(), "date": datetime.date.today().isoformat()}
    head |= {"device": arguments.device, "precision": arguments.precision, "threads": torch.get_num_threads()}
    return head | {"limits": limits and vars(limits), "machine": environment.snapshot(), "rows": rows}


def main(argv: list[str]) -> int:
    """Measures, prints and saves. Returns 1 when a result differs from the reference."""
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:])
    arguments = cli.parse(Arguments, argv, prog="python -m benchmarks", description=__doc__)
    check(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    measured = arguments.suite not in WITHOUT_LIMITS
    limits = measure_limits(arguments.device, arguments.precision or "fp32") if measured else None
    machine = describe(arguments, limits)
    print(machine)
    if not has_compiler() and arguments.suite in ("ops", "step", "systems", "all"):
        print("no C++ compiler (g++ or clang++) here: the baseline `compile` is left out")
    rows, tables = [], []
    every = ON_CUDA if arguments.device == "cuda" else SUITES
    for suite in every if arguments.suite == "all" else [arguments.suite]:
        more_rows, more_tables = (SUITES | WITHOUT_LIMITS)[suite](arguments, limits)
        rows, tables = rows + more_rows, tables + more_tables
    if not rows:
        raise InputError(f"no case contains {arguments.filter!r}")
    if arguments.json or arguments.html:
        text = json.dumps(result(arguments, limits, rows), indent=1)
        if arguments.json:
            atomic.write_text(arguments.json, text)
        if arguments.html:
            newest = saved.newest(json.loads(text), str(arguments.html))
            atomic.write_text(arguments.html, page.render(newest, arguments.html.stem))
    if arguments.markdown:
        texts = [f"{machine}; commit {commit()}.\n", *(table.markdown() for table in tables if table.rows)]
        atomic.write_text(arguments.markdown, "\n".join(texts))
    return 1 if any("failed" in entry for entry in rows) else 0


if __name__ == "__main__":
    cli.run("benchmarks", main)
