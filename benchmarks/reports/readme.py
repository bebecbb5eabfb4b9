"""`python -m benchmarks readme A.json` (make readme-figures): the README's measured table and plot, from a result.

The text between two comments in README.md, and docs/benchmark.svg, are written from the result, never by hand. So are
the tables of docs/systems.md and docs/fuse.md if the result has their suites.
"""

import re
import subprocess
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import tyro
from matplotlib.patches import Patch

from benchmarks.checkout import ROOT
from benchmarks.reports import figures, saved
from benchmarks.timing.table import percent
from engine import cli
from engine.errors import InputError
from engine.host import atomic_files
from engine.pages.charts import INK, inline, styled

BEGIN = "<!-- written by `make readme-figures`: begin -->"
END = "<!-- written by `make readme-figures`: end -->"
PLOT = "docs/benchmark.svg"
AGAINST = ("eager", "compile", "strong")
_IN_BF16 = ["bf16 eager", "bf16 compile"]
# title of a row in the README -> its suite and its name in a result, without the layout
ROWS = {
    "nearest x2 + conv 3x3 + ELU, 25x64x32x32": ("ops", "resize_conv_act 25x64x32x32->64 up elu"),
    "conv 3x3 + ELU + nearest /2, 25x64x64x64": ("ops", "resize_conv_act 25x64x64x64->64 down elu"),
    "conv 3x3 + ELU, 25x64x64x64": ("ops", "resize_conv_act 25x64x64x64->64 none elu"),
    "reflected conv 3x3 + ReLU, 25x64x32x32": ("ops", "resize_conv_act 25x64x32x32->64 3x3 reflect relu"),
    "conv 4x4 stride 2 + LeakyReLU, 64x128x16x16 -> 256": (
        "ops",
        "resize_conv_act 64x128x16x16->256 4x4/2 leaky_relu",
    ),
    "transposed conv 4x4 stride 2 + ReLU, 64x128x16x16 -> 64": (
        "ops",
        "resize_conv_act 64x128x16x16->64 transposed 4x4/2 relu",
    ),
    "batch norm + LeakyReLU, 64x64x32x32": ("ops", "norm_act 64x64x32x32 batch leaky_relu"),
    "instance norm + ReLU, 1x64x128x128": ("ops", "norm_act 1x64x128x128 instance relu"),
    "conv of 68 landmark heatmaps and an image, 3x3, 25x64x64 -> 64": (
        "ops",
        "landmark_conv 25x(3+68)x64x64->64 3x3 padding 1",
    ),
    "Gram style loss, 16x128x32x32": ("ops", "style_loss 16x128x32x32"),
    "L1 autoencoder loss, 50x3x64x64": ("ops", "l1_autoencoder_loss 50x3x64x64"),
    "whole refiner step, 64x64, 64 filters, batch 25": ("step", "refiner 64x64, 64 filters, batch 25"),
    "whole refiner step, 64x64, 16 filters, batch 16": ("step", "refiner 64x64, 16 filters, batch 16"),
}
FONT = 'text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }'


@dataclass
class Arguments:
    """What `python -m benchmarks readme` takes."""

    result: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A.json")]
    """A result of --json with the suites ops and step, in benchmarks/results."""


def chosen(result: dict[str, Any], path: str) -> dict[str, dict[str, Any]]:
    """The rows of ROWS by their title in the README. Raises InputError if the result lacks one."""
    rows = {(row["suite"], figures.label(row)): row for row in result["rows"]}
    lacking = [name for suite, name in ROWS.values() if (suite, name) not in rows]
    if lacking:
        raise InputError(f"{path} lacks {len(lacking)} rows of the README, the first {lacking[0]!r}: measure `all`")
    return {title: rows[key] for title, key in ROWS.items()}


def block(result: dict[str, Any], path: str) -> str:
    """The text between the comments: machine, date, commit, table, plot, memory. path: of the result, as a link."""
    rows = chosen(result, path)
    lines = [f"{_machine(result)}; {_when(result)}", f"([every sample]({path})).", ""]
    lines += [f"| forward + backward | fused | {' | '.join(AGAINST)} |", f"| --- {'| --- ' * (len(AGAINST) + 1)}|"]
    for title, row in rows.items():
        note = figures.why_not(row)
        cells = [note, *["-"] * len(AGAINST)] if note else [_time(row["timings"]["fused"]["median"]), *_speedups(row)]
        lines.append(f"| {' | '.join([title, *cells])} |")
    lines += ["", f"![Times as long as fused: eager, compile and strong, for each row of the table]({PLOT})"]
    largest = rows["whole refiner step, 64x64, 64 filters, batch 25"]
    if largest.get("memory"):
        mib = {name: count / 2**20 for name, count in largest["memory"].items() if count is not None}
        others = ", ".join(f"{mib[name]:,.0f} ({name})" for name in AGAINST if name in mib)
        lines += ["", f"Peak memory of the larger step: {mib['fused']:,.0f} MiB against {others}."]
    return "\n".join(lines)


def systems_block(result: dict[str, Any], path: str) -> str | None:
    """The table of docs/systems.md; None if the result has no such suite."""
    rows = _of_suite(result, "systems")
    bf16, memory = (any(row.get(what) for row in rows) for what in ("bf16", "memory"))
    heads = ["step", "fused", "eager", "compile", *_IN_BF16 * bf16, *["memory of eager's"] * memory]
    lines = [_lead(result, f"../{path}"), "", *_heads(heads)]
    for row in rows:
        note = figures.why_not(row)
        cells = [note] if note else [_time(row["timings"]["fused"]["median"]), *_speedups(row, 2)[:2]]
        cells += [] if note else _beside(row) * bf16 + [_of_eager(row)] * memory
        lines.append(f"| {' | '.join([row['name'], *cells, *['-'] * (len(heads) - 1 - len(cells))])} |")
    lines += [
        f"\n{row['name']}: {name} left out: {why}." for row in rows for name, why in row.get("left_out", {}).items()
    ]
    return "\n".join(lines) if rows else None


def fuse_block(result: dict[str, Any], path: str) -> str | None:
    """The table of docs/fuse.md; None if the result has no such suite."""
    rows = _of_suite(result, "fuse")
    bf16 = any(row.get("bf16") for row in rows)
    heads = ["model", "fused, left", "pass", "fused", "eager", "compile", *_IN_BF16 * bf16]
    lines = [_lead(result, f"../{path}"), "", *_heads(heads)]
    for row in rows:
        model, _, which = row["name"].partition(", ")
        counts = f"{row['replaced']}, {row['skipped']}" if "replaced" in row else "-"
        note = row.get("not_run") or figures.why_not(row)
        cells = (
            [which or "-", note] if note else [which, _time(row["timings"]["fused"]["median"]), *_speedups(row, 2)[:2]]
        )
        cells += [] if note else _beside(row) * bf16
        lines.append(f"| {' | '.join([model, counts, *cells, *['-'] * (len(heads) - 2 - len(cells))])} |")
    lines += [f"\n{text}" for text in dict.fromkeys(text for row in rows for text in _notes_of_fuse(row))]
    return "\n".join(lines) if rows else None


PAGES = {"docs/systems.md": systems_block, "docs/fuse.md": fuse_block}


def _heads(names: list[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", f"| {' | '.join(['---'] * len(names))} |"]


def _beside(row: dict[str, Any]) -> list[str]:
    """The cells of _IN_BF16."""
    return [f"{row['bf16'][name]:.2f}x" if name in row.get("bf16", {}) else "-" for name in ("eager", "compile")]


def _of_eager(row: dict[str, Any]) -> str:
    return percent(row["memory"]["fused"] / row["memory"]["eager"]) if row.get("memory") else "-"


def _notes_of_fuse(row: dict[str, Any]) -> list[str]:
    """Sentences on a model in which nothing is fused, and on who is left out."""
    model = row["name"].partition(", ")[0]
    notes = [f"{model}: {name} left out: {why}." for name, why in row.get("left_out", {}).items()]
    if row.get("replaced") == 0 and "speedup" in row:
        notes.append(f"{model}: nothing is fused: {'; '.join(row['reasons'])}.")
    return notes


def _of_suite(result: dict[str, Any], suite: str) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["suite"] == suite]


def _lead(result: dict[str, Any], path: str) -> str:
    return f"{_machine(result)}; {_when(result)} ([every sample]({path})). Times as long as fused, medians:"


def _machine(result: dict[str, Any]) -> str:
    cpu = result["machine"].get("cpu", {})
    flags = cpu.get("flags", [])
    widest = next((f" ({name})" for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")
    plain = re.sub(r"\((R|TM)\)", "", cpu.get("model") or "an unknown processor") + widest
    return saved.machine_words(result).replace(cpu.get("model") or "an unknown processor", plain)


def _when(result: dict[str, Any]) -> str:
    """The date of the measurement and the commit; for a result older than schema 4 the date of the commit."""
    commit = result["commit"] or "unknown"
    if result["date"]:
        return f"{result['date']}, commit {commit[:12]}"
    command = ["git", "show", "-s", "--format=%cs", commit.rstrip("+")]
    try:
        date = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"commit {commit[:12]}"
    return f"commit {commit[:12]} of {date}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.3g} ms"


def _speedups(row: dict[str, Any], digits: int = 1) -> list[str]:
    return [f"{row['speedup'][name]:.{digits}f}x" if name in row["speedup"] else "-" for name in AGAINST]


def replaced(text: str, inside: str) -> str:
    """The page with `inside` between its two comments. Raises InputError if it has not each of them once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(f"a page must hold {BEGIN} and then {END} once each: put them around the measured table")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{inside}\n{END}{rest.partition(END)[2]}"


def plot(result: dict[str, Any], path: str) -> str:
    """The bars as text of an SVG file, which is light or dark as the reader's system is."""
    named = [row | {"suite": "", "name": title} for title, row in chosen(result, path).items()]
    with styled("readme"):
        figure = figures.speedups(named)
        handles = [Patch(color=figures.BASELINES[name], label=name) for name in AGAINST]
        figure.axes[0].legend(handles=handles, loc="lower right", frameon=False, labelcolor=INK)
        drawn = inline(figure)
    page = resources.files("engine.pages").joinpath("page.css.j2").read_text(encoding="utf-8")
    light, dark = (values.strip() for values in re.findall(r":root \{(.*?)\}", page, re.DOTALL))
    style = f"svg {{ {light} background: var(--card); }}\n{FONT}\n"
    style += f"@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    opening, rest = re.match(r"(<svg[^>]*>)(.*)", drawn, re.DOTALL).groups()
    return f'{opening[:-1]} width="{90 * figures.WIDTH:.0f}">\n<style>\n{style}\n</style>{rest}'


def main(argv: list[str]) -> int:
    """Writes README.md, the plot and the pages. Raises InputError for a file that is no result or lacks a row."""
    arguments = cli.parse(Arguments, argv, prog="python -m benchmarks readme", description=__doc__)
    result, path = saved.read(arguments.result), arguments.result.resolve()
    link = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else arguments.result.name
    readme = ROOT / "README.md"
    written = {}
    if not {row["suite"] for row in result["rows"]} <= {"systems", "fuse"}:
        written[readme] = replaced(readme.read_text(encoding="utf-8"), block(result, link))
        written[ROOT / PLOT] = plot(result, link)
    for name, make in PAGES.items():
        if inside := make(result, link):
            written[ROOT / name] = replaced((ROOT / name).read_text(encoding="utf-8"), inside)
    for file, content in written.items():
        atomic_files.write_text(file, content)
    print(", ".join(map(str, written)))
    return 0
