"""`python -m engine.doctor`: what is installed and working here, what runs each operator and why, and what to mend.

It looks at everything even where half of it is broken: torch, the extension, DALI and Triton are only tried. Exit
status 0 when training works here, 1 when something it needs is broken.
"""

import json
from dataclasses import asdict, dataclass

from engine.cli import run
from engine.host import environment
from engine.verification.machine import BROKEN, examine, page


def main(argv: list[str]) -> int:
    """Examine this machine; 1 when something that training needs is broken."""
    as_json = False
    if argv:
        # only now: the doctor has to work without tyro
        import tyro

        from engine.cli import parse

        @dataclass
        class Arguments:
            json: tyro.conf.FlagCreatePairsOff[bool] = False
            """Print JSON instead of the page."""

        description = "Show the environment, what runs each operator and why, and what to mend."
        as_json = parse(Arguments, argv, prog="kiln doctor", description=description).json
    findings = examine()
    operators = environment.operators()
    broken = any(finding.state == BROKEN for finding in findings)
    if as_json:
        found = [asdict(finding) for finding in findings]
        print(json.dumps({"works": not broken, "findings": found, "operators": operators}, indent=2))
    else:
        print(page(findings, operators))
    return 1 if broken else 0


if __name__ == "__main__":
    run("doctor", main)
