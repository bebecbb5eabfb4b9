"""The suite `loading`: every competitor makes the same batches, or none has a speed."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import benchmarks.__main__ as bench
from benchmarks import run
from benchmarks.reports import figures, page, saved
from benchmarks.suites import loading
from benchmarks.timing.measure import Limits, Timing
from engine.pages.charts import styled
from tests.support.tiny_run import command

TINY = loading.Setting(12, 178, 218, 64, 4, {"filters": 8, "batch_size": 2, "resolution": 32, "hidden": 8})
TIMED = {"dali": 0.01, "resident": 0.002, "torch": 0.02, "torch draft": 0.016, "step": 0.04}


@pytest.fixture
def quick(monkeypatch):
    pytest.importorskip("nvidia.dali")
    monkeypatch.setattr(loading, "worker_threads", lambda: 1)
    monkeypatch.setattr(loading, "LEAST_SECONDS", 0.001)
    monkeypatch.setattr(loading, "SETTINGS", [TINY])


def rows() -> list[dict]:
    timings = {name: Timing([seconds] * 10) for name, seconds in TIMED.items()}
    return [json.loads(json.dumps(loading.row(kind, TINY, timings, 0.5))) for kind in loading.KINDS]


def test_the_suite(quick, monkeypatch, tmp_path, empty_cache, capsys):
    """Both loaders against real worker processes, and the page of it; the user's cache folder is left alone."""
    monkeypatch.setattr(run, "measure_limits", lambda device, precision: Limits(1e11, 1e10, 2e10))
    file, html = tmp_path / "result.json", tmp_path / "result.html"
    assert command(bench.main, "loading", "--json", file, "--html", html) == 0
    printed = capsys.readouterr().out
    result = saved.read(file)["rows"]
    assert [row["name"] for row in result] == [f"{kind} {TINY.name}" for kind in loading.KINDS]
    for row in result:
        assert row["timings"].keys() == {"fused", *loading.PEERS} and len(row["timings"]["torch"]["samples"]) == 10
        assert row["name"] in printed and row["seconds_to_open"] > 0
    assert "Supply and demand" in html.read_text() and os.environ["KILN_CACHE"] == str(empty_cache)
    assert not empty_cache.exists()


def test_the_figures_of_a_row():
    resident = rows()[0]
    assert resident["speedup"] == {"torch": pytest.approx(8)}  # over the better of both peers
    assert resident["images_per_s"] == pytest.approx({"fused": 2000, "torch": 200, "torch draft": 250})
    assert resident["times_the_demand"] == pytest.approx({"fused": 20, "torch": 2, "torch draft": 2.5})
    assert loading.cells(resident)[1:] == ["2,000", "200", "250", "8.00", "100", "20.0"]
    with styled("test"):
        (axes,) = figures.supply(rows()).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([20, 2, 2.5, 4, 2, 2.5])
    result = {"schema": 4, "rows": rows(), "machine": {}, "limits": None}
    assert "2,000/s" in page.render(saved.newest(result, "x"), "x")


def test_batches_that_differ_have_no_speed():
    """Kiln's two loaders must give the same bits; a peer may round otherwise, by no more than its tolerance."""
    batch = torch.rand(2, 3, 16, 16).contiguous(memory_format=torch.channels_last) * 2 - 1
    same = {name: lambda: batch for name in (*loading.KINDS, *loading.PEERS)}
    assert loading.unequal(same) == []
    assert len(loading.unequal(same | {"resident": lambda: batch + 1e-6})) == loading.CHECKED
    assert loading.unequal(same | {"torch": lambda: batch + 0.9 / 127.5}) == []
    for wrong in (batch + 1.1 / 127.5, batch.flip(3), batch.flip(0), batch * float("nan")):
        wrong = wrong.contiguous(memory_format=torch.channels_last)
        failed = loading.unequal(same | {"torch": lambda wrong=wrong: wrong})
        assert len(failed) == loading.CHECKED and "torch: batches differ" in failed[0]
    one = batch.clone()
    one[0, 0, 8, 8] += 3 / 127.5
    assert len(loading.unequal(same | {"torch": lambda: one})) == loading.CHECKED
    assert loading.unequal(same | {"torch": lambda: batch[:, :1]})[0].startswith("batch 0, torch: a batch is (2, 1")
    entry = {"suite": "loading", "name": "dali x", "failed": ["batch 0: resident and dali differ"]}
    assert loading.cells(entry)[1].startswith("DIFFERENT")


@pytest.mark.parametrize("draft", [False, True])
def test_a_peer_s_picture(tmp_path, draft):
    """The central square, antialiased, mirrored on demand: against Pillow's crop and resize written out."""
    loading.write_files(tmp_path / "set", replace(TINY, count=1, width=300, height=220))
    path = tmp_path / "set" / "00000.jpg"
    pictures = loading.Pictures([str(path)], 32, draft)
    plain, mirrored = pictures[0, False], pictures[0, True]
    assert plain.shape == (32, 32, 3) and plain.dtype == torch.uint8 and torch.equal(mirrored, plain.flip(1))
    square = Image.open(path).crop((40, 0, 260, 220)).resize((32, 32), Image.Resampling.BILINEAR)
    error = np.abs(plain.numpy().astype(int) - np.asarray(square))
    # near the crop's edge Pillow's resize with a box sees the pixels beyond it, resize after a crop does not
    assert 0 < error.mean() < loading.ALLOWED["torch draft"][0] and (draft or not error[:, 2:-2].any())


def test_batches_that_are_ready_are_not_timed(monkeypatch):
    """A queue of three batches that cost nothing: only the batches after them count."""
    clock, ready = [0.0], [3]

    def call():
        if ready[0]:
            ready[0] -= 1
        else:
            clock[0] += 1.0

    def rest(seconds):
        assert seconds == min(2.0, 1.5 * 3 * 1.0)
        ready[0] = 3

    monkeypatch.setattr(loading, "worker_threads", lambda: 2)
    monkeypatch.setattr(loading.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(loading.time, "sleep", rest)
    timings = loading.turns({"dali": call}, ("dali",), 4, lambda _: None)
    assert timings["dali"].samples == [1.0] * 4


def test_without_dali(quick, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "measure_limits", lambda device, precision: Limits(1e11, 1e10, 2e10))
    monkeypatch.setattr(loading.environment, "attempt", lambda module: (None, "ImportError: no nvidia"))
    assert command(bench.main, "loading", "--json", tmp_path / "result.json") == 0
    (row,) = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert "needs DALI" in row["not_run"] and "needs DALI" in capsys.readouterr().out


def test_cases():
    assert loading.cases("", quick=True) == loading.SETTINGS[:1] and loading.cases("", quick=False) == loading.SETTINGS
    assert loading.cases("512x512", quick=False) == loading.SETTINGS[1:] and not loading.cases("conv", quick=False)
    assert len(loading.cases("resident", quick=False)) == 2
