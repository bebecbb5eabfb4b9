"""The suite `scaling`: fused and eager by threads, by image side, channels and batch, and by processes."""

from collections.abc import Callable, Iterator

from tqdm import tqdm

from benchmarks.arguments import Arguments
from benchmarks.suites import operators, processes, step, sweeps, threads
from benchmarks.suites.sweeps import Law, Sweep
from benchmarks.timing.measure import Limits, Timing
from benchmarks.timing.rows import short
from benchmarks.timing.table import Table, ms, percent
from engine.host import environment

Prepare = Callable[[], tuple[dict[str, Callable], list[str]]]


def cases(only: str, quick: bool) -> list[str]:
    """The names of the rows that contain `only`: by threads, by size, by processes."""
    by_threads = [name for name, _ in thread_cases(only, quick, "cpu")]
    return by_threads + [sweep.label for sweep in sweeps.cases(only, quick, "cpu")] + process_cases(only, quick)


def thread_cases(only: str, quick: bool, device: str) -> Iterator[tuple[str, Prepare]]:
    """Steps, then one shape of each operator: its name, and what makes fused and eager as calls, with what disagrees.

    quick: of the operators only nearest x2 + convolution, which every system is made of
    """
    for name, setting in step.cases(only, quick).items():
        yield name, lambda setting=setting: sweeps.calls_of_step(setting, device)
    for case in operators.cases(only, quick=True):
        if not quick or case.sample.options.get("resize") == "up":
            yield case.label, lambda case=case: sweeps.calls_of(case, device)


def run(arguments: Arguments, limits: Limits) -> tuple[list[dict], list[Table]]:
    """The suite `scaling`."""
    parts = [by_threads(arguments), by_sweeps(arguments), by_processes(arguments)]
    return [row for rows, _ in parts for row in rows], [table for _, table in parts]


def process_cases(only: str, quick: bool) -> list[str]:
    """The name of the row by processes; quick: none, because every number of processes starts a training of its own."""
    return [processes.name()] if only in processes.name() and not quick else []


def by_threads(arguments: Arguments) -> tuple[list[dict], Table]:
    """Rows and table by number of threads."""
    rows: list[dict] = []
    columns = [("", 45), ("", 6), ("threads", 8), ("ms", 9), ("quartiles", 17), ("speed-up over 1", 16), ("serial", 7)]
    table = Table("Threads, and the share of the time that they do not shorten", columns, left=2)
    chosen = list(thread_cases(arguments.filter, arguments.quick, arguments.device))
    if chosen:
        tqdm.write(table.head())
    for name, prepare in tqdm(chosen, desc="threads", leave=False, disable=None):
        calls, failed = prepare()
        timings = {} if failed else threads.measure(calls, arguments.rounds)
        rows.append(_row("threads", name, timings, failed))
        for cells in _cells(short(name), timings, failed):
            tqdm.write(table.add(cells))
    return rows, table


def by_processes(arguments: Arguments) -> tuple[list[dict], Table]:
    """Row and table by number of processes under torchrun, one thread each."""
    columns = [("", 56), ("", 6), ("ranks", 6), ("ms", 9), ("quartiles", 17), ("speed-up over 1", 16), ("serial", 7)]
    table = Table("Processes of one thread under torchrun, one global batch", columns, left=2)
    rows: list[dict] = []
    for name in process_cases(arguments.filter, arguments.quick):
        tqdm.write(table.head())
        if why := processes.missing():
            rows.append({"suite": "scaling", "name": name, "axis": "processes", "not_run": why})
            tqdm.write(table.add([name, why]))
            continue
        timings, failed = processes.measure(arguments.rounds, environment.cpu()["cores"])
        rows.append(_row("processes", name, timings, failed))
        for cells in _cells(name, timings, failed):
            tqdm.write(table.add(cells))
    return rows, table


def _row(axis: str, name: str, timings: dict[str, dict[int, Timing]], failed: list[str]) -> dict:
    head = {"suite": "scaling", "name": name, "axis": axis}
    if failed:
        return head | {"failed": failed}
    over_one = {n: {count: by[1].median / t.median for count, t in by.items()} for n, by in timings.items()}
    serial = {n: threads.serial_share(by) for n, by in timings.items()}
    as_json = {n: {count: t.to_json() for count, t in by.items()} for n, by in timings.items()}
    return head | {"speedup_over_one": over_one, "serial_share": serial, "timings": as_json}


def _cells(label: str, timings: dict[str, dict[int, Timing]], failed: list[str]) -> Iterator[list[str]]:
    if failed:
        yield [label, f"DIFFERENT: {failed[0]}"]
    for which, by in timings.items():
        for count, timing in by.items():
            low, high = timing.quartiles
            figures = [ms(timing.median), f"{ms(low)}..{ms(high)}", f"{by[1].median / timing.median:.2f}"]
            yield [label, which, str(count), *figures, percent(threads.serial_share(by)) if count > 1 else ""]


def by_sweeps(arguments: Arguments) -> tuple[list[dict], Table]:
    """Rows and table by image side, channels and batch."""
    rows: list[dict] = []
    columns = [("", 40), ("", 6), ("ms", 64), ("fixed ms", 9), ("grows as", 9), ("off by", 7)]
    table = Table("Side, channels and batch, and the law fixed + unit x^power", columns, left=3)
    chosen = list(sweeps.cases(arguments.filter, arguments.quick, arguments.device))
    if chosen:
        tqdm.write(table.head())
    with tqdm(total=sum(len(s.values) for s in chosen), desc="sizes", leave=False, disable=None) as bar:
        for sweep in chosen:
            timings, failed = sweeps.measure(sweep, arguments.rounds, bar.update)
            rows.append(sweeps.row(sweep, timings, failed))
            for cells in _sweep_cells(sweep, timings, rows[-1]):
                tqdm.write(table.add(cells))
    return rows, table


def _sweep_cells(sweep: Sweep, timings: dict[str, dict[int, Timing]], row: dict) -> Iterator[list[str]]:
    if "failed" in row:
        yield [sweep.label, f"DIFFERENT: {row['failed'][0]}"]
    for which, by in timings.items():
        law = Law(**row["law"][which])
        points = ", ".join(f"{value}: {ms(timing.median)}" for value, timing in by.items())
        yield [sweep.label, which, points, ms(law.fixed), f"x^{law.power:.2f}", percent(law.worst)]
