"""The figures of `evaluate`: examples, error heatmaps, bars."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

FULL_ERROR = 96  # of 255: what is this far off, or further, has the last colour
_COLOURS = ("#b4451f", "#8d99a6", "#2b6a99")
_STYLE = {"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "font.family": "sans-serif"}


def error_maps(results: Tensor, originals: Tensor) -> np.ndarray:
    """(N, C, H, W) uint8 twice -> (N, H, W) float: absolute error in 0..255, averaged over the channels."""
    return (results.float() - originals.float()).abs().mean(dim=1).numpy()


def heatmaps(results: Tensor, originals: Tensor) -> bytes:
    """PNG: originals, results and the errors between them (viridis: 0 is blue, 96 of 255 and more is yellow)."""
    count = len(results)
    with rc_context(_STYLE):
        figure = Figure(figsize=(1.35 * count + 1.2, 4.3), layout="constrained", dpi=130)
        FigureCanvasAgg(figure)
        axes = figure.subplots(3, count, squeeze=False)
        drawn = None
        for column, error in enumerate(error_maps(results, originals)):
            for row, images in enumerate((originals, results)):
                pixels = images[column].permute(1, 2, 0).numpy()
                axes[row, column].imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255)
            drawn = axes[2, column].imshow(error, cmap="viridis", vmin=0, vmax=FULL_ERROR)
            axes[2, column].set_xlabel(f"{error.mean():.1f}")
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for row, label in enumerate(("original", "refined", "error")):
            axes[row, 0].set_ylabel(label)
        ticks = [0, 32, 64, FULL_ERROR]
        bar = figure.colorbar(drawn, ax=axes[2, :].tolist(), ticks=ticks, extend="max", fraction=0.03, pad=0.01)
        bar.set_label("of 255")
        return _png(figure)


def bars(panels: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: one small bar chart for each measure.

    panels: {"title": str, "bars": {label: (value, deviation or None)}}; the order of the labels gives the colours.
    """
    labels = list(dict.fromkeys(label for panel in panels for label in panel["bars"]))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(3.1 * columns, 2.5 * rows), layout="constrained", dpi=130)
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        for ax, panel in zip(axes.flat, panels, strict=False):
            _panel(ax, panel, labels)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        return _png(figure)


def _panel(ax: Any, panel: Mapping[str, Any], labels: Sequence[str]) -> None:
    names = list(panel["bars"])
    values = [panel["bars"][name][0] for name in names]
    spread = [panel["bars"][name][1] or 0.0 for name in names]
    colours = [_COLOURS[labels.index(name) % len(_COLOURS)] for name in names]
    style = {"ecolor": "#555555", "capsize": 3, "elinewidth": 1}
    ax.bar(names, values, yerr=spread if any(spread) else None, color=colours, width=0.6, error_kw=style)
    top = max((v + s for v, s in zip(values, spread, strict=True)), default=1.0)
    for position, (value, deviation) in enumerate(zip(values, spread, strict=True)):
        ax.annotate(f"{value:.3g}", (position, value + deviation), ha="center", va="bottom", xytext=(0, 2),
                    textcoords="offset points")  # fmt: skip
    ax.set_ylim(0, top * 1.2 or 1.0)
    ax.set_title(panel["title"], loc="left")
    ax.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
