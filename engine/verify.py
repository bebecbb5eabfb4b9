"""`python -m engine.verify [--device D]`: do the fused operators compute what their references do, on this machine?

Operators: every sample of every kernels/<op>/spec.py, forward and gradients, in three dtypes. An error against the
float64 reference may be at most twice that of eager PyTorch in the same dtype, plus the floor named in spec.py.
Training: steps of every system fused and eager, in float32; every loss and every gradient must agree to 1e-4.
Both start each step from the state of the eager run: left alone, two runs that differ by rounding drift apart.
Trained: every operator call of one more fused step, on the very weights, activations and gradients that training has
made, keeps the operators' rule.
Captured (on cuda): the same fused steps launched kernel by kernel and as a CUDA graph. Exit status 1 when anything
fails.
"""

import json
from dataclasses import asdict

import torch

from engine.cli import parse, run
from engine.errors import InputError
from engine.host.environment import pick_device
from engine.verification.checks import VerifyOptions, table, verify


def main(argv: list[str]) -> int:
    """Verify the operators and some training steps; 1 when anything fails."""
    arguments = parse(
        VerifyOptions, argv, prog="kiln verify", description="Check the operators against the references."
    )
    arguments.systems()
    if arguments.steps < 0:
        raise InputError(f"--steps must not be negative, got {arguments.steps}")
    device = pick_device(arguments.device)
    rows = verify(arguments, device)
    failed = [row for row in rows if not row.passed]
    if arguments.json:
        found = [{**asdict(row), "passed": row.passed} for row in rows]
        print(
            json.dumps(
                {"device": str(device), "torch": torch.__version__, "passed": not failed, "rows": found}, indent=2
            )
        )
    else:
        print(table(rows))
        checks = sum(row.checks for row in rows)
        verdict = f"{len(failed)} of {len(rows)} rows FAILED" if failed else "all PASSED"
        print(f"\n{checks} checks on {device}: {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    run("verify", main)
