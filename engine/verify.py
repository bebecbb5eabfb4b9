"""`python -m engine.verify [--device D]`: checks here that the fused operators compute what their references compute.

Operators: every sample of every kernels/<op>/spec.py, forward and gradients, in three dtypes. An error against the
float64 reference may be at most twice that of eager PyTorch in the same dtype, plus the floor in spec.py.
Training: steps of every system, fused and eager, in float32. Every loss and every gradient must agree to 1e-4. Both
start each step from the state of the eager run, because two separate runs that differ by rounding drift apart.
Trained: one more fused step. Every operator call in it, on the weights, activations and gradients that the training
steps have led to, must keep the rule of the operators.
Captured (on cuda): the same fused steps, launched kernel by kernel and as a CUDA graph.
The exit status is 1 when anything fails.
"""

from engine import ops
from engine.cli import parse, run
from engine.host.environment import pick_device
from engine.verification.checks import VerifyOptions, as_json, page, verify


def main(argv: list[str]) -> int:
    """Verify the operators and some training steps, and print a table; returns 1 when anything fails."""
    options = parse(VerifyOptions, argv, prog="kiln verify", description="Check the operators against the references.")
    options.check()
    device = pick_device(options.device)
    if device.type == "cuda":
        ops.require("cuda")
    rows = verify(options, device)
    print(as_json(rows, device) if options.json else page(rows, device))
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    run("verify", main)
