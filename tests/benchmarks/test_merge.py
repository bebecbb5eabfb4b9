"""`python -m benchmarks merge`: rows of several results in one, and results that do not fit together."""

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import benchmarks.__main__ as bench
from benchmarks.reports import merge, saved
from engine.errors import InputError
from tests.support.benchmark_results import INTEL, PREDICTED
from tests.support.tiny_run import command


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return saved.read(INTEL)


def part(whole: dict[str, Any], *suites: str, **changed: object) -> dict[str, Any]:
    rows = [row for row in whole["rows"] if row["suite"] in suites]
    return copy.deepcopy(whole) | {"rows": rows} | changed


def test_suites_measured_apart_are_one_result(whole):
    suites = sorted({row["suite"] for row in whole["rows"]})
    parts = {suite: part(whole, suite) for suite in suites}
    found = merge.merged(parts)
    key = lambda row: (row["suite"], row["name"], row.get("axis", ""))  # noqa: E731
    assert sorted(found["rows"], key=key) == sorted(whole["rows"], key=key)
    assert {name: found[name] for name in merge.SAME} == {name: whole[name] for name in merge.SAME}


def test_the_last_row_the_best_limits_and_the_latest_date(whole):
    again = part(whole, "step", date="2031-01-01", limits={name: 2 * v for name, v in whole["limits"].items()})
    again["rows"][0]["speedup"] = {"eager": 7.0}
    found = merge.merged({"a": part(whole, "ops", "step", date="2030-01-01"), "b": again})
    steps = [row for row in found["rows"] if row["suite"] == "step"]
    assert steps == again["rows"] and len(found["rows"]) == len(part(whole, "ops", "step")["rows"])
    assert found["date"] == "2031-01-01" and found["limits"] == again["limits"]


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"commit": "abc"}, "commit"),
        ({"threads": 64}, "threads"),
        ({"machine": {"cpu": {"model": "another"}}}, "processor"),
        ({"precision": "tf32"}, "precision"),
    ],
)
def test_what_does_not_fit_is_refused(whole, changed, word, tmp_path, capsys):
    for name, result in (("a", whole), ("b", whole | changed)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    assert command(bench.main, "merge", tmp_path / "out.json", tmp_path / "a.json", tmp_path / "b.json") == 2
    message = capsys.readouterr().err
    assert f"differ in {word}" in message and message.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


def test_commits_that_change_nothing_timed_count_as_one(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "ROOT", tmp_path)

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    git("init", "--quiet")
    commits = []
    folders = (*merge.MEASURED, "docs", *merge.NOT_TIMED, "kernels")
    for name in (f"{folder}/code" for folder in folders):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{len(commits)}")
        git("add", ".")
        git("-c", "user.name=a", "-c", "user.email=a", "commit", "--quiet", "--message", name)
        commits.append(git("rev-parse", "HEAD").strip())
    before, documented, verified, changed = commits[-4:]
    step = part(whole, "step", commit=documented)
    for commit in (before, verified):
        assert merge.merged({"a": part(whole, "ops", commit=commit), "b": step})["commit"] == commit
    for other in (changed, f"{documented}+"):
        with pytest.raises(InputError, match="differ in commit"):
            merge.merged({"a": step, "b": part(whole, "ops", commit=other)})


def test_the_command_writes_what_can_be_read_again(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert command(bench.main, "merge", out, INTEL, INTEL) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert saved.read(out)["rows"] == saved.read(INTEL)["rows"]


@pytest.mark.parametrize("words", [(), (PREDICTED, Path("missing.json")), (INTEL, PREDICTED)])
def test_bad_input_is_one_line(words, tmp_path, capsys):
    assert command(bench.main, "merge", tmp_path / "out.json", *words) == 2
    assert capsys.readouterr().err.count("\n") == 1
