"""`python -m engine.doctor`: shows what is installed and works here, what runs each operator and why, and what to fix.

The doctor looks at everything even where half of it is broken: torch, the extension, DALI and Triton are only tried.
The exit status is 0 when training works on this machine, and 1 when something that training needs is broken.
"""

from dataclasses import dataclass

from engine.cli import run
from engine.host import environment
from engine.verification.machine import as_json, examine, page, works


def main(argv: list[str]) -> int:
    """Examine this machine and print the findings; returns 1 when something that training needs is broken."""
    form = page
    if argv:
        # imported only where there is something to parse, because the doctor has to work without tyro
        import tyro

        from engine.cli import parse

        @dataclass
        class Arguments:
            json: tyro.conf.FlagCreatePairsOff[bool] = False
            """Print JSON instead of the page."""

        description = "Show the environment, what runs each operator and why, and what to fix."
        form = as_json if parse(Arguments, argv, prog="kiln doctor", description=description).json else page
    findings = examine()
    print(form(findings, environment.operators()))
    return 0 if works(findings) else 1


if __name__ == "__main__":
    run("doctor", main)
