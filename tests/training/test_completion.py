"""`--resume` of a finished run writes what a kill just before its end has left out, and trains nothing."""

import os
from pathlib import Path

import pytest

from engine import checkpoint
from engine.systems.base import System
from engine.training import loop
from tests.support.training_fakes import FakeLoader, tiny_config

FLAGS = ("--steps", "4", "--log-every", "2", "--sample-every", "4", "--checkpoint-every", "2")


def write_report(run: Path) -> Path:
    """Write a report that says which sample grids it found."""
    (run / "report.html").write_text(" ".join(sorted(os.listdir(run / "samples"))))
    return run / "report.html"


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run; from then on a step is an error."""
    monkeypatch.setattr("engine.training.report.write", write_report)
    monkeypatch.setattr(loop, "image_sets", lambda config: [])
    monkeypatch.setattr(loop, "open_loaders", lambda config, datasets, device: FakeLoader(config))
    assert loop.train(tiny_config(*FLAGS, out=tmp_path / "run"), {}) == 0
    monkeypatch.setattr(System, "step", None)
    return tmp_path / "run"


def resume(run: Path) -> int:
    return loop.train(tiny_config(*FLAGS, "--resume", out=run), {})


def stamps(run: Path) -> dict[str, int]:
    """The names and times of all files of a run."""
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_nothing_is_written_where_nothing_is_missing(finished: Path, capsys) -> None:
    before = stamps(finished)
    capsys.readouterr()
    assert resume(finished) == 0
    said = capsys.readouterr().out
    assert said == f"{finished} has already done 4 of 4 steps; raise --steps to go on\n"
    assert stamps(finished) == before


@pytest.mark.parametrize("report", ["missing", "of an earlier checkpoint"])
def test_the_report(finished: Path, capsys, report: str) -> None:
    page = finished / "report.html"
    if report == "missing":
        page.unlink()
    else:
        page.write_text("old")
        long_ago = checkpoint.latest(finished).stat().st_mtime - 5
        os.utime(page, (long_ago, long_ago))
    capsys.readouterr()
    assert resume(finished) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "its report.html was missing or old, and is written now" in said
    assert "step_00000004.png" in page.read_text()


def test_the_last_grid(finished: Path, capsys) -> None:
    grid = finished / "samples" / "step_00000004.png"
    drawn = grid.read_bytes()
    grid.unlink()
    write_report(finished)
    rows = (finished / "metrics.jsonl").read_text()
    assert resume(finished) == 0
    assert "its sample grid of step 4 is missing, and is drawn now without training" in capsys.readouterr().out
    assert grid.read_bytes() == drawn and grid.name in (finished / "report.html").read_text()
    assert (finished / "metrics.jsonl").read_text() == rows


def test_missing_rows(finished: Path, capsys) -> None:
    path = finished / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    capsys.readouterr()
    assert resume(finished) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "metrics.jsonl lacks the rows of steps 3 to 4" in said


def test_a_report_that_cannot_be_written_is_told(finished: Path, capsys, monkeypatch) -> None:
    (finished / "report.html").unlink()
    capsys.readouterr()

    def fails(run_dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("engine.training.report.write", fails)
    assert resume(finished) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "cannot be written (OSError: [Errno 30] Read-only file system)" in said
