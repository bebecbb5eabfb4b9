"""What a system's report shows: panels of curves, by their keys in metrics.jsonl."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """One line of a chart: a key of metrics.jsonl ("rapd_*": every key of this beginning) and the name it is given."""

    key: str
    label: str
    scale: float = 1.0


@dataclass(frozen=True)
class Chart:
    """A panel of the report: at most three curves, what they mean, and how to draw them."""

    title: str
    curves: tuple[Curve, ...]
    note: str = ""
    zero: bool = True
    noisy: bool = True


def chart(title: str, note: str = "", *, zero: bool = True, noisy: bool = True, **curves: str) -> Chart:
    """A panel from key=label."""
    return Chart(title, tuple(Curve(key, label) for key, label in curves.items()), note, zero, noisy)
