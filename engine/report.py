"""`python -m engine.report RUN`: writes the report.html of a run again, from the files in its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from engine.cli import parse, run
from engine.errors import InputError
from engine.inference.exported import is_exported
from engine.training import report


@dataclass
class Arguments:
    """The options of `kiln report`."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder (the --out of `kiln train`)."""


def main(argv: list[str]) -> int:
    """Write the report of a run again, from the files in its folder."""
    arguments = parse(Arguments, argv, prog="kiln report", description="Write the report.html of a run again.")
    if not arguments.run.is_dir():
        raise InputError(f"{arguments.run}: no such run folder")
    if is_exported(arguments.run):
        raise InputError(f"{arguments.run}: an exported model, not a run: it has no report")
    if not any((arguments.run / name).is_file() for name in ("config.json", "metrics.jsonl")):
        raise InputError(f"{arguments.run}: not a run folder (it has neither config.json nor metrics.jsonl)")
    print(report.write(arguments.run, record_environment=False))
    return 0


if __name__ == "__main__":
    run("report", main)
