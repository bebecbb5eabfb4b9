"""Writes report.html, one self-contained page about a run, for the training loop and `kiln report`.

The page needs no server and no other file: curves are inline SVG, samples are data URIs. It is written atomically, so a
browser that reloads it during training always finds a whole page.
"""

import base64
import dataclasses
import io
import json
import re
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from engine.errors import InputError
from engine.host import atomic_files, environment
from engine.host.input_files import UnreadableFile, read_input
from engine.host.reading import read_json
from engine.pages.charts import draw
from engine.pages.panels import Chart, Curve
from engine.pages.template import fill
from engine.systems.base import System
from engine.systems.registry import system_class
from engine.training.metrics import HELD_OUT, missing, missing_text, read_metrics
from engine.version import __version__

ENVIRONMENT = "environment.json"
# largest file of the latest sample grid and of each earlier one, and how many earlier ones the page shows
_LATEST_BYTES, _EARLIER_BYTES, _EARLIER_COUNT = 3_000_000, 300_000, 15
_GRID_BYTES, _GRID_PIXELS = 1 << 28, 1 << 26  # of a file that is taken for a sample grid, at most


def _held_out(what: str, key: str, label: str, note: str = "", *, scale: float = 1.0, zero: bool = True) -> Chart:
    """The chart of a measure on images that are not trained on."""
    curve = Curve(HELD_OUT + key, label, scale)
    return Chart(f"Held-out images: {what}", (curve,), note, zero=zero, noisy=False)


# the charts of every run; the charts of its system stand before them
GENERAL = (
    _held_out(
        "sliced Wasserstein distance", "swd", "x 1000", "How unlike photos the results are as a set: lower is better."
    ),
    _held_out("SSIM", "ssim", "SSIM", "How like its original each result is: 1 is equal.", zero=False),
    _held_out("L1", "l1", "L1", "Mean distance of each result to its original."),
    _held_out("sharpness", "sharpness", "of photos", "1 is as sharp as photos."),
    _held_out("faces found", "detection_rate", "%", "Share of results in which a face is found.", scale=100.0),
    _held_out("PSNR", "psnr", "dB", zero=False),
    Chart("Learning rate", (Curve("lr", "lr"),), noisy=False),
    Chart("Speed", (Curve("images_per_s", "images/s"),)),
    Chart("Waiting for data", (Curve("data_wait", "% of the time", 100.0),)),
    Chart("Memory", (Curve("memory_mb", "MB"),), noisy=False),
)
_NOT_CURVES = {"step", "since", "time", "epoch", "seconds", "eta"}


def _is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that a page can compute with."""
    return type(value) in (int, float) and abs(value) < 1e100


def read_config(path: Path) -> list[dict[str, str]]:
    """The rows {name, value, origin} of a run's config.json: first the values that were chosen, then the defaults.

    [] where there is no such file. Raises InputError for one that is damaged.
    """
    stored = read_json(path) if path.exists() else {}
    if not isinstance(stored, dict):
        raise InputError(f"{path} is damaged: it is not the configuration of a Kiln run")
    rows = []
    for name, entry in stored.items():
        whole = isinstance(entry, dict) and "value" in entry
        value, origin = (entry["value"], entry.get("origin", "")) if whole else (entry, "")
        rows.append({"name": name, "value": _show(value), "origin": str(origin)})
    return sorted(rows, key=lambda row: row["origin"] in ("default", ""))


def _show(value: Any) -> str:
    """A value of config.json as the page shows it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_show, value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def figures(records: Sequence[Mapping[str, Any]], charts: Sequence[Chart]) -> list[dict[str, Any]]:
    """The panels of charts that have values, with the last value of each curve.

    charts: the charts of the run's system. A key of the records that no chart shows gets a panel of its own.
    """
    keys = {key for record in records for key in record}
    charts = [dataclasses.replace(chart, curves=_expanded(chart.curves, keys)) for chart in (*charts, *GENERAL)]
    others = sorted(keys - {curve.key for chart in charts for curve in chart.curves} - _NOT_CURVES)
    unknown = (Chart(key.replace("_", " "), (Curve(key, key),), zero=False) for key in others)
    panels = []
    for chart in (*charts, *unknown):
        svg = draw(chart.title, records, chart.curves, zero=chart.zero, noisy=chart.noisy)
        if svg is None:
            continue
        legend = [
            {"label": curve.label, "value": value}
            for curve in chart.curves
            if (value := _last(records, curve)) is not None
        ]
        panels.append({"title": chart.title, "note": chart.note, "svg": svg, "legend": legend})
    return panels


def _expanded(curves: Sequence[Curve], keys: set[str]) -> tuple[Curve, ...]:
    """The curves; a curve "name_*" becomes one for each key that starts with "name_", smaller numbers first."""
    expanded = []
    for curve in curves:
        if curve.key.endswith("*"):
            start = curve.key[:-1]
            ends = [key[len(start) :] for key in keys if key.startswith(start)]
            ends = sorted(ends, key=lambda end: (len(end), end))
            expanded += [Curve(start + end, f"{curve.label} {end}", curve.scale) for end in ends]
        else:
            expanded.append(curve)
    return tuple(expanded)


def _last(records: Sequence[Mapping[str, Any]], curve: Curve) -> str | None:
    """The last value of a curve, or None."""
    return next((f"{r[curve.key] * curve.scale:.4g}" for r in reversed(records) if curve.key in r), None)


def samples(folder: Path) -> list[dict[str, Any]]:
    """The sample grids in the order of their steps, as {step, uri, width, height}: the last one and some earlier ones.

    Earlier grids are shrunk to smaller files than the last one. Standard error names those that cannot be read.
    """
    paths = [folder / name for name in atomic_files.contents(folder) if name.endswith(".png")]
    paths.sort(key=lambda path: (_step_of(path), path.name))
    if len(paths) > _EARLIER_COUNT + 1:
        gap = (len(paths) - 1) / _EARLIER_COUNT
        paths = [paths[round(index * gap)] for index in range(_EARLIER_COUNT)] + [paths[-1]]
    grids = []
    for path in paths:
        limit = _LATEST_BYTES if path == paths[-1] else _EARLIER_BYTES
        try:
            uri, size = _embed(path, limit)
        except (UnreadableFile, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            print(f"{path} is left out of the report: {error}", file=sys.stderr)
            continue
        grids.append({"step": _step_of(path), "uri": uri, "width": size[0], "height": size[1]})
    return grids


def _step_of(path: Path) -> int:
    """The last number in a file's name; 0 without one."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else 0


def _embed(path: Path, limit: int) -> tuple[str, tuple[int, int]]:
    """A PNG as a data URI of at most about `limit` bytes, and the width and height of the file's image.

    The image is halved in size until its file has at most `limit` bytes or a side has at most 64 pixels.
    Raises UnreadableFile, OSError, ValueError, SyntaxError or DecompressionBombError for what is no picture of
    bearable size.
    """
    content = read_input(path, _GRID_BYTES)
    with Image.open(io.BytesIO(content)) as image:
        size = image.size
        if size[0] * size[1] > _GRID_PIXELS:
            raise ValueError(f"it has {size[0]} x {size[1]} pixels")
        image.load()
        while len(content) > limit and min(image.size) > 64:
            image = image.convert("RGB").resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
            buffer = io.BytesIO()
            image.save(buffer, "PNG", optimize=True)
            content = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(content).decode(), size


def summary(
    records: Sequence[Mapping[str, Any]], config: Mapping[str, str], headline: Sequence[str]
) -> list[dict[str, str]]:
    """The tiles {name, value, unit} at the top of the page.

    headline: the keys of the losses that the system shows there
    """
    if not records:
        return []
    last = records[-1]
    planned = config.get("steps")
    tiles = [{"name": "step", "value": f"{last['step']:,}", "unit": f"of {int(planned):,}" if _whole(planned) else ""}]
    if "time" in last:
        tiles.append({"name": "training time", "value": _duration(last["time"]), "unit": ""})
    speeds = [r["images_per_s"] for r in records if "images_per_s" in r]
    if speeds:
        tiles.append({"name": "median speed", "value": f"{statistics.median(speeds):.4g}", "unit": "images/s"})
    waits = [r["data_wait"] for r in records if "data_wait" in r]
    if waits:
        tiles.append({"name": "waiting for data", "value": f"{100 * statistics.fmean(waits):.1f}", "unit": "%"})
    memory = [r["memory_mb"] for r in records if "memory_mb" in r]
    if memory:
        tiles.append({"name": "peak memory", "value": f"{max(memory):,.0f}", "unit": "MB"})
    for key in headline:
        if key in last:
            tiles.append({"name": key.replace("_", " "), "value": f"{last[key]:.4g}", "unit": ""})
    return tiles


def _system(config: Mapping[str, str]) -> type[System] | None:
    """The class of the run's system; None where its config.json is missing or of another version."""
    try:
        return system_class(config.get("system", ""))
    except InputError:
        return None


def _whole(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdecimal() and len(text) < 20


def _duration(seconds: float) -> str:
    """A time in words, as "1 h 05 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _environment(run_dir: Path, record: bool) -> dict[str, Any] | None:
    """The machine and versions that the run was trained with, from its environment.json; None when that is missing.

    record: write this machine's description first when there is no such file
    Raises InputError for a file that is damaged.
    """
    path = run_dir / ENVIRONMENT
    if not path.exists():
        if not record:
            return None
        atomic_files.write_text(path, json.dumps(environment.snapshot(), indent=2) + "\n")
    machine = read_json(path)
    if not _is_machine(machine):
        raise InputError(f"{path} is damaged: it does not describe a machine; remove it to go without")
    return machine


def _is_machine(value: Any) -> bool:
    """Whether a value of JSON has what the page shows of a machine, as engine.host.environment.snapshot gives it."""
    if not isinstance(value, dict):
        return False
    parts = {"cpu": dict, "memory": dict, "gpus": list, "packages": dict}
    if not all(isinstance(value.get(name), kind) for name, kind in parts.items()):
        return False
    cpu, gpus, memory = value["cpu"], value["gpus"], value["memory"]
    return (
        {"torch_threads", "platform", "python", "kiln", "operators"} <= value.keys()
        and {"model", "cores", "flags"} <= cpu.keys()
        and isinstance(cpu["flags"], list)
        and all(isinstance(gpu, dict) and {"name", "memory"} <= gpu.keys() and _is_count(gpu["memory"]) for gpu in gpus)
        and "total" in memory
        and _is_count(memory["total"])
    )


def _is_count(value: Any) -> bool:
    """Whether a value of JSON is a number of bytes, or unknown."""
    return value is None or _is_number(value)


def render(run_dir: Path, *, record_environment: bool = False) -> str:
    """The page as text; record_environment: as for `write`."""
    rows = read_config(run_dir / "config.json")
    config = {row["name"]: row["value"] for row in rows}
    records = read_metrics(run_dir / "metrics.jsonl")
    machine = _environment(run_dir, record_environment)
    system = _system(config)
    template = resources.files("engine.pages").joinpath("report.html.j2").read_text(encoding="utf-8")
    return fill(
        template,
        name=run_dir.resolve().name,
        folder=shlex.quote(str(run_dir)),
        config=config,
        changed=[row for row in rows if row["origin"] not in ("default", "")],
        defaults=[row for row in rows if row["origin"] in ("default", "")],
        gaps=missing_text(missing(records)),
        tiles=summary(records, config, system.headline if system else ()),
        charts=figures(records, system.charts if system else ()),
        uses=system.kind.next_steps if system else (),
        samples=samples(run_dir / "samples"),
        machine=machine,
        written=time.strftime("%Y-%m-%d %H:%M"),
        version=__version__,
    )


def write(run_dir: Path, *, record_environment: bool = True) -> Path:
    """Write RUN/report.html from those files of the run that exist, and return its path.

    record_environment: write this machine's description to RUN/environment.json when there is none yet
    Raises InputError for a file of the run that is damaged, OSError where one cannot be read or the page written.
    """
    run_dir = Path(run_dir)
    path = run_dir / "report.html"
    atomic_files.write_text(path, render(run_dir, record_environment=record_environment))
    return path
