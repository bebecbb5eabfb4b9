"""The README's measured table and plot are written from a result, and show its figures."""

import copy
import json
import re
import shutil
from typing import Any
from xml.etree import ElementTree

import pytest

import benchmarks.__main__ as bench
from benchmarks.reports import readme, saved
from benchmarks.timing import rows
from benchmarks.timing.measure import Timing
from engine.errors import InputError
from tests.support.benchmark_results import AMD, INTEL
from tests.support.places import ROOT
from tests.support.tiny_run import command


def intel() -> dict[str, Any]:
    """The Intel machine's result as it lies in its file, with a row for each of the README's that is younger."""
    result = json.loads(INTEL.read_text())
    seconds = {"fused": 0.01, "eager contiguous": 0.02, "compile contiguous": 0.03, "strong contiguous": 0.015}
    timings = {name: Timing([each] * 3) for name, each in seconds.items()}
    known = {row["name"].removesuffix(" channels_last") for row in result["rows"]}
    younger = [rows.row(suite, name, timings, []) for suite, name in readme.ROWS.values() if name not in known]
    result["rows"] += json.loads(json.dumps(younger))
    return result


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that stands for the checkout, with its README and one result."""
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "new.json").write_text(json.dumps(intel()))
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    return tmp_path


def test_the_readme_is_as_written():
    """`make readme-figures` wrote it from the result that it links, and nobody changed it by hand since."""
    text = (ROOT / "README.md").read_text()
    link = re.search(r"\[every sample\]\((.*?)\)", text).group(1)
    again = readme.replaced(text, readme.block(saved.read(ROOT / link), link))
    # the date of an older commit is known only if this checkout's history has it
    written, expected = (re.sub(r"(commit \w{12}) of [\d-]+", r"\1", t) for t in (text, again))
    assert written == expected and (ROOT / readme.PLOT).is_file() and readme.PLOT in text


def test_the_pages_are_as_written():
    for name, make in readme.PAGES.items():
        page = (ROOT / name).read_text()
        link = re.search(f"{readme.BEGIN}.*?\\[every sample\\]\\(../(.*?)\\)", page, re.DOTALL).group(1)
        assert readme.replaced(page, make(saved.read(ROOT / link), link)) == page


def test_the_tables_of_other_suites(checkout):
    timings = {"fused": Timing([0.01] * 3), "eager contiguous": Timing([0.02] * 3), "compile": Timing([0.015] * 3)}
    counts = {"replaced": 3, "skipped": 1}
    added = [
        rows.row("systems", "began 32x32", timings, []),
        rows.row("systems", "wrong 32x32", {}, ["off"]),
        rows.row("fuse", "U-Net, forward", timings, []) | counts,
        {"suite": "fuse", "name": "absent", "not_run": "x is not installed"},
    ]
    result = intel()
    result["rows"] += json.loads(json.dumps(added))
    path = checkout / "benchmarks" / "results" / "new.json"
    path.write_text(json.dumps(result))
    for name in readme.PAGES:
        shutil.copy(ROOT / name, checkout / name)
    assert command(bench.main, "readme", path) == 0
    systems, fuse = ((checkout / name).read_text() for name in readme.PAGES)
    assert "| began 32x32 | 10 ms | 2.00x | 1.50x |" in systems and "| wrong 32x32 | FAILED its check" in systems
    assert "| U-Net | 3, 1 | forward | 10 ms | 2.00x | 1.50x |" in fuse
    assert "| absent | - | - | x is not installed | - | - |" in fuse and "(../benchmarks/results/new.json)" in fuse


def test_bf16_memory_and_what_is_left_out():
    timings = {"fused": 0.01, "eager contiguous": 0.02, "bf16-eager contiguous": 0.005}
    timings = {name: Timing([seconds] * 3) for name, seconds in timings.items()}
    left_out = {"compile": "it fails"}
    step = rows.row("systems", "began 64x64", timings, [], left_out) | {"memory": {"fused": 1, "eager": 4}}
    plain = rows.row("systems", "wrong 64x64", {}, ["off"])
    counts = {"replaced": 0, "skipped": 1, "reasons": ["kernel size"]}
    model = rows.row("fuse", "U-Net, forward", timings, [], left_out) | counts
    result = saved.newest(intel(), "intel.json") | {"rows": [step, plain, model]}
    systems, fuse = readme.systems_block(result, "x.json"), readme.fuse_block(result, "x.json")
    assert "| step | fused | eager | compile | bf16 eager | bf16 compile | memory of eager's |" in systems
    assert "| began 64x64 | 10 ms | 2.00x | - | 0.50x | - | 25% |" in systems
    assert "| wrong 64x64 | FAILED its check: no speed | - | - | - | - | - |" in systems
    assert systems.endswith("\nbegan 64x64: compile left out: it fails.")
    assert "| U-Net | 0, 1 | forward | 10 ms | 2.00x | - | 0.50x | - |" in fuse
    assert "U-Net: compile left out: it fails." in fuse and "U-Net: nothing is fused: kernel size." in fuse


def test_the_command(checkout, capsys):
    before = (checkout / "README.md").read_text()
    assert command(bench.main, "readme", checkout / "benchmarks" / "results" / "new.json") == 0
    after = (checkout / "README.md").read_text()
    assert "(benchmarks/results/new.json)" in after and "Intel Xeon Processor (AVX-512), 2 threads" in after
    outside = [re.sub(f"{readme.BEGIN}.*{readme.END}", "", text, flags=re.DOTALL) for text in (before, after)]
    assert outside[0] == outside[1] and len(outside[0]) < len(before)
    assert command(bench.main, "readme", checkout / "benchmarks" / "results" / "new.json") == 0
    assert (checkout / "README.md").read_text() == after
    drawn = ElementTree.parse(checkout / readme.PLOT).getroot()
    assert drawn.tag.endswith("svg") and float(drawn.get("width")) > 500
    words = "".join(drawn.itertext())
    assert all(title.split(", ")[0] in words for title in readme.ROWS) and "4.63x" in words
    assert "prefers-color-scheme: dark" in words and set(re.findall(r"var\((.*?)\)", words)) <= {"--card"}


def test_every_figure_is_the_result_s():
    result = saved.newest(intel(), "intel.json") | {"date": "2031-02-03"}
    text = readme.block(result, "x.json")
    assert "2031-02-03, commit b379813eee9f" in text
    rows = {(row["suite"], row["name"].removesuffix(" channels_last")): row for row in result["rows"]}
    for title, key in readme.ROWS.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {title} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        row = rows[key]
        number, unit = cells[1].split()
        assert float(number) * {"s": 1, "ms": 1e-3}[unit] == pytest.approx(row["timings"]["fused"]["median"], rel=0.01)
        assert [float(cell[:-1]) for cell in cells[2:]] == pytest.approx(list(row["speedup"].values()), abs=0.051)
    memory = rows["step", "refiner 64x64, 64 filters, batch 25"]["memory"]
    assert f"{memory['fused'] / 2**20:,.0f} MiB against {memory['eager'] / 2**20:,.0f} (eager)" in text


def test_a_row_that_failed_has_no_speed():
    result = saved.newest(intel(), "intel.json")
    row = next(row for row in result["rows"] if row["name"].startswith("style_loss 16x128x32x32"))
    row["failed"] = ["output: error 1"]
    text = readme.block(result, "x.json")
    assert "| Gram style loss, 16x128x32x32 | FAILED its check: no speed | - | - | - |" in text
    assert "FAILED its check" in readme.plot(result, "x.json")


def test_what_cannot_be_written(checkout, capsys):
    before = (checkout / "README.md").read_text()
    assert command(bench.main, "readme", AMD) == 2
    message = capsys.readouterr().err
    assert "lacks" in message and "measure `all`" in message and message.count("\n") == 1
    assert command(bench.main, "readme", checkout / "none.json") == 2
    assert (checkout / "README.md").read_text() == before and not (checkout / readme.PLOT).exists()
    for wrong in ("no comments", readme.END + readme.BEGIN, readme.BEGIN, 2 * readme.BEGIN + readme.END):
        with pytest.raises(InputError, match="once each"):
            readme.replaced(wrong, "x")


def test_a_result_without_memory_or_date(monkeypatch):
    result = copy.deepcopy(saved.newest(intel(), "intel.json")) | {"commit": "0" * 40}
    for row in result["rows"]:
        row.pop("memory", None)
    text = readme.block(result, "x.json")
    assert "Peak memory" not in text and "commit 000000000000\n" in text
