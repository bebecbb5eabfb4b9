"""`python -m benchmarks compare A B`: what takes longer or shorter in result B than in result A, beyond noise.

Each sample of A is compared with each sample of B: the estimate is the median of these ratios (Hodges-Lehmann), its
interval the one that inverts the rank sum test, so neither outliers nor the shape of the noise matter. The interval
holds with 99 %, so about one in a hundred rows is called changed by chance. All rows of an operator together can show
what one noisy row cannot. The samples of one run do not tell how two runs of the same code differ. PyTorch's
competitors, whose code is the same in both results, show how far the machine moved, and fused is judged beside them: by
its B / A over the median of theirs in the same row. Changes below 5 %, of many rows together below 2 %, are called
unchanged.
"""

import dataclasses
import functools
import math
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from benchmarks.reports import saved
from benchmarks.timing.rows import short
from benchmarks.timing.table import Table, ms
from engine import cli
from engine.errors import InputError

CONFIDENCE = 0.99
CERTAIN = 3.29  # standard deviations: 99.9 %, for all rows of an operator together
# relative changes by which two runs of the same code on one machine may differ: of a row, and of an operator's rows
LEAST, LEAST_TOGETHER = 0.05, 0.02
FASTER, SLOWER, UNCHANGED, FEW = "faster", "slower", "unchanged", "too few samples"
BROKEN = ("failed in A", "failed in B", "failed in both", "not run in A", "not run in B", "not run in both")
LONE = ("only in A", "only in B")
VERDICTS = (SLOWER, FASTER, UNCHANGED, FEW, *LONE, *BROKEN)


@dataclass
class Arguments:
    """What `python -m benchmarks compare` takes."""

    a: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """A result of --json: before."""
    b: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """A result of --json: after."""
    all: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also list what is unchanged."""
    filter: str = ""
    """Only rows whose name contains this text."""


@dataclass(frozen=True)
class Change:
    """One competitor of one row; competitor "" for a row that has no times in one of the results.

    medians:  seconds in A and in B
    ratio:    its time in B over its time in A, with the interval; None without both times
    machine:  the median ratio of PyTorch's competitors in the row, beside which fused is judged; 1 for these
              competitors themselves, and in a row without them
    """

    suite: str
    name: str
    competitor: str
    verdict: str
    medians: tuple[float | None, float | None] = (None, None)
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    machine: float = 1.0

    @property
    def beside(self) -> float | None:
        """The ratio that a machine as fast in B as in A would have shown."""
        return self.ratio and self.ratio / self.machine


def ratio_interval(a: list[float], b: list[float]) -> tuple[float, tuple[float, float] | None]:
    """The median of the ratios b / a and its CONFIDENCE interval; None for too few samples.

    a, b: seconds by round. Even rounds are compared with even rounds, odd with odd: measure.interleaved reverses the
    order of competitors in every second round, so what ran before, and what the caches hold, differs between the two.
    Source: Hodges and Lehmann 1963; the interval: Hollander and Wolfe, Nonparametric Statistical Methods, section 4.3;
    the two halves: van Elteren 1960.
    """
    halves = [(np.asarray(a[start::2]), np.asarray(b[start::2])) for start in (0, 1)]
    ratios = np.sort(np.concatenate([np.divide.outer(y, x).ravel() for x, y in halves]))
    cut = _cut(tuple((len(x), len(y)) for x, y in halves))
    return float(np.median(ratios)), (float(ratios[cut - 1]), float(ratios[-cut])) if cut else None


@functools.cache
def _cut(halves: tuple[tuple[int, int], ...]) -> int:
    """How many of the ordered ratios lie below the interval, its lower end included; 0 if there is no interval.

    The number of ratios above 1 is the U of the rank sum test. For m and n samples, the coefficients of the Gaussian
    binomial (m + n over m) say how often U takes each value.
    """
    chances = np.ones(1)
    for m, n in halves:
        counts = np.zeros(m * n + 1)
        counts[0] = 1
        for i in range(1, m + 1):
            for k in range(m * n, n + i - 1, -1):  # multiply by 1 - q^(n + i)
                counts[k] -= counts[k - n - i]
            for k in range(i, m * n + 1):  # divide by 1 - q^i
                counts[k] += counts[k - i]
        chances = np.convolve(chances, counts / math.comb(m + n, m))
    return int((np.cumsum(chances) <= (1 - CONFIDENCE) / 2).sum())


def verdict(ratio: float, interval: tuple[float, float] | None) -> str:
    """FASTER, SLOWER, UNCHANGED or FEW, for a ratio of times B / A and its interval."""
    if interval is None:
        return FEW
    if abs(math.log(ratio)) < math.log1p(LEAST) or interval[0] <= 1 <= interval[1]:
        return UNCHANGED
    return SLOWER if ratio > 1 else FASTER


def changes(a: dict[str, Any], b: dict[str, Any], only: str = "") -> list[Change]:
    """Every row and competitor of two results of saved.read, in the order of A, then what only B has.

    only: rows whose name contains this text. Between two versions of torch, or two machines, PyTorch's competitors say
    nothing about fused, which is then judged alone.
    """
    alike = not differences(a | {"schema": 0}, b | {"schema": 0})
    rows = [{(row["suite"], row["name"]): row for row in result["rows"] if _timed(row)} for result in (a, b)]
    compared = []
    for key in dict.fromkeys([*rows[0], *rows[1]]):
        if only in key[1]:
            compared += _row(*key, *(side.get(key) for side in rows), alike)
    return compared


def _timed(row: dict[str, Any]) -> bool:
    return bool(saved.samples(row)) or (row["suite"] != "compiled" and ("failed" in row or "not_run" in row))


def _row(suite: str, name: str, a: dict[str, Any] | None, b: dict[str, Any] | None, alike: bool) -> list[Change]:
    if a is None or b is None:
        return [Change(suite, name, "", LONE[a is None])]
    for state in ("failed", "not_run"):
        where = [letter for letter, row in (("A", a), ("B", b)) if state in row]
        if where:
            place = "both" if len(where) == 2 else where[0]
            return [Change(suite, name, "", f"{state.replace('_', ' ')} in {place}")]
    samples = saved.samples(a), saved.samples(b)
    names = dict.fromkeys([*samples[0], *samples[1]])
    compared = [_competitor(suite, name, c, *(side.get(c) for side in samples)) for c in names]
    theirs = [c.ratio for c in compared if c.ratio and not _ours(c)]
    if not theirs or not alike:
        return compared
    machine = statistics.median(theirs)
    return [_judged_beside(c, machine) if c.ratio and _ours(c) else c for c in compared]


def _judged_beside(change: Change, machine: float) -> Change:
    interval = change.interval and tuple(end / machine for end in change.interval)
    return dataclasses.replace(change, machine=machine, verdict=verdict(change.ratio / machine, interval))


def _competitor(suite: str, name: str, competitor: str, a: list[float] | None, b: list[float] | None) -> Change:
    medians = tuple(t and statistics.median(t) for t in (a, b))
    if a is None or b is None:
        return Change(suite, name, competitor, LONE[a is None], medians)
    ratio, interval = ratio_interval(a, b)
    return Change(suite, name, competitor, verdict(ratio, interval), medians, ratio, interval)


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What makes two results hard to compare, the worst first; nothing for two runs of one machine and set-up."""
    packages = [result["machine"].get("packages", {}) for result in (a, b)]
    pairs = {
        "devices": (a["device"], b["device"]),
        "machines": tuple(r["machine"].get("cpu", {}).get("model") or "unknown" for r in (a, b)),
        "GPUs": tuple(", ".join(g["name"] for g in r["machine"].get("gpus", [])) or "none" for r in (a, b)),
        "precisions": (a["precision"], b["precision"]),
        "numbers of threads": (a["threads"], b["threads"]),
        "settings of memory": tuple("steady" if r["steady_memory"] else "default" for r in (a, b)),
        "versions of torch": tuple(p.get("torch") for p in packages),
        "versions of triton": tuple(p.get("triton") for p in packages),
        "schemas": (a["schema"], b["schema"]),
    }
    lines = [f"different {what}: A {x}, B {y}" for what, (x, y) in pairs.items() if x != y]
    if lines and not lines[0].startswith("different schemas"):
        lines.append("so a change of times below need not be one of the code")
    return lines


def together(a: dict[str, Any], b: dict[str, Any], compared: list[Change]) -> Table:
    """By suite and operator or system: fused in all its rows, and how PyTorch's competitors moved.

    compared: what `changes` returned for results a and b
    """
    columns = [("", 30), ("rows", 5), ("fused B / A", 12), ("PyTorch's B / A", 16), ("beside them", 12), ("", 10)]
    table = Table("All rows of fused together", columns)
    samples = [{(row["suite"], row["name"]): saved.samples(row) for row in side["rows"]} for side in (a, b)]
    groups: dict[tuple[str, str], list[Change]] = {}
    for change in compared:
        if change.ratio:
            groups.setdefault((change.suite, change.name.split()[0]), []).append(change)
    for (suite, what), members in groups.items():
        ours = [c for c in members if _ours(c)]
        if not ours:
            continue
        pairs = []
        for c in ours:
            before, after = (side[c.suite, c.name][c.competitor] for side in samples)
            pairs.append([before, [seconds / c.machine for seconds in after]])
        beside = statistics.median(c.beside for c in ours)
        figures = [statistics.median(c.ratio for c in ours), statistics.median(c.machine for c in ours), beside]
        ratios = [f"{figure:.3f}" for figure in figures]
        table.add([f"{suite}: {what}", str(len(ours)), *ratios, joint_verdict(beside, pairs)])
    return table


def joint_verdict(ratio: float, pairs: list[list[list[float]]]) -> str:
    """The verdict on many rows together, by the sum of their rank sums. Source: van Elteren 1960, equal weights.

    ratio: of all rows; pairs: the samples of each row in A and in B
    """
    above = variance = 0.0
    for a, b in pairs:
        for start in (0, 1):
            x, y = np.asarray(a[start::2]), np.asarray(b[start::2])
            above += float(np.sign(np.subtract.outer(y, x)).sum()) / 2
            variance += len(x) * len(y) * (len(x) + len(y) + 1) / 12
    if abs(math.log(ratio)) < math.log1p(LEAST_TOGETHER) or abs(above) <= CERTAIN * math.sqrt(variance):
        return UNCHANGED
    return SLOWER if ratio > 1 else FASTER


def _ours(change: Change) -> bool:
    return change.competitor.split(",")[0] == "fused"


def shown(compared: list[Change], everything: bool) -> Table:
    """Everything in the order of `changes`, or only what changed: suite by suite, fused first, large changes first."""
    columns = [("row", 52), ("competitor", 22), ("A ms", 9), ("B ms", 9), ("B / A", 6), ("99 %", 14), ("beside", 6),
               ("", 15)]  # fmt: skip
    table = Table("Everything" if everything else "What changed", columns, left=2)
    if not everything:
        compared = [change for change in compared if change.verdict != UNCHANGED]
        suites = list(dict.fromkeys(change.suite for change in compared))
        compared = sorted(compared, key=lambda c: (suites.index(c.suite), not _ours(c), -abs(math.log(c.beside or 1))))
    for c in compared:
        name = f"{c.suite}: {short(c.name)}"
        between = f"{c.interval[0]:.3f}..{c.interval[1]:.3f}" if c.interval else "-"
        figures = [*("-" if m is None else ms(m) for m in c.medians), f"{c.ratio:.3f}" if c.ratio else "-", between]
        figures.append(f"{c.beside:.3f}" if c.ratio and _ours(c) else "")
        table.add([name, c.competitor, *figures, c.verdict])
    return table


def summary(compared: list[Change]) -> str:
    """Counts of verdicts on fused and on PyTorch's competitors, and how small a change the samples could have shown."""
    lines = []
    for label, own in (("fused", True), ("PyTorch's competitors", False)):
        counts = Counter(c.verdict for c in compared if c.competitor and _ours(c) is own)
        if counts:
            lines.append(f"{label}: {_counted(counts)}")
    whole = Counter(c.verdict for c in compared if not c.competitor)
    if whole:
        lines.append(f"rows without two times: {_counted(whole)}")
    widths = [math.sqrt(c.interval[1] / c.interval[0]) - 1 for c in compared if c.interval and _ours(c)]
    if widths:
        noisy = sum(width > 0.1 for width in widths)
        lines.append(f"the median row of fused would show a change of {statistics.median(widths):.0%}")
        lines.append(f"{noisy} of {len(widths)} are too noisy to show one of 10%: more --rounds see more")
    return "\n".join(lines)


def _counted(counts: Counter) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])


def main(argv: list[str]) -> int:
    """Prints what changed. Raises InputError for a file that is no result, or has no times in it."""
    arguments = cli.parse(Arguments, argv, prog="python -m benchmarks compare", description=__doc__)
    a, b = saved.read(arguments.a), saved.read(arguments.b)
    for path, result in ((arguments.a, a), (arguments.b, b)):
        if not any(map(_timed, result["rows"])):
            suites = ", ".join(sorted({row["suite"] for row in result["rows"]}))
            raise InputError(f"{path} has no samples of times (its suites: {suites}): compare measured results")
    compared = changes(a, b, arguments.filter)
    if not compared:
        raise InputError(f"no row contains {arguments.filter!r}")
    for letter, path, result in (("A", arguments.a, a), ("B", arguments.b, b)):
        print(f"{letter}: {path}: {saved.machine_words(result)}; commit {(result['commit'] or 'unknown')[:12]}")
    for line in differences(a, b):
        print(f"! {line}")
    table = shown(compared, arguments.all)
    print(table if table.rows else "\nNothing changed beyond noise.")
    joint = together(a, b, compared)
    if joint.rows:
        print(joint)
    print("", summary(compared), sep="\n")
    return 0
