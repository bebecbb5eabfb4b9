"""The page of a result: whole, self-contained, and without a speed for what failed."""

import copy
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import benchmarks.__main__ as bench
from benchmarks import catalogue, run
from benchmarks.reports import figures, page, saved
from benchmarks.timing.measure import Limits
from engine.pages.charts import styled
from tests.support.benchmark_results import AMD, INTEL, PREDICTED
from tests.support.tiny_run import command

VOID = {"meta", "br", "path", "use", "line", "rect", "img", "link"}


class Balanced(HTMLParser):
    """Fails if a tag is closed that is not the last one opened; collects addresses and text."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


def parsed(text: str) -> Balanced:
    parser = Balanced()
    parser.feed(text)
    assert not parser.open
    return parser


@pytest.fixture(scope="module")
def few():
    """A few rows of every suite of a measured result."""
    result = saved.read(INTEL)
    taken = {}
    for row in result["rows"]:
        taken.setdefault((row["suite"], row["name"].split()[0]), row)
    return result | {"rows": list(taken.values())}


def test_who_is_left_out_is_on_the_page(few):
    row = few["rows"][0]
    left_out = row | {"left_out": {"compile": "it took too long"}, "bf16": {"eager": 0.625}}
    text = page.render(few | {"rows": [left_out]}, "x")
    assert f"{row['name']}, compile" in text and "it took too long" in text and "0.62" in text


def test_the_page_of_a_result(few):
    text = page.render(few, "some name")
    parser = parsed(text)
    assert all(address.startswith("#") for address in parser.addresses)  # only parts of the page's own figures
    assert not re.search(r"<script|@import|url\((?!#)", text) and "prefers-color-scheme: dark" in text
    words = " ".join(parser.text)
    for expected in ("some name", "Intel(R) Xeon(R) Processor", few["commit"], "torch 2.13.0", "385", "26.1",
                     "schema 2", "Training steps of the refiner", "Roofline", "Peak memory", "Where a step's time goes",
                     "Speed-up over one thread", "4.63x", "565.45", "landmark_conv", "1,358"):  # fmt: skip
        assert expected in words, expected
    colours = set(re.findall(r"#[0-9a-f]{6}\b", "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))))
    assert colours <= {"#ffffff"}  # every other colour is a variable of the page, light or dark


def test_the_bars_are_the_speedups(few):
    row = next(row for row in few["rows"] if row["suite"] == "step")
    with styled("test"):
        (axes,) = figures.speedups([row]).axes
    assert [bar.get_width() for bar in axes.patches] == list(row["speedup"].values())


def test_a_failed_row_has_no_speed(few):
    rows = copy.deepcopy(few["rows"])
    failed = next(row for row in rows if row["suite"] == "ops" and row["name"].startswith("style_loss"))
    failed |= {"failed": ["output: error <1e-2>"]}
    scaled = next(row for row in rows if row["suite"] == "scaling")
    scaled |= {"failed": ["loss differs"]}
    left = next(row for row in rows if row["suite"] == "ops" and row["name"].startswith("gram"))
    left.clear()
    left |= {"suite": "ops", "name": "gram 1x2", "not_run": "the budget was spent"}
    text = page.render(few | {"rows": rows}, "x")
    words = " ".join(parsed(text).text)
    assert "FAILED its check: no speed" in words and "output: error <1e-2>" in words and "the budget was spent" in words
    cells = re.search(r"<table class=\"numbers\">.*?</table>", text, re.DOTALL).group()
    assert "style_loss" not in cells and "gram 1x2" not in cells and "landmark_conv" in cells
    with styled("test"):
        (axes,) = figures.speedups([failed, left]).axes
    assert not axes.patches and [t.get_text() for t in axes.texts] == ["FAILED its check: no speed", "not run"]


def test_the_roofline_has_both_limits_and_every_operator_with_both_counts(few):
    rows = [row for row in few["rows"] if row["suite"] == "ops"]
    with styled("test"):
        (axes,) = figures.roofline(rows, few["limits"]).axes
        assert figures.roofline([rows[0] | {"bytes": None}], few["limits"]) is None
    (roof,) = axes.lines
    assert max(roof.get_ydata()) == few["limits"]["matrix_flops"]
    x, y = roof.get_xdata()[0], roof.get_ydata()[0]
    assert y / x == pytest.approx(few["limits"]["copy_bytes_per_s"])
    known = [row for row in rows if row["algebra_flops"] and row["bytes"]]
    points = [tuple(point) for dots in axes.collections for point in dots.get_offsets()]
    assert len(points) == len(known) > 3
    row = known[0]
    expected = (row["algebra_flops"] / row["bytes"], row["algebra_flops"] / row["timings"]["fused"]["median"])
    assert any(point == pytest.approx(expected) for point in points)


def test_the_parts_of_a_step_are_the_whole(few):
    row = next(row for row in few["rows"] if row["suite"] == "profile")
    native = sum(call["seconds"] for call in row["calls"])
    assert sum(figures.kernels(row).values()) == pytest.approx(native)
    with styled("test"):
        (axes,) = figures.shares(row).axes
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(1.0)


def test_the_command(tmp_path, capsys):
    out = tmp_path / "page.html"
    assert command(bench.main, "html", AMD, out) == 0
    assert str(out) in capsys.readouterr().out
    words = " ".join(parsed(out.read_text()).text)
    assert "AMD EPYC" in words and "schema 1" in words and "Peak memory" in words and "Roofline" not in words
    assert command(bench.main, "html", PREDICTED, out) == 2
    message = capsys.readouterr().err
    assert "has no measured rows" in message and message.count("\n") == 1
    assert command(bench.main, "html", tmp_path / "none.json", out) == 2
    assert command(bench.main, "predict", "--html", out) == 2
    assert "predict has no page" in capsys.readouterr().err


def test_html_beside_the_measurement(few, tmp_path, monkeypatch):
    """Rows as a suite returns them: numbers of threads are integers, which JSON turns into text."""
    rows = [copy.deepcopy(row) for row in few["rows"] if row["suite"] in ("ops", "scaling")]
    for row in rows:
        if row["suite"] == "scaling":
            gains = row["speedup_over_one"]
            row["speedup_over_one"] = {n: {int(t): g for t, g in by.items()} for n, by in gains.items()}
            row["timings"] = {n: {int(t): v for t, v in by.items()} for n, by in row["timings"].items()}
    measured = dataclasses.replace(
        catalogue.SUITES["ops"], run=lambda arguments, limits: (rows, []), cases=lambda only, quick: ["one"]
    )
    monkeypatch.setitem(catalogue.SUITES, "ops", measured)
    monkeypatch.setattr(run, "measure_limits", lambda device, precision: Limits(1e11, 1e10, 2e10))
    out, saved_rows = tmp_path / "page.html", tmp_path / "rows.json"
    assert command(bench.main, "ops", "--html", out, "--json", saved_rows) == 0
    text = out.read_text()
    assert command(bench.main, "html", saved_rows, out) == 0
    stamp = re.compile(r"Written .* by Kiln|<h1>.*</h1>|<title>.*</title>")
    assert stamp.sub("", out.read_text()) == stamp.sub("", text)
    assert json.loads(saved_rows.read_text())["schema"] == saved.SCHEMA
    assert Path(out).stat().st_size > 10_000
