"""Lays out the table of an ablation: a line for each row, a column for each measure."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from engine.evaluation.measures import MEASURES, Measure, number

Table = dict[str, dict[str, list[float]]]  # name of a measure -> {label of a row: the value of each seed}


def columns(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """The columns of the table; shares become percent.

    results: label of a row -> the measures of its model's results, for each seed
    """
    table = {}
    for measure in MEASURES:
        values = {label: _values(seeds, measure) for label, seeds in results.items()}
        if any(values.values()):
            name = measure.label + (" (%)" if measure.percent else "")
            table[name] = {label: of for label, of in values.items() if of}
    return table


def over_seeds(seeds: Sequence[Mapping[str, Any]], measure: Measure) -> tuple[float, float | None] | None:
    """A measure of one row: its mean and the standard deviation between seeds; of one seed, that between images.

    seeds: the measures of the row's results, for each seed. Returns None where no seed has the measure.
    """
    found = [value for measures in seeds if (value := number(measures, measure)) is not None]
    if len(seeds) == 1 or not found:
        return found[0] if found else None
    values = [value for value, _ in found]
    return statistics.fmean(values), _spread(values)


def _values(seeds: Sequence[Mapping[str, Any]], measure: Measure) -> list[float]:
    """A measure of each seed that has it, shares in percent."""
    found = [number(measures, measure) for measures in seeds]
    return [value[0] * (100 if measure.percent else 1) for value in found if value is not None]


def _spread(values: Sequence[float]) -> float | None:
    """The standard deviation between seeds; None for one seed."""
    return statistics.stdev(values) if len(values) > 1 else None


def _cells(table: Table, label: str) -> list[str]:
    """The numbers of one row: means, and spreads where there are several seeds; "" where a measure is missing."""
    return [_cell(values[label]) if label in values else "" for values in table.values()]


def _cell(values: Sequence[float]) -> str:
    spread = _spread(values)
    return f"{statistics.fmean(values):.4g}" + ("" if spread is None else f" ± {spread:.2g}")


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
    """The table as CSV, with every digit; with several seeds each measure has a second column, its spread."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    spreads = any(len(values) > 1 for of in table.values() for values in of.values())
    writer.writerow(["row", *(title for name in table for title in ([name, f"{name} spread"] if spreads else [name]))])
    for label in labels:
        line: list[str | float | None] = [label]
        for of in table.values():
            values = of.get(label)
            line.append(statistics.fmean(values) if values else "")
            if spreads:
                line.append(_spread(values) if values else "")
        writer.writerow(line)
    return out.getvalue()
