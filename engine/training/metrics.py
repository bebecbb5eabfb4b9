"""What a run records: losses summed on the device, lines in metrics.jsonl, and TensorBoard events."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import distributed
from engine.host import atomic_files
from engine.host.reading import read_named
from engine.training.events import EventFile

NEVER = 2**31 - 1
LARGEST = torch.finfo(torch.float32).max
# values that are states, not losses: the last one is recorded, where a loss is averaged since the last reading
STATES = ("k",)
HELD_OUT = "held_out_"  # how the names of measures begin that were taken on images that are not trained on


class LossMeter:
    """Sums losses on the device and notes the first step at which each was not finite; only `read` waits for it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.names: tuple[str, ...] = ()
        self.count = 0
        self._sums = self._last = self._first_bad = torch.empty(0)

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """Add the scalars of one step."""
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        if self.names != tuple(losses):
            self.names, self.count = tuple(losses), 0
        if not self.count:
            self._sums = torch.zeros_like(values)
            self._first_bad = torch.full(values.shape, NEVER, dtype=torch.int32, device=self.device)
        self._sums = self._sums + values
        self._last = values
        self._first_bad = torch.where(values.isfinite(), self._first_bad, self._first_bad.clamp(max=step))
        self.count += 1

    def share(self) -> None:
        """Average the sums over the ranks, and take the earliest step at which a loss of any rank was not finite."""
        if self.count:
            distributed.mean_(self._sums)
            distributed.least_(self._first_bad)

    def read(self) -> tuple[dict[str, float], dict[str, int]]:
        """(name -> value since the last reset, name -> first step at which it was not finite)."""
        if not self.count:
            return {}, {}
        means, last = (self._sums / self.count).tolist(), self._last.tolist()
        values = {n: (last if n in STATES else means)[i] for i, n in enumerate(self.names)}
        bad = {name: step for name, step in zip(self.names, self._first_bad.tolist(), strict=True) if step < NEVER}
        return values, bad

    def reset(self) -> None:
        """Begin a new interval."""
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        """The sums since the last reading, so that a resumed run records the same means."""
        return {"names": self.names, "count": self.count, "sums": self._sums, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names, self.count = tuple(state["names"]), state["count"]
        self._sums, self._last = state["sums"].to(self.device), state["last"].to(self.device)
        self._first_bad = torch.full(self._sums.shape, NEVER, dtype=torch.int32, device=self.device)


class MetricsLog:
    """metrics.jsonl and, where it is installed, TensorBoard.

    notes: lines for the user: rows that are missing, what is not installed
    """

    def __init__(self, run_dir: Path, start: int, recorded: int = 0):
        """Open the files, and cut off the rows after the step that the run goes on from. Raises OSError, InputError.

        start:    that step
        recorded: the step of the last row that had been written then
        """
        path = run_dir / "metrics.jsonl"
        cut_after(path, start)
        gaps = missing(read_metrics(path), recorded)
        self._file = path.open("a", encoding="utf-8")
        self.tensorboard, note = _open_tensorboard(run_dir, start)
        self.notes = [text for text in (missing_text(gaps), note) if text]

    def write(self, record: dict[str, Any]) -> None:
        """Append one row and flush it. Raises OSError."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self.tensorboard:
            values = {name: value for name, value in record.items() if math.isfinite(value)}
            self.tensorboard.write(values.pop("step"), {name: values[name] for name in values if name != "since"})

    def sync(self) -> None:
        """Wait until the rows and events are on the disk. Raises OSError."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self.tensorboard:
            self.tensorboard.sync()

    def close(self) -> None:
        self._file.close()
        if self.tensorboard:
            self.tensorboard.close()


def cut_after(path: Path, step: int) -> None:
    """Drop the rows of later steps, and lines that are no rows, as one that a crash cut short.

    Raises OSError, and InputError where the file cannot be read.
    """
    if path.exists():
        kept = [line + "\n" for line in _lines(path) if (row := _row(line)) and row["step"] <= step]
        atomic_files.write_text(path, "".join(kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl in the order of their steps, with those of their values that are finite numbers.

    Lines that are no rows are left out. Where a resumed run went back to an earlier step, the rows that an earlier run
    had written beyond that step are left out. Raises InputError where there is a file that cannot be read.
    """
    rows: list[dict[str, Any]] = []
    for line in _lines(path):
        if row := _row(line):
            while rows and rows[-1]["step"] >= row["step"]:
                rows.pop()
            rows.append(row)
    return rows


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return read_named(path).decode("utf-8", errors="replace").splitlines()


def _row(line: str) -> dict[str, Any] | None:
    """The finite numbers of a line of metrics.jsonl; None for a line that is no row."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    row = {name: value for name, value in values.items() if _is_number(value)}
    return row if _is_step(row.get("step")) and _is_step(row.get("since", 0)) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_step(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < NEVER


def missing(rows: Sequence[Mapping[str, Any]], recorded: int = 0) -> list[tuple[int, int]]:
    """The stretches of steps, each (first, last), whose rows are missing.

    rows:     as `read_metrics` returns them. A row names as "since" the step of the row before it; rows of version
              0.2.0 do not, and nothing is known to be missing before them
    recorded: a step whose row was written
    """
    gaps, reached = [], 0
    for row in rows:
        if (since := row.get("since", 0)) > reached:
            gaps.append((reached + 1, since))
        reached = row["step"]
    return gaps + ([(reached + 1, recorded)] if recorded > reached else [])


def missing_text(gaps: Sequence[tuple[int, int]]) -> str:
    """One line about the stretches that `missing` found; "" for none."""
    steps = ", ".join(f"{first} to {last}" for first, last in gaps)
    return f"metrics.jsonl lacks the rows of steps {steps}: a power cut took them, or they were removed" if gaps else ""


def _open_tensorboard(run_dir: Path, start: int) -> tuple[Any, str]:
    try:
        return EventFile(run_dir / "tensorboard", start), ""
    except ImportError:
        return None, "TensorBoard is not installed: metrics.jsonl only (pip install 'kiln-engine[tensorboard]')"
