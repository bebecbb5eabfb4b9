"""metrics.jsonl: rows reach the disk before the checkpoint that follows them; missing and damaged ones are told."""

import json
import os
from pathlib import Path

import pytest

from engine import checkpoint
from engine.errors import InputError
from engine.training import report
from engine.training.metrics import MetricsLog, cut_after, missing, missing_text, read_metrics
from tests.support.training_fakes import tiny_config
from tests.training.test_loop import train

FLAGS = ("--steps", "6", "--log-every", "2", "--sample-every", "0", "--checkpoint-every", "4")
NO_ROWS = [
    "",
    "null",
    "[]",
    '["step", 2]',
    '"step"',
    "7",
    "{}",
    '{"k": 1}',
    '{"step": "2"}',
    '{"step": null}',
    '{"step": NaN}',
    '{"step": Infinity}',
    '{"step": -3}',
    '{"step": true}',
    '{"step": [2]}',
    '{"step": 2, "since": -1}',
    f'{{"step": {10**30}}}',
    f'{{"step": {"9" * 5000}}}',
    "[" * 100_000,
    '{"step": 2, "k"',
    "\x00" * 50,
    "\ufffd\ud800",
]


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write", lambda run_dir: None)


@pytest.mark.parametrize("line", NO_ROWS, ids=lambda line: line[:20] or "empty")
def test_a_line_that_is_no_row_is_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = ['{"step": 1, "since": 0}', '{"step": 3, "since": 1}']
    path.write_bytes("\n".join([rows[0], line, rows[1]]).encode("utf-8", "surrogatepass") + b"\n")
    assert [row["step"] for row in read_metrics(path)] == [1, 3]
    cut_after(path, 3)
    assert path.read_text().splitlines() == rows


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    """Neither waited for nor passed over as if no step had been done."""
    path = tmp_path / "metrics.jsonl"
    os.mkfifo(path)
    for use in (read_metrics, lambda path: cut_after(path, 3), lambda path: report.render(path.parent)):
        with pytest.raises(InputError, match=r"metrics\.jsonl: a named pipe, not a file$"):
            use(path)
    path.unlink()
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl: a Git LFS pointer"):
        read_metrics(path)


def test_values_that_are_no_finite_numbers_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    values = f'"time": NaN, "k": Infinity, "lr": "x", "a": [1], "b": null, "c": true, "d": {10**400}, "e": 0.5'
    path.write_text(f'{{"step": 2, {values}}}\n')
    assert read_metrics(path) == [{"step": 2, "e": 0.5}]
    assert "of steps" not in report.render(tmp_path)


@pytest.mark.parametrize(
    ("spans", "recorded", "gaps"),
    [
        ([], 0, []),
        ([], 4, [(1, 4)]),
        ([(0, 2), (2, 4)], 4, []),
        ([(0, 2), (2, 4), (4, 5)], 5, []),  # the last row of a run is of fewer steps
        ([(0, 2)], 6, [(3, 6)]),
        ([(2, 4)], 4, [(1, 2)]),
        ([(0, 2), (6, 8), (8, 9), (12, 14)], 14, [(3, 6), (10, 12)]),
    ],
)
def test_missing_rows_are_found_by_what_the_next_one_says(spans: list, recorded: int, gaps: list) -> None:
    assert missing([{"step": step, "since": since} for since, step in spans], recorded) == gaps


def test_rows_of_an_earlier_version_miss_nothing() -> None:
    assert missing([{"step": step} for step in (20, 40, 45, 100)], 100) == []
    assert missing([{"step": 20}, {"step": 40, "since": 30}]) == [(21, 30)]


def test_missing_rows_are_told_on_resume_and_in_the_report(tmp_path: Path, capsys) -> None:
    train(tiny_config(*FLAGS, "--steps", "8", out=tmp_path))
    path = tmp_path / "metrics.jsonl"
    rows = path.read_text().splitlines()
    assert [(row["since"], row["step"]) for row in map(json.loads, rows)] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    path.write_text("\n".join([rows[0], rows[1][:30], '{"step": "damaged"}']) + "\n")
    capsys.readouterr()
    train(tiny_config(*FLAGS, "--steps", "9", "--resume", out=tmp_path))
    text = "metrics.jsonl lacks the rows of steps 3 to 8: a power cut took them, or they were removed"
    assert capsys.readouterr().out.count(text) == 1
    assert [row["step"] for row in read_metrics(path)] == [2, 9]
    assert f"{text}." in report.render(tmp_path)


def test_a_whole_run_that_changes_its_readings_misses_nothing(tmp_path: Path, capsys) -> None:
    train(tiny_config(*FLAGS, "--steps", "5", out=tmp_path))
    train(tiny_config(*FLAGS, "--steps", "9", "--log-every", "3", "--resume", out=tmp_path))
    train(tiny_config(*FLAGS, "--steps", "12", "--log-every", "1", "--resume", out=tmp_path))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4, 5, 6, 9, 10, 11, 12]
    assert "lacks" not in capsys.readouterr().out


def test_rows_are_on_the_disk_before_the_checkpoint(tmp_path: Path, monkeypatch) -> None:
    synced: list[tuple[str, int]] = []
    fsync, save = os.fsync, checkpoint.save

    def noting(handle: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))
        synced.append((name, os.fstat(handle).st_size))
        fsync(handle)

    def saving(run_dir: Path, step: int, *rest: object) -> Path:
        assert ("metrics.jsonl", (run_dir / "metrics.jsonl").stat().st_size) in synced
        return save(run_dir, step, *rest)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(checkpoint, "save", saving)
    train(tiny_config(*FLAGS, out=tmp_path))
    assert checkpoint.latest(tmp_path).name == "step_00000006"


def test_the_grids_of_later_steps_go_with_their_rows(tmp_path: Path) -> None:
    """A run goes back to an earlier checkpoint, as where the newest one is damaged."""
    flags = (*FLAGS, "--sample-every", "2")
    train(tiny_config(*flags, out=tmp_path))
    other = tmp_path / "samples" / "mine.png"
    other.write_bytes(b"")
    (tmp_path / "checkpoints" / "step_00000006" / "state.pt").write_bytes(b"")
    train(tiny_config(*flags, "--steps", "5", "--resume", out=tmp_path))
    assert sorted(os.listdir(tmp_path / "samples")) == [
        "mine.png",
        *(f"step_{step:08d}.png" for step in (0, 2, 4, 5)),
    ]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4, 5]


def test_missing_text() -> None:
    assert missing_text([]) == ""
    assert "steps 3 to 6, 10 to 12:" in missing_text([(3, 6), (10, 12)])


def test_a_log_of_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.write({"step": 1, "since": 0, "k": float("nan")})
    log.sync()
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "since": 0}]
