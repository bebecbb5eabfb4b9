"""`python -m benchmarks selftest`: shows on this machine that the benchmark can be believed. Idle, four minutes.

Four processes measure the same few rows: twice as they are, once with fused made 10 % slower, once with a wrong result.
Two runs must agree, `compare` must find the slowdown and nothing else, the wrong result must have no speed and end in
exit status 1. Whatever does not hold is printed, and the exit status is then 1.

What is planted is handed to the suite `ops` as a competitor: a case whose `substitute` runs in place of the operator.
"""

import dataclasses
import functools
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import catalogue
from benchmarks.arguments import Arguments
from benchmarks.checkout import ROOT
from benchmarks.reports import compare, saved
from benchmarks.run import run
from benchmarks.suites import operators
from benchmarks.suites.operators import Case
from benchmarks.timing.table import Table
from engine import cli

ROWS = (
    "resize_conv_act 25x64x16x16->64 up elu",
    "resize_conv_act 25x64x32x32->64 none elu",
    "l1_autoencoder_loss 50x3x64x64",
    "style_loss 25x64x32x32",
)
SLOWED = ROWS[:2]
WRONG = "style_loss"  # the operator
SLOWER = 0.1  # of a row's time
ERROR = 1e-3  # relative
ROUNDS = 50


@dataclass
class SelfTest:
    """No options: the rows are fixed."""


@dataclass(frozen=True)
class Finding:
    """One thing that the benchmark must show, whether it did, and by which figures."""

    what: str
    held: bool
    figures: str


def main(argv: list[str]) -> int:
    """Measures, judges and prints. Returns 1 when something does not hold."""
    cli.parse(SelfTest, argv, prog="python -m benchmarks selftest", description=__doc__)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=4, desc="runs", leave=False, disable=None) as bar:
        results, status = {}, {}
        for plant in ("first", "second", "slower", "wrong"):
            out = Path(folder) / f"{plant}.json"
            undisturbed = str(Path(folder) / "first.json") if plant == "slower" else ""
            command = [sys.executable, "-m", "benchmarks.selftest", plant, str(out), undisturbed]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if not out.exists():
                print(done.stderr, file=sys.stderr)
                return 1
            results[plant], status[plant] = saved.read(out), done.returncode
            bar.update()
    findings = judge(results, status)
    table = Table("What the benchmark must show", [("", 66), ("", 5), ("figures", 60)], left=3)
    for finding in findings:
        table.add([finding.what, "yes" if finding.held else "NO", finding.figures])
    print(table)
    return 0 if all(finding.held for finding in findings) else 1


def judge(results: dict[str, dict[str, Any]], status: dict[str, int]) -> list[Finding]:
    """What four results show. results, exit status: by "first", "second", "slower", "wrong"."""
    return [
        agreement(results["first"], results["second"]),
        slowdown(results["first"], results["slower"]),
        untouched(results["first"], results["slower"]),
        refused(results["wrong"], status["wrong"]),
    ]


def agreement(first: dict[str, Any], second: dict[str, Any]) -> Finding:
    """Whether every speed-up of two runs agrees."""
    other = {row["name"]: row["speedup"] for row in second["rows"]}
    off = [abs(other[row["name"]][n] / x - 1) for row in first["rows"] for n, x in row["speedup"].items()]
    figures = f"{len(off)} speed-ups differ by {max(off):.1%} at most"
    return Finding(f"two runs agree within {compare.LEAST:.0%} on every speed-up", max(off) <= compare.LEAST, figures)


def slowdown(first: dict[str, Any], slower: dict[str, Any]) -> Finding:
    """Whether compare calls every slowed row slower."""
    changes = {
        c.name: c for c in compare.changes(first, slower) if c.competitor == "fused" and c.name.startswith(SLOWED)
    }
    held = len(changes) == len(SLOWED) and all(c.verdict == compare.SLOWER for c in changes.values())
    figures = ", ".join(f"{c.beside:.3f} {c.verdict}" for c in changes.values())
    return Finding(f"compare finds the planted slowdown of {SLOWER:.0%}", held, figures)


def untouched(first: dict[str, Any], slower: dict[str, Any]) -> Finding:
    """Whether compare calls no other row of fused slower."""
    changes = [c for c in compare.changes(first, slower) if c.competitor == "fused" and not c.name.startswith(SLOWED)]
    figures = ", ".join(f"{c.beside:.3f} {c.verdict}" for c in changes)
    return Finding("compare calls no other row slower", all(c.verdict != compare.SLOWER for c in changes), figures)


def refused(wrong: dict[str, Any], status: int) -> Finding:
    """Whether the wrong result alone has no speed, and the exit status is 1."""
    failed = [row["name"] for row in wrong["rows"] if "failed" in row and "speedup" not in row]
    held = status == 1 and len(failed) == 1 and failed[0].startswith(WRONG)
    return Finding("a wrong result removes its row, exit status 1", held, f"{', '.join(failed)}; status {status}")


# the process that measures


def measure(plant: str, out: Path, undisturbed: str) -> int:
    """Runs the rows with something planted or nothing; returns the exit status of `python -m benchmarks ops`.

    undisturbed: path of the result that tells how long a row takes that is to be slowed; "" where nothing is.
    """
    medians = {}
    if undisturbed:
        medians = {row["name"]: row["timings"]["fused"]["median"] for row in saved.read(Path(undisturbed))["rows"]}
    return run(Arguments(suite="ops", rounds=ROUNDS, json=out), [suite_of(planted(plant, medians))])


def planted(plant: str, medians: dict[str, float]) -> list[Case]:
    """The cases of ROWS with something planted or nothing. medians: seconds of fused by row, for the plant "slower"."""
    cases = [case for case in operators.cases("") if case.label.startswith(ROWS)]
    if plant == "wrong":
        return [with_error(case) if case.spec.operator == WRONG else case for case in cases]
    if plant == "slower":
        return [slowed(case, SLOWER * medians[case.label]) if case.label.startswith(SLOWED) else case for case in cases]
    return cases


def suite_of(cases: list[Case]) -> catalogue.Suite:
    """The suite `ops` over these cases, without torch.compile, whose rows tell nothing here and take minutes."""
    measured = functools.partial(operators.run, chosen=cases, compiled=False)
    return dataclasses.replace(catalogue.SUITES["ops"], run=measured, cases=lambda only, quick: cases)


def with_error(case: Case) -> Case:
    """The case with a fused operator whose results are too large by ERROR."""

    def wrong(*args: object, **options: object) -> object:
        result = case.fused(*args, **options)
        return tuple((1 + ERROR) * part for part in result) if isinstance(result, tuple) else (1 + ERROR) * result

    return dataclasses.replace(case, substitute=wrong)


def slowed(case: Case, seconds: float) -> Case:
    """The case with a fused operator that takes so many seconds longer."""

    def slow(*args: object, **options: object) -> object:
        result, end = case.fused(*args, **options), time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return result

    return dataclasses.replace(case, substitute=slow)


if __name__ == "__main__":
    sys.exit(measure(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
