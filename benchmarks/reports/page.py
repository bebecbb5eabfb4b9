"""`python -m benchmarks html A.json OUT.html`: one self-contained page of a saved result; `--html` writes the same."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from matplotlib.figure import Figure

from benchmarks import catalogue
from benchmarks.reports import figures, saved
from benchmarks.timing.table import giga, ms, percent
from engine import __version__, cli
from engine.errors import InputError
from engine.host import atomic_files
from engine.pages.charts import SERIES, inline, styled
from engine.pages.template import fill

# suites with bars of speed-ups, in the page's order: whole programs first, single operators last
SPEEDS = sorted((suite for suite in catalogue.SUITES.values() if suite.heading), key=lambda suite: suite.name == "ops")
SHOWN = tuple(dict.fromkeys([*(suite.name for suite in SPEEDS), *catalogue.MEASURED]))


@dataclass
class Arguments:
    """What `python -m benchmarks html` takes."""

    result: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A.json")]
    """A result of --json."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.html")]
    """The page to write."""


def render(result: dict[str, Any], name: str) -> str:
    """The page of a result of saved.read, as text. Raises InputError if none of its suites has a page.

    name: the page's title
    """
    rows = [row for row in result["rows"] if row["suite"] in SHOWN]
    if not rows:
        raise InputError(f"{name} has no measured rows: a page shows the suites {', '.join(SHOWN)}")
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    return fill(
        template,
        name=name,
        result=result,
        machine=result["machine"],
        lead=saved.machine_words(result),
        tiles=_tiles(result),
        broken=_without_speed(rows),
        sections=_sections(result),
        table=[_figures(row) for row in rows if "speedup" in row and not figures.why_not(row)],
        others=sorted({row["suite"] for row in result["rows"]} - set(SHOWN)),
        written=time.strftime("%Y-%m-%d %H:%M"),
        version=__version__,
    )


def _tiles(result: dict[str, Any]) -> list[dict[str, str]]:
    """The numbers at the top: the time and the speed-ups of the first training step, and the machine's limits."""
    tiles = []
    for row in result["rows"]:
        if row["suite"] == "step" and not figures.why_not(row):
            tiles.append({"value": ms(row["timings"]["fused"]["median"]), "unit": "ms", "name": row["name"]})
            tiles += [{"value": f"{x:.2f}", "unit": "x", "name": f"beside {n}"} for n, x in row["speedup"].items()]
            break
    limits = result["limits"] or {}
    if limits.get("matrix_flops"):
        value = giga(limits["matrix_flops"])
        tiles.append({"value": value, "unit": "GFLOP/s", "name": "matrix product, measured"})
    for which in ("copy", "fill"):
        if limits.get(f"{which}_bytes_per_s"):
            value = giga(limits[f"{which}_bytes_per_s"], 1)
            tiles.append({"value": value, "unit": "GB/s", "name": f"{which}, measured"})
    return tiles


def _without_speed(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Rows without a speed and competitors that are left out of a row, each with the reason."""
    broken = []
    for row in rows:
        if figures.why_not(row):
            why = "; ".join(row["failed"]) if "failed" in row else row["not_run"]
            broken.append({"suite": row["suite"], "name": row["name"], "why": why})
        for name, why in row.get("left_out", {}).items():
            broken.append({"suite": row["suite"], "name": f"{row['name']}, {name}", "why": why})
    return broken


def _sections(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Sections: title, cards, and whether the cards are small and side by side. A section without rows is left out."""
    by_suite = {suite: [row for row in result["rows"] if row["suite"] == suite] for suite in SHOWN}
    sections = []
    for suite in SPEEDS:
        rows = by_suite[suite.name]
        measured = {name for row in rows for name in row.get("speedup", {})}
        legend = {name: colour for name, colour in figures.BASELINES.items() if name in measured}
        cards = [_card(kind, figures.speedups, members, legend=legend) for kind, members in _kinds(rows).items()]
        loaders = [row for row in rows if row.get("times_the_demand")]
        if loaders:
            cards.append(_card("Supply and demand", figures.supply, loaders, legend=figures.SUPPLY))
        sections.append({"title": suite.heading, "cards": cards, "small": False})
    if result["limits"]:
        plot = _card("Algebra and traffic of every operator", figures.roofline, by_suite["ops"], result["limits"])
        sections.append({"title": "Roofline", "cards": [plot] if plot else [], "small": False})
    sections.append({"title": "Peak memory", "cards": _memory(by_suite), "small": False})
    kinds = {"native kernels": SERIES[0], "PyTorch, Python": SERIES[1]}
    cards = [
        _card(f"One fused step, {ms(row['wall']['median'])} ms: {row['name']}", figures.shares, row, legend=kinds)
        for row in by_suite["profile"]
    ]
    sections.append({"title": "Where a step's time goes", "cards": cards, "small": False})
    sections += _scaling(by_suite["scaling"])
    return [section for section in sections if section["cards"]]


def _scaling(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A section for each axis of the suite `scaling`."""
    titles = {
        "threads": "Speed-up over one thread, by threads",
        "processes": "Speed-up over one process of one thread, by processes",
        **{axis: f"Time by {axis}, and the law that fits it" for axis in ("side", "channels", "batch")},
    }
    legend = {name: figures.COLOURS[name] for name in ("fused", "eager")}
    sections = []
    for axis, title in titles.items():
        cards = []
        for row in rows:
            if row["axis"] == axis and not figures.why_not(row):
                draw, note = (figures.sweep, figures.law_words(row)) if "law" in row else (figures.threads, "")
                name = figures.label(row).removesuffix(f" by {axis}")
                cards.append(_card(name, draw, row, legend=legend, note=note))
        sections.append({"title": title, "cards": cards, "small": True})
    return sections


def _memory(by_suite: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Cards of resident size in a process of its own, and of PyTorch's allocations in a step and in operators."""
    legend = {name: colour for name, colour in figures.COLOURS.items() if name != "torch"}
    steps = [row for suite in ("step", "systems") for row in by_suite[suite] if row.get("memory")]
    by_title = {"What three steps add to a process": steps}
    for suite, title in (("step", "What PyTorch allocates in a step"), ("ops", "What PyTorch allocates in operators")):
        allocated = [row for row in by_suite[suite] if not figures.why_not(row) and row.get("allocated")]
        by_title[title] = [row | {"memory": row["allocated"]} for row in allocated]
    return [_card(title, figures.memory, rows, legend=legend) for title, rows in by_title.items() if rows]


def _kinds(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of the suite `ops` by operator; rows of another suite together, under ""."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_kind.setdefault(row["name"].split()[0] if row["suite"] == "ops" else "", []).append(row)
    return by_kind


def _card(
    title: str, draw: Callable[..., Figure | None], *what: Any, legend: dict[str, str] | None = None, note: str = ""
) -> dict[str, Any] | None:
    """A figure as SVG with its title, legend and a note below; None if there is nothing to draw."""
    with styled(f"{draw.__name__} {title}"):
        figure = draw(*what)
        if figure is None:
            return None
        entries = [{"label": name, "series": SERIES.index(colour) + 1} for name, colour in (legend or {}).items()]
        return {"title": title, "svg": inline(figure), "legend": entries, "note": note}


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the page's table: every number that the bars show."""
    timing = row["timings"]["fused"]
    quartiles = "..".join(ms(value) for value in timing["quartiles"])
    speedup = {name: f"{row['speedup'][name]:.2f}" if name in row["speedup"] else "-" for name in figures.BASELINES}
    bf16 = [f"{row['bf16'][name]:.2f}" if name in row.get("bf16", {}) else "-" for name in ("eager", "compile")]
    limits = [percent(row.get(share)) for share in ("share_of_matrix", "share_of_copy")]
    return {"suite": row["suite"], "name": figures.label(row), "ms": ms(timing["median"]), "quartiles": quartiles,
            "speedup": [*speedup.values(), *bf16], "limits": limits}  # fmt: skip


def main(argv: list[str]) -> int:
    """Writes the page. Raises InputError for a file that is no result."""
    arguments = cli.parse(Arguments, argv, prog="python -m benchmarks html", description=__doc__)
    text = render(saved.read(arguments.result), arguments.result.stem)
    atomic_files.write_text(arguments.out, text)
    print(arguments.out)
    return 0
