"""Tables that print row by row while a suite runs, and read as Markdown afterwards."""

from dataclasses import dataclass, field


@dataclass
class Table:
    """A title, columns (heading, width; the first `left` of them aligned left), and the rows and notes so far."""

    title: str
    columns: list[tuple[str, int]]
    left: int = 1
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def head(self) -> str:
        """The title and the headings."""
        return f"\n{self.title}\n\n{self.line([heading for heading, _ in self.columns])}"

    def add(self, cells: list[str]) -> str:
        """Enters a row and returns its line. Of fewer cells than columns, the last takes the rest of the line."""
        self.rows.append(cells)
        return self.line(cells)

    def note(self, text: str) -> str:
        """Enters a line that stands below the table in Markdown, and returns it as it is printed between the rows."""
        self.notes.append(text)
        return f"  {text}"

    def __str__(self) -> str:
        return "\n".join([self.head(), *(self.line(cells) for cells in self.rows)])

    def markdown(self) -> str:
        """The whole table as Markdown."""
        headings = [heading for heading, _ in self.columns]
        rule = ["---" if i < self.left else "---:" for i in range(len(headings))]
        rows = "".join(f"| {' | '.join(row)} |\n" for row in (headings, rule, *self.rows))
        return f"## {self.title}\n\n{rows}" + "".join(f"\n{note}.\n" for note in self.notes)

    def line(self, cells: list[str]) -> str:
        """The cells in their columns."""
        widths = [width for _, width in self.columns][: len(cells)]
        if len(cells) < len(self.columns):
            widths[-1] = 0
        aligned = ("<" if i < self.left else ">" for i in range(len(cells)))
        return " ".join(f"{c:{a}{w}}" if w else c for c, a, w in zip(cells, aligned, widths, strict=True)).rstrip()


def ms(seconds: float) -> str:
    """Milliseconds with three figures or two decimals."""
    return f"{seconds * 1e3:.2f}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def percent(share: float | None) -> str:
    """A share of a limit; - where it is unknown."""
    return "-" if share is None else f"{share:.0%}"


def giga(rate: float | None, digits: int = 0) -> str:
    """A rate in thousand millions a second; - where it is unknown."""
    return "-" if rate is None else f"{rate / 1e9:.{digits}f}"
