"""The report of a `fuse` call: what was replaced, what was left, and why."""

from typing import NamedTuple

from engine.fusion.chains.savings import Savings

FEW = 3  # up to so many lines of the same pattern and reason are each printed


class Entry(NamedTuple):
    """One line of a report: the convolution's (or module's) path, the chain, and what it saves or why it stays."""

    path: str
    pattern: str
    reason: str


class FuseReport:
    """What `fuse` replaced and what it left: two lists of (module path, pattern, reason).

    replaced: the reason is what is saved: products of the convolution as written -> as the operator computes them. With
              example_inputs these are the products of that call, without them those for each value of the result and
              channel of the input
    skipped:  the reason is why it was left; those that begin with "nothing to gain" could be replaced but would not pay
    products: of all replaced chains as written and as computed; None without example_inputs
    error:    norm-wise relative errors: of the fused outputs, of eager's, and the allowed one; None without
              example_inputs
    """

    def __init__(self) -> None:
        self.replaced: list[Entry] = []
        self.skipped: list[Entry] = []
        self.products: tuple[int, int] | None = None
        self.error: tuple[float, float, float] | None = None

    @property
    def refused(self) -> list[Entry]:
        """What was left although it might have paid."""
        return [entry for entry in self.skipped if not entry.reason.startswith("nothing to gain")]

    def leave(self, entry: Entry) -> None:
        """Enters what is left, once: a convolution called twice may be left twice for the same reason."""
        if entry not in self.skipped:
            self.skipped.append(entry)

    def count(self, savings: Savings) -> None:
        """Enters the products that were counted on example_inputs."""
        self.products = savings.total
        counted = savings.chains
        self.replaced = [e._replace(reason=savings.text(e.path)) if e.path in counted else e for e in self.replaced]

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} chains fused, {len(self.skipped)} left as they were"]
        lines += _table("fused", self.replaced) + _table("left", self.skipped)
        if self.products and self.products[0]:
            written, left = self.products
            lines.append(
                f"  products of the fused chains: {written:,} -> {left:,}, {written / max(1, left):.1f} times fewer"
            )
        if self.error:
            lines.append("  outputs: error {:.1e}, eager {:.1e}, allowed {:.1e}".format(*self.error))
        if not self.replaced:
            lines.append("  nothing is gained: the model runs as it did")
        elif self.products is None:
            lines.append("  give example_inputs to compare the outputs and count the products")
        return "\n".join(lines)

    __repr__ = __str__


def _table(title: str, entries: list[Entry]) -> list[str]:
    """Aligned lines; of more than FEW that are alike only the first is printed, with the number of the others."""
    alike: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        alike.setdefault((entry.pattern, entry.reason), []).append(entry.path or "(the model)")
    rows = []
    for (pattern, reason), paths in alike.items():
        shown = paths if len(paths) <= FEW else [f"{paths[0]} and {len(paths) - 1} more"]
        rows += [(path, pattern, reason) for path in shown]
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    return [f"  {title:5}  {p:{widths[0]}}  {pattern:{widths[1]}}  {reason}".rstrip() for p, pattern, reason in rows]
