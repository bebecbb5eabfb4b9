"""Draws training curves and other figures as inline SVG, whose colours follow the page (light or dark)."""

import contextlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from engine.pages.panels import Curve

# colours that matplotlib writes; `inline` exchanges them for the CSS variables of the page
INK, GRID = "#010203", "#010204"
SERIES = ("#0102a1", "#0102a2", "#0102a3", "#0102a4", "#0102a5", "#0102a6")
_POINTS = 400  # of a curve, at most


def thin(steps: np.ndarray, values: np.ndarray, points: int = _POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbouring points until at most `points` are left; the first and the last step stay on the axis."""
    if len(steps) <= points:
        return steps, values
    edges = np.linspace(0, len(steps), points + 1).astype(int)
    means = np.array([values[a:b].mean() for a, b in pairwise(edges)])
    centres = np.array([steps[a:b].mean() for a, b in pairwise(edges)])
    centres[0], centres[-1] = steps[0], steps[-1]
    return centres, means


def smooth(values: np.ndarray, width: float) -> np.ndarray:
    """The mean over about `width` neighbours; exponential weights to both sides keep the curve from lagging."""
    distance = np.abs(np.arange(len(values))[:, None] - np.arange(len(values)))
    weights = np.exp(-2 * distance / max(width, 1e-6))
    return weights @ values / weights.sum(axis=1)


def series(records: Sequence[Mapping[str, float]], curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """The steps and the values of a curve, each (N,) float64; records without a finite value are left out."""
    pairs = [(r["step"], r[curve.key] * curve.scale) for r in records if _finite(r.get(curve.key))]
    steps, values = (np.array(column, dtype=float) for column in zip(*pairs, strict=True)) if pairs else ([], [])
    return np.asarray(steps), np.asarray(values)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def draw(
    name: str, records: Sequence[Mapping[str, float]], curves: Sequence[Curve], *, zero: bool = True, noisy: bool = True
) -> str | None:
    """An <svg> of up to three curves over the steps, or None when no record has a finite value for them.

    name:  seeds the ids in the SVG
    zero:  start the axis at zero when no value is negative
    noisy: show the local mean in front of the values
    """
    drawn = [(index, *series(records, curve)) for index, curve in enumerate(curves)]
    drawn = [entry for entry in drawn if len(entry[1])]
    if not drawn:
        return None
    with styled(name):
        figure = Figure(figsize=(4.2, 2.1), layout="constrained")
        axes = figure.add_subplot()
        for index, steps, values in drawn:
            _line(axes, steps, values, SERIES[index], noisy)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.tick_params(length=0, pad=4)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=(1, 2, 5, 10)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.margins(x=0.01)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.ticklabel_format(axis="y", scilimits=(-3, 5), useMathText=True)
        if zero and min(float(values.min()) for _, _, values in drawn) >= 0:
            axes.set_ylim(0, max(float(values.max()) for _, _, values in drawn) * 1.08 or 1.0)
        return inline(figure)


@contextlib.contextmanager
def styled(name: str) -> Iterator[None]:
    """Within the block matplotlib makes figures as the pages need them.

    name: seeds the ids in the SVG; figures of different names can stand on one page
    """
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 8.5,
        "axes.linewidth": 0.6,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "path.simplify": True,
    }
    with rc_context(style):
        yield


def inline(figure: Figure) -> str:
    """The figure as an <svg>; its colours INK, GRID and SERIES become the page's --soft, --line and --series-N."""
    FigureCanvasSVG(figure)
    page = io.StringIO()
    figure.savefig(page, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _adapt(page.getvalue())


def _line(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, noisy: bool) -> None:
    """Draw a curve; a long noisy one pale, with its local mean in front."""
    x, y = thin(steps, values)
    if len(x) < 60 or not noisy:
        axes.plot(x, y, color=colour, linewidth=1.6, marker="o" if len(x) == 1 else None, markersize=4)
        return
    axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(x, smooth(y, len(x) / 25), color=colour, linewidth=1.6)


def _adapt(svg: str) -> str:
    """The <svg> without XML prologue and fixed size, with the colours and fonts of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px[^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    for index, colour in enumerate(SERIES):
        svg = svg.replace(colour, f"var(--series-{index + 1})")
    return svg.replace(INK, "var(--soft)").replace(GRID, "var(--line)")
