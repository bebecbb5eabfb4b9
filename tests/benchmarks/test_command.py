"""`python -m benchmarks SUITE`: what it runs, prints, saves and refuses, over tiny cases."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest

import benchmarks.__main__ as bench
from benchmarks import catalogue
from benchmarks.arguments import Arguments
from benchmarks.reports import saved
from benchmarks.suites import operators
from benchmarks.timing.measure import Timing
from tests.support.places import ROOT
from tests.support.tiny_run import command


def test_the_command(small, tmp_path, capsys):
    json_file, markdown = tmp_path / "result.json", tmp_path / "result.md"
    assert command(bench.main, "all", "--quick", "--json", json_file, "--markdown", markdown) == 0
    result, printed = json.loads(json_file.read_text()), capsys.readouterr().out
    assert result["schema"] == saved.SCHEMA and result["limits"]["matrix_flops"] == 1e11
    rows = result["rows"]
    assert {row["suite"] for row in rows} == set(catalogue.MEASURED)
    first = next(row for row in rows if row["suite"] == "ops")
    assert first["speedup"].keys() == {"eager", "strong"} and len(first["timings"]["fused"]["samples"]) == 10
    assert len(first["timings"]["strong contiguous"]["quartiles"]) == 2
    assert (
        first["share_of_matrix"] > 0
        and first["share_of_copy"] > 0
        and first["flops_as_written"] > first["algebra_flops"]
    )
    whole = next(row for row in rows if row["suite"] == "step")
    assert whole["memory"] == {"fused": 2**20, "eager": 2**21, "compile": None, "strong": 2**21}
    scaled = next(row for row in rows if row["suite"] == "scaling")
    assert scaled["axis"] == "threads" and scaled["speedup_over_one"]["fused"]["1"] == 1
    swept = {row["name"]: row for row in rows if row["suite"] == "scaling" and row["axis"] == "batch"}
    assert swept.keys() == {"refiner step by batch", "resize_conv_act up elu by batch"}
    assert list(swept["refiner step by batch"]["timings"]["eager"]) == ["2", "3"]
    assert whole["allocated"]["fused"] < whole["allocated"]["eager"] and "compile" not in whole["allocated"]
    assert "no C++ compiler" in printed and "Native calls of one fused step" in printed and "50%" in printed
    assert markdown.read_text().count("| --- |") >= 6 and "resize_conv_act_backward" in markdown.read_text()


def test_a_wrong_result_is_the_exit_status(small, monkeypatch, capsys):
    monkeypatch.setattr(operators, "measure", lambda *a, **o: ({}, ["output: error 1, allowed 0"]))
    assert command(bench.main, "ops", "--filter", "linear") == 1
    assert "DIFFERENT: output: error 1" in capsys.readouterr().out


def test_a_spent_budget_names_what_was_left_out(small, tmp_path, capsys):
    assert command(bench.main, "ops", "--budget", "-1", "--json", tmp_path / "result.json") == 0
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert len(rows) == 3 and all("budget" in row["not_run"] for row in rows)
    assert "not run" in capsys.readouterr().out


def test_rows_are_kept_as_they_come(small, monkeypatch, tmp_path):
    file, measured = tmp_path / "rows.jsonl", []

    def measure(case, *rest, **more):
        measured.append(case)
        assert len(file.read_text().splitlines() if file.exists() else []) == len(measured) - 1
        if len(measured) == 3:
            raise KeyboardInterrupt  # a user has seen enough
        return {name: Timing([1.0, 1.0, 1.0]) for name in ("fused", "eager")}, []

    monkeypatch.setattr(operators, "measure", measure)
    assert command(bench.main, "ops", "--quick", "--rows", file) == 130
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["name"] for row in rows] == [case.label for case in measured[:2]]
    # a suite that keeps none by itself has its rows there too
    assert command(bench.main, "profile", "--rows", file, "--quick") == 0
    assert json.loads(file.read_text().splitlines()[2])["suite"] == "profile"


def test_what_needs_a_gpu(small, capsys):
    for arguments in (("ops", "--precision", "bf16"), ("step", "--autotune")):
        assert command(bench.main, *arguments) == 2
        assert "needs --device cuda" in capsys.readouterr().err


def test_bad_arguments(small, capsys, tmp_path):
    assert command(bench.main, "ops", "--rounds", "9") == 2
    assert "--rounds must be at least 10" in capsys.readouterr().err
    assert command(bench.main, "ops", "--filter", "conv9") == 2
    assert "no case contains 'conv9'" in capsys.readouterr().err
    assert command(bench.main, "ops", "--markdown", tmp_path / "no" / "file.md") == 2
    assert "--markdown" in capsys.readouterr().err


def test_what_is_measured_is_kept_when_a_later_suite_breaks(small, monkeypatch, tmp_path):
    broken = dataclasses.replace(catalogue.SUITES["step"], run=lambda arguments, limits: 1 / 0)
    monkeypatch.setitem(catalogue.SUITES, "step", broken)
    with pytest.raises(ZeroDivisionError):
        bench.main(["all", "--quick", "--json", str(tmp_path / "result.json")])
    assert {row["suite"] for row in json.loads((tmp_path / "result.json").read_text())["rows"]} == {"ops"}


def test_every_suite_of_the_list():
    """Each names a module with what a run asks of it; `all` is what can be timed on the device."""
    assert list(catalogue.SUITES) == [suite.name for suite in catalogue.SUITES.values()]
    for suite in catalogue.SUITES.values():
        assert suite.measures and suite.quick and (suite.holds if suite.stopwatch else not suite.heading)
        assert set(suite.all_on) <= set(suite.devices) and (suite.stopwatch or not suite.all_on)
        assert not list(suite.cases("no such case", True))
    assert [suite.name for suite in catalogue.chosen("all", "cuda")] == ["ops", "step"]
    assert [suite.name for suite in catalogue.chosen("all", "cpu")] == list(catalogue.MEASURED)
    assert Arguments().suites == catalogue.chosen("all", "cpu")


def test_help_tells_every_suite_and_imports_none():
    code = "import sys, benchmarks.__main__ as b; print(*(m for m in sys.modules if m.startswith('benchmarks.')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "benchmarks.run" in loaded and not any("suites.systems" in name or "compiled" in name for name in loaded)
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True)
    words = " ".join(re.sub("[│]", " ", done.stdout).split())
    for suite in catalogue.SUITES.values():
        assert f"{suite.name}: {suite.measures}" in words and f"{suite.name}: {suite.quick}" in words
    for name in bench.COMMANDS:
        assert f"python -m benchmarks {name}" in words


def test_an_unknown_suite_is_one_line(capsys):
    assert command(bench.main, "nothing") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and all(f"'{name}'" in message for name in catalogue.NAMES)
