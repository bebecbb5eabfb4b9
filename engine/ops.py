"""The public operators: every folder of kernels/ by its name, and `explain`, which tells what runs them here."""

from engine.kernels import _op as _contract

OPERATORS = _contract.discover()
globals().update({name: operator.function for name, operator in OPERATORS.items()})
__all__ = ["OPERATORS", "Explanation", "explain", *OPERATORS]


class Explanation(list):
    """Rows (operator, device, kind, why); prints as a table."""

    def __str__(self) -> str:
        rows = [("operator", "device", "implementation", "why"), *((r.operator, r.device, r.kind, r.why) for r in self)]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows)


def explain(operator: str | None = None) -> Explanation:
    """Which implementation runs each operator (or one, by name) on each device of this machine, and why.

    Returns a list of rows with the fields operator, device, kind ("native C++", "library GEMM", "none") and why.
    Raises KeyError for an unknown name.
    """
    chosen = OPERATORS.values() if operator is None else [OPERATORS[operator]]
    return Explanation(row for op in chosen for row in op.implementations())
