"""Describes the panels of curves that a system's report shows, by their keys in metrics.jsonl."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    key:   a key of metrics.jsonl; "rapd_*" stands for every key that starts with "rapd_"
    label: its name in the legend
    scale: factor of the values
    """

    key: str
    label: str
    scale: float = 1.0


@dataclass(frozen=True)
class Chart:
    """A panel of the report.

    curves: at most three
    note:   a sentence that says what the curves mean
    zero, noisy: as for `charts.draw`
    """

    title: str
    curves: tuple[Curve, ...]
    note: str = ""
    zero: bool = True
    noisy: bool = True


def chart(title: str, note: str = "", *, zero: bool = True, noisy: bool = True, **curves: str) -> Chart:
    """A panel with the curves key=label."""
    return Chart(title, tuple(Curve(key, label) for key, label in curves.items()), note, zero, noisy)
