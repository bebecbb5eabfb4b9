"""Draws the figures of `kiln evaluate` and `kiln ablate`: error heatmaps, bars, comparisons."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

FULL_ERROR = 96  # of 255: an error of this size or more has the last colour of a heatmap
_COLOURS = ("#b4451f", "#8d99a6", "#2b6a99", "#d9a441", "#5b8c5a", "#7a5c86", "#3f4a54")
_STYLE = {"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "font.family": "sans-serif"}


def error_maps(results: Tensor, originals: Tensor) -> np.ndarray:
    """The absolute error of each pixel, averaged over the channels.

    results, originals: (N, C, H, W) uint8. Returns (N, H, W) float32 in 0..255.
    """
    return (results.float() - originals.float()).abs().mean(dim=1).numpy()


def heatmaps(rows: Mapping[str, Tensor], result: str, results: Tensor, wanted: Tensor) -> bytes:
    """A PNG of the rows, the results, and the errors of the results, with a column for each sample.

    rows:    label -> (N, C, H, W) uint8, such as source and target
    result:  the label of the results
    results: (N, C, H, W) uint8
    wanted:  (N, C, H, W) uint8, which the results are compared to
    Errors have the colours of viridis, from blue for 0 to yellow for 96 of 255 and more; below each is its mean.
    """
    rows = {**rows, result: results}
    count, height = len(results), len(rows) + 1
    with rc_context(_STYLE):
        figure = Figure(figsize=(1.35 * count + 1.2, 1.35 * height + 0.25), layout="constrained", dpi=130)
        FigureCanvasAgg(figure)
        axes = figure.subplots(height, count, squeeze=False)
        for row, images in enumerate(rows.values()):
            for column, image in enumerate(images):
                show(axes[row, column], image)
        for column, error in enumerate(error_maps(results, wanted)):
            drawn = axes[-1, column].imshow(error, cmap="viridis", vmin=0, vmax=FULL_ERROR)
            axes[-1, column].set_xlabel(f"{error.mean():.1f}")
            _bare(axes[-1, column])
        for row, label in enumerate((*rows, "error")):
            axes[row, 0].set_ylabel(label)
        ticks = [0, 32, 64, FULL_ERROR]
        bar = figure.colorbar(drawn, ax=axes[-1, :].tolist(), ticks=ticks, extend="max", fraction=0.03, pad=0.01)
        bar.set_label("of 255")
        return _png(figure)


def show(ax: Any, image: Tensor) -> None:
    """Draw an image (C, H, W) uint8 without axes."""
    ax.imshow(image.permute(1, 2, 0).numpy().squeeze(), cmap="gray", vmin=0, vmax=255)
    _bare(ax)


def _bare(ax: Any) -> None:
    """Remove ticks and frame."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def bars(panels: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG with one small bar chart for each measure.

    panels: each {"title": str, "bars": {label: (value, deviation or None)}}; the order of the labels gives the colours
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(3.1 * columns, 2.5 * rows), layout="constrained", dpi=130)
        FigureCanvasAgg(figure)
        _panels(figure.subplots(rows, columns, squeeze=False), panels)
        return _png(figure)


def comparison(images: Mapping[str, Tensor], panels: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG of an ablation: rows of images for the same inputs, and below them the bars of the measures.

    images: label -> (N, C, H, W) uint8, with the same N in each
    panels: as for `bars`
    """
    count, columns = len(next(iter(images.values()))), 3
    below = -(-len(panels) // columns)
    heights = [1.1 * len(images), 2.4 * below]
    with rc_context(_STYLE):
        width = max(9.3, 1.1 * count + 1.3)
        figure = Figure(figsize=(width, sum(heights)), layout="constrained", dpi=130)
        FigureCanvasAgg(figure)
        above, under = figure.subfigures(2, 1, height_ratios=heights) if panels else (figure, None)
        axes = above.subplots(len(images), count, squeeze=False)
        for row, (label, shown) in enumerate(images.items()):
            for column, image in enumerate(shown):
                show(axes[row, column], image)
            axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center")
        if under:
            _panels(under.subplots(below, columns, squeeze=False), panels)
        return _png(figure)


def _panels(axes: Any, panels: Sequence[Mapping[str, Any]]) -> None:
    """Draw a bar chart on each of the axes, and hide the axes that are left."""
    labels = list(dict.fromkeys(label for panel in panels for label in panel["bars"]))
    for ax, panel in zip(axes.flat, panels, strict=False):
        _panel(ax, panel, labels)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)


def _panel(ax: Any, panel: Mapping[str, Any], labels: Sequence[str]) -> None:
    """Draw one bar chart; the place of a bar's label in `labels` gives its colour."""
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
    if len(names) > 3:
        # more than three names fit side by side only in small letters and several lines
        wrapped = [textwrap.fill(name, max(6, 36 // len(names)), break_long_words=False) for name in names]
        ax.set_xticks(range(len(names)), wrapped, fontsize=7)
    if len(names) == 1:
        ax.set_xlim(-1, 1)
    ax.set_ylim(0, top * 1.2 or 1.0)
    ax.set_title(panel["title"], loc="left")
    ax.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
