"""`python -m benchmarks merge OUT.json A.json B.json ...`: one result of several, whose suites were measured apart.

All must be of one machine, one commit and the same versions and settings, for what differs in these differs in speed.
Commits between which nothing that is timed has changed (MEASURED but NOT_TIMED) count as one: the first is kept. A row
that several have is that of the last. The limits are the best that any of them measured, the date the latest.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.checkout import ROOT
from benchmarks.reports import saved
from engine import cli
from engine.errors import InputError
from engine.host import atomic_files

SAME = ("commit", "device", "precision", "threads", "steady_memory")
MEASURED = ("kernels", "engine", "bindings", "benchmarks/timing")
NOT_TIMED = ("engine/verification",)
PACKAGES = ("torch", "triton", "numpy")


@dataclass
class Arguments:
    """What `python -m benchmarks merge` takes."""

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.json")]
    """Where the result of all of them is written."""
    results: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="A.json")]
    """Results of --json."""


def merged(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One result of several, by their names, as saved.read returns them. Raises InputError where they do not fit."""
    (first_name, first), *others = results.items()
    facts = _facts(first)
    for name, result in others:
        for what, value in _facts(result).items():
            if value != facts[what] and not (what == "commit" and _same_code(value, facts[what])):
                difference = f"{first_name} and {name} differ in {what} ({facts[what]} and {value})"
                raise InputError(f"{difference}: merge results of one machine, commit and setting")
    rows = {(row["suite"], row["name"], row.get("axis")): row for r in results.values() for row in r["rows"]}
    limits = [result["limits"] for result in results.values() if result["limits"]]
    best = {name: max(each[name] for each in limits) for name in limits[0]} if limits else None
    date = max(result["date"] or "" for result in results.values()) or None
    return first | {"schema": saved.SCHEMA, "date": date, "limits": best, "rows": list(rows.values())}


def _same_code(one: str | None, other: str | None) -> bool:
    """Whether nothing timed differs between two commits; not where Git lacks one or files were changed (a +)."""
    folders = (*MEASURED, *(f":!{folder}" for folder in NOT_TIMED))
    try:
        command = ["git", "diff", "--quiet", "--end-of-options", f"{one}", f"{other}", "--", *folders]
        return subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    except OSError:
        return False


def _facts(result: dict[str, Any]) -> dict[str, object]:
    """What must be the same in all results."""
    machine = result["machine"]
    cpu, packages = machine.get("cpu", {}), machine.get("packages", {})
    facts = {name: result[name] for name in SAME}
    facts |= {"schema": result["schema"], "processor": cpu.get("model"), "cores": cpu.get("cores")}
    return facts | {"GPUs": machine.get("gpus", [])} | {name: packages.get(name) for name in PACKAGES}


def main(argv: list[str]) -> int:
    """Writes the result. Raises InputError for files that are no results, or do not fit together."""
    arguments = cli.parse(Arguments, argv, prog="python -m benchmarks merge", description=__doc__)
    if not arguments.results:
        raise InputError("no result to merge is given: python -m benchmarks merge OUT.json A.json B.json")
    whole = merged({str(path): saved.read(path) for path in arguments.results})
    atomic_files.write_text(arguments.out, json.dumps(whole, indent=1) + "\n")
    print(arguments.out)
    return 0
