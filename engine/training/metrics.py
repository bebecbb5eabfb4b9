"""What a run records: losses summed on the device, lines in metrics.jsonl, and TensorBoard events."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import distributed
from engine.host import atomic_files

NEVER = 2**31 - 1
# values that are states, not losses: the last one is recorded, where a loss is averaged since the last reading
STATES = ("k",)


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
    """metrics.jsonl and, where it is installed, TensorBoard."""

    def __init__(self, run_dir: Path, start: int):
        """start: the step that the run goes on from; records of later steps are cut off. Raises OSError."""
        self.path = run_dir / "metrics.jsonl"
        cut_after(self.path, start)
        self._file = self.path.open("a", encoding="utf-8")
        self.tensorboard, self.note = _open_tensorboard(run_dir, start)

    def write(self, record: dict[str, Any]) -> None:
        """Append one line and flush it. Raises OSError."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self.tensorboard:
            for name, value in record.items():
                if name != "step" and math.isfinite(value):
                    self.tensorboard.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._file.close()
        if self.tensorboard:
            self.tensorboard.close()


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of later steps, and a line that a crash cut short. Raises OSError."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] > step:
                continue
        except (ValueError, KeyError, TypeError):
            continue
        kept.append(line + "\n")
    atomic_files.write_text(path, "".join(kept))


def _open_tensorboard(run_dir: Path, start: int) -> tuple[Any, str]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None, "TensorBoard is not installed: metrics.jsonl only (pip install 'kiln-engine[tensorboard]')"
    try:
        return SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1 if start else None), ""
    except UnicodeEncodeError:
        return None, "TensorBoard writes into no folder whose name is not UTF-8: metrics.jsonl only"
