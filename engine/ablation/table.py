"""Lays out the table of an ablation: a line for each row, a column for each measure."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from engine.evaluation.measures import MEASURES, number

Table = dict[str, dict[str, float]]  # name of a measure -> {label of a row: value}


def columns(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """The columns of the table; shares become percent.

    results: label of a row -> the measures of its model's results
    """
    table = {}
    for measure in MEASURES:
        values = {label: number(measures, measure) for label, measures in results.items()}
        if any(values.values()):
            name = measure.label + (" (%)" if measure.percent else "")
            scale = 100 if measure.percent else 1
            table[name] = {label: scale * value[0] for label, value in values.items() if value is not None}
    return table


def _cells(table: Table, label: str) -> list[str]:
    """The numbers of one row; "" where a measure is missing."""
    return [f"{values[label]:.4g}" if label in values else "" for values in table.values()]


def markdown(table: Table, labels: Sequence[str], notes: Sequence[str]) -> str:
    """The table in Markdown and, below it, the notes."""
    lines = [["row", *table], ["---"] * (1 + len(table)), *([label, *_cells(table, label)] for label in labels)]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", *notes]) + "\n"


def text(table: Table, labels: Sequence[str], notes: Sequence[str]) -> str:
    """The table and the notes for the terminal."""
    lines = [["", *table], *([label, *_cells(table, label)] for label in labels)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = []
    for line in lines:
        cells = (f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        shown.append("  ".join([f"{line[0]:<{widths[0]}}", *cells]))
    return "\n".join([*shown, *notes])


def comma_separated(table: Table, labels: Sequence[str]) -> str:
    """The table as CSV, with every digit of the numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", *table])
    writer.writerows([label, *(values.get(label, "") for values in table.values())] for label in labels)
    return out.getvalue()
