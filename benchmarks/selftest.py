"""`python -m benchmarks selftest`: shows on this machine that the benchmark can be believed. Idle, four minutes.

Four processes measure the same few rows: twice as they are, once with fused made 10 % slower, once with a wrong result.
Two runs must agree, `compare` must find the slowdown and nothing else, the wrong result must have no speed and end in
exit status 1. What does not come out so is said, and the exit status is 1.
"""

import contextlib
import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.arguments import Arguments
from benchmarks.checkout import ROOT
from benchmarks.reports import compare, saved
from benchmarks.suites import operators
from benchmarks.timing.table import Table
from engine import cli, ops

ROWS = (
    "resize_conv_act 25x64x16x16->64 up elu",
    "resize_conv_act 25x64x32x32->64 none elu",
    "l1_autoencoder_loss 50x3x64x64",
    "style_loss 25x64x32x32",
)
PLANTED = ROWS[:2]
WRONG = "style_loss"
SLOWER = 0.1
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
            given = str(Path(folder) / "first.json") if plant == "slower" else ""
            command = [sys.executable, "-m", "benchmarks.selftest", plant, str(out), given]
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
    """What four results show. results, status: by "first", "second", "slower", "wrong"."""
    return [
        agreement(results["first"], results["second"]),
        found(results["first"], results["slower"]),
        untouched(results["first"], results["slower"]),
        refused(results["wrong"], status["wrong"]),
    ]


def agreement(first: dict[str, Any], second: dict[str, Any]) -> Finding:
    """Whether every speed-up of two runs agrees."""
    other = {row["name"]: row["speedup"] for row in second["rows"]}
    off = [abs(other[row["name"]][n] / x - 1) for row in first["rows"] for n, x in row["speedup"].items()]
    figures = f"{len(off)} speed-ups differ by {max(off):.1%} at most"
    return Finding(f"two runs agree within {compare.LEAST:.0%} on every speed-up", max(off) <= compare.LEAST, figures)


def found(first: dict[str, Any], slower: dict[str, Any]) -> Finding:
    """Whether compare calls every slowed row slower."""
    seen = {c.name: c for c in compare.changes(first, slower) if c.competitor == "fused" and c.name.startswith(PLANTED)}
    held = all(c.verdict == compare.SLOWER for c in seen.values())
    figures = ", ".join(f"{c.beside:.3f} {c.verdict}" for c in seen.values())
    return Finding(f"compare finds the planted slowdown of {SLOWER:.0%}", held, figures)


def untouched(first: dict[str, Any], slower: dict[str, Any]) -> Finding:
    """Whether compare calls no other row of fused slower."""
    seen = [c for c in compare.changes(first, slower) if c.competitor == "fused" and not c.name.startswith(PLANTED)]
    figures = ", ".join(f"{c.beside:.3f} {c.verdict}" for c in seen)
    return Finding("compare calls no other row slower", all(c.verdict != compare.SLOWER for c in seen), figures)


def refused(wrong: dict[str, Any], status: int) -> Finding:
    """Whether the wrong result alone has no speed, and the exit status is 1."""
    failed = [row["name"] for row in wrong["rows"] if "failed" in row and "speedup" not in row]
    held = status == 1 and len(failed) == 1 and failed[0].startswith(WRONG)
    return Finding("a wrong result removes its row, exit status 1", held, f"{', '.join(failed)}; status {status}")


# the process that measures


def measure(plant: str, out: Path, given: str) -> int:
    """Runs the rows with something planted or nothing. given: the result that tells how long a slowed row takes."""
    import benchmarks.__main__ as bench

    before = saved.read(Path(given))["rows"] if given else []
    slower = {row["name"]: SLOWER * row["timings"]["fused"]["median"] for row in before}
    chosen = [case for case in operators.cases("") if operators.label(case).startswith(ROWS)]
    operators.cases = lambda only, quick=False: chosen
    Arguments.can_compile = False  # torch.compile's baselines tell nothing here, and take minutes
    with planted(wrong=WRONG if plant == "wrong" else ""), slowed(slower):
        return bench.main(["ops", "--rounds", str(ROUNDS), "--json", str(out)])


@contextlib.contextmanager
def planted(wrong: str) -> Iterator[None]:
    """The operator of this name gives what is a thousandth too large within the block; "" leaves all alone."""
    if not wrong:
        yield
        return
    honest = ops.OPERATORS[wrong]

    def off(*args: object, **options: object) -> object:
        result = honest.function(*args, **options)
        return tuple(1.001 * part for part in result) if isinstance(result, tuple) else 1.001 * result

    ops.OPERATORS[wrong] = dataclasses.replace(honest, function=off)
    try:
        yield
    finally:
        ops.OPERATORS[wrong] = honest


@contextlib.contextmanager
def slowed(by: dict[str, float]) -> Iterator[None]:
    """Fused rows of PLANTED take so many seconds longer within the block. by: seconds by row."""
    honest = operators.both_passes

    def slow(function: Callable, made: dict, sample: Any) -> Callable[[], object]:
        call = honest(function, made, sample)
        owner = next((o.name for o in ops.OPERATORS.values() if o.function is function), "")
        name = f"{owner} {sample.name}"
        pause = by.get(name, 0.0) if name.startswith(PLANTED) else 0.0

        def paused() -> object:
            result, end = call(), time.perf_counter() + pause
            while time.perf_counter() < end:
                pass
            return result

        return paused if pause else call

    operators.both_passes = slow
    try:
        yield
    finally:
        operators.both_passes = honest


if __name__ == "__main__":
    sys.exit(measure(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
