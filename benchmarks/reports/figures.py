"""The figures of a result's page, from rows of saved.read, in the colours of engine.pages.charts."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from benchmarks.timing.rows import short
from benchmarks.timing.table import ms
from engine.pages.charts import GRID, INK, SERIES

WIDTH = 10.0  # inches
BASELINES = {"eager": SERIES[1], "compile": SERIES[2], "strong": SERIES[3], "torch": SERIES[4]}
SUPPLY = {"fused": SERIES[0], "torch": SERIES[4], "torch draft": SERIES[5]}
COLOURS = {"fused": SERIES[0], **BASELINES}
MARKERS = "osD^vPX"
SMALLEST = 0.01  # share of a step; operators of PyTorch that take less have no bar of their own


def label(row: dict[str, Any]) -> str:
    """A row's name in figures and tables."""
    return short(row["name"])


def why_not(row: dict[str, Any]) -> str | None:
    """The text in place of a speed; None for a row that has a speed."""
    if "failed" in row:
        return "FAILED its check: no speed"
    return "not run" if "not_run" in row else None


def speedups(rows: list[dict[str, Any]]) -> Figure:
    """Bars of every baseline's time over fused's, with a line at 1, the same time."""
    shown = [name for name in BASELINES if any(name in row.get("speedup", {}) for row in rows)] or ["eager"]
    figure, axes = _wide(0.14 * len(rows) * (len(shown) + 1) + 0.6)
    most = max((value for row in rows for value in row.get("speedup", {}).values()), default=1.0)
    for place, row in enumerate(rows):
        if note := why_not(row):
            axes.text(most * 0.01, place, note, va="center", color=SERIES[0], fontweight="bold")
            continue
        for index, name in enumerate(shown):
            if name in row["speedup"]:
                y, value = place + (index - (len(shown) - 1) / 2) * 0.26, row["speedup"][name]
                axes.barh(y, value, 0.22, color=BASELINES[name])
                axes.text(value + most * 0.006, y, f"{value:.2f}x", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [_timed(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, max(most, 1) * 1.07)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlabel("times as long as fused (dashed: the same time)")
    return figure


def _timed(row: dict[str, Any]) -> str:
    name = label(row).partition(" ")[2] if row["suite"] == "ops" else label(row)
    return name if why_not(row) else f"{name}\n{ms(row['timings']['fused']['median'])} ms"


def roofline(rows: list[dict[str, Any]], limits: dict[str, float]) -> Figure | None:
    """FLOP/s that the algebra needs over FLOPs per byte, under both limits; None if no row has both counts."""
    known = [row for row in rows if row.get("algebra_flops") and row.get("bytes") and not why_not(row)]
    if not known:
        return None
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.add_subplot()
    peak, copy = limits["matrix_flops"], limits["copy_bytes_per_s"]
    points = [(row["algebra_flops"] / row["bytes"], row["algebra_flops"] / _seconds(row)) for row in known]
    left, right = min(x for x, _ in points) / 2, max(max(x for x, _ in points) * 2, peak / copy * 4)
    axes.plot([left, peak / copy, right], [left * copy, peak, peak], color=INK, linewidth=1.2)
    axes.annotate(f"matrix product {peak / 1e9:,.0f} GFLOP/s", (right, peak), (-2, 4), textcoords="offset points",
                  ha="right")  # fmt: skip
    axes.annotate(f"copy {copy / 1e9:,.1f} GB/s", (left, left * copy), (10, 2), textcoords="offset points")
    kinds = list(dict.fromkeys(row["name"].split()[0] for row in known))
    for index, kind in enumerate(kinds):
        x, y = zip(*(p for p, row in zip(points, known, strict=True) if row["name"].split()[0] == kind), strict=True)
        axes.scatter(x, y, s=16, label=kind, color=SERIES[index % len(SERIES)], marker=MARKERS[index % len(MARKERS)])
    axes.set(xscale="log", yscale="log", xlim=(left, right), xlabel="FLOPs that the algebra needs, per least byte")
    axes.set_ylabel("FLOP/s of fused")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(loc="lower right", frameon=False, labelcolor=INK)
    _clean(axes, "both")
    return figure


def _seconds(row: dict[str, Any]) -> float:
    return row["timings"]["fused"]["median"]


def sweep(row: dict[str, Any]) -> Figure:
    """Milliseconds by the value that grows, both axes logarithmic, with the fitted law of each competitor."""
    figure, axes = _small()
    for name, timings in reversed(row["timings"].items()):
        values = [int(value) for value in timings]
        law, colour = row["law"][name], COLOURS.get(name, SERIES[5])
        x = np.geomspace(min(values), max(values), 60)
        axes.plot(x, 1e3 * (law["fixed"] + law["unit"] * x ** law["power"]), color=colour, linewidth=1.2)
        medians = [1e3 * timing["median"] for timing in timings.values()]
        axes.plot(values, medians, color=colour, marker="o", markersize=3.5, linestyle="none")
    axes.set(xscale="log", yscale="log", ylabel="ms")
    axes.set_xticks(values, [str(value) for value in values])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    _clean(axes, "y")
    return figure


def law_words(row: dict[str, Any]) -> str:
    """The fitted laws of a sweep's row in words."""
    return "; ".join(
        f"{name} {ms(law['fixed'])} ms + x^{law['power']:.2f}, off by {law['worst']:.0%} at most"
        for name, law in row["law"].items()
    )


def threads(row: dict[str, Any]) -> Figure:
    """Speed-up over one thread (or process) by their number, and the ideal; a tick for each number."""
    figure, axes = _small()
    counts = sorted({int(threads) for by in row["speedup_over_one"].values() for threads in by})
    axes.plot(counts, counts, color=GRID, linewidth=1.2, linestyle=(0, (4, 3)))
    for name, by in reversed(row["speedup_over_one"].items()):
        pairs = sorted((int(threads), ratio) for threads, ratio in by.items())
        axes.plot(*zip(*pairs, strict=True), color=COLOURS.get(name, SERIES[5]), marker="o", markersize=3)
    axes.set_xticks(counts)
    axes.set_ylim(0, None)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    _clean(axes, "y")
    return figure


def shares(row: dict[str, Any]) -> Figure:
    """Bars of the share of a fused step that each kernel takes, all calls of a function together, the longest first."""
    wall = row["wall"]["median"]
    parts = [(name, seconds, SERIES[0]) for name, seconds in kernels(row).items()]
    parts += [(name, seconds, SERIES[1]) for name, seconds in row["outside"].items() if seconds >= SMALLEST * wall]
    parts.sort(key=lambda part: -part[1])
    rest = wall - sum(seconds for _, seconds, _ in parts)
    if rest > 0:
        parts.append(("everything below a hundredth", rest, SERIES[1]))
    figure, axes = _wide(0.24 * len(parts) + 0.5)
    for place, (_, seconds, colour) in enumerate(parts):
        axes.barh(place, seconds / wall, 0.62, color=colour)
        axes.text(seconds / wall + 0.005, place, f"{seconds / wall:.1%}, {ms(seconds)} ms", va="center", fontsize=7.5)
    axes.set_yticks(range(len(parts)), [name for name, _, _ in parts])
    axes.set_ylim(len(parts) - 0.4, -0.6)
    axes.set_xlim(0, max(seconds for _, seconds, _ in parts) / wall * 1.22)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return figure


def kernels(row: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step by native function, for convolutions also by form."""
    seconds: dict[str, float] = {}
    for call in row["calls"]:
        _, _, form = call["shape"].partition(" ")
        name = f"{call['function']} {form}".strip() if "->" in call["shape"] else call["function"]
        seconds[name] = seconds.get(name, 0.0) + call["seconds"]
    return seconds


def supply(rows: list[dict[str, Any]]) -> Figure:
    """Bars of each loader's supply of images over a training step's demand, with a line at the target, 2."""
    figure, axes = _wide(0.14 * len(rows) * (len(SUPPLY) + 1) + 0.6)
    for place, row in enumerate(rows):
        for index, (name, colour) in enumerate(SUPPLY.items()):
            y, times, rate = place + (index - 1) * 0.26, row["times_the_demand"][name], row["images_per_s"][name]
            axes.barh(y, times, 0.22, color=colour)
            axes.text(times * 1.05, y, f"{times:,.1f}x, {rate:,.0f}/s", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    most = max(value for row in rows for value in row["times_the_demand"].values())
    axes.set(xscale="log", xlim=(0.5, max(most, 2) * 3), xlabel="times what a training step takes (dashed: twice)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.axvline(2, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    return figure


def memory(rows: list[dict[str, Any]]) -> Figure:
    """Bars of the peak memory of a step in MiB."""
    shown = [name for name in COLOURS if any(row["memory"].get(name) is not None for row in rows)]
    figure, axes = _wide(0.16 * len(rows) * (len(shown) + 1) + 0.5)
    most = max(value for row in rows for value in row["memory"].values() if value is not None) / 2**20
    for place, row in enumerate(rows):
        for index, name in enumerate(shown):
            if row["memory"].get(name) is not None:
                y, mib = place + (index - (len(shown) - 1) / 2) * 0.2, row["memory"][name] / 2**20
                axes.barh(y, mib, 0.17, color=COLOURS[name])
                axes.text(mib + most * 0.006, y, f"{mib:,.0f}", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, most * 1.08)
    axes.set_xlabel("MiB")
    return figure


def _small() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.2, 2.1), layout="constrained")
    return figure, figure.add_subplot()


def _wide(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=4)
    axes.tick_params(axis="y", labelsize=8)
    return figure, axes


def _clean(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis=grid, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, pad=4)
