"""Which of several processes this one is, from what torchrun puts into the environment. Imports nothing heavy."""

import os
from pathlib import Path

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MARK = "launch"  # in the run folder: the launch that began or resumed the run


def size() -> int:
    """How many processes train together; 1 without a launcher."""
    return _number("WORLD_SIZE", 1) if all(name in os.environ for name in _NEEDED) else 1


def rank() -> int:
    """This process's number among them."""
    return _number("RANK", 0) if size() > 1 else 0


def local_size() -> int:
    """How many of them are on this machine."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1)) if size() > 1 else 1


def local_rank() -> int:
    """This process's number among those of this machine, which is that of its GPU."""
    return _number("LOCAL_RANK", 0) if size() > 1 else 0


def cores() -> int:
    """CPU cores that are this process's share."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // local_size())


def may_restart() -> bool:
    """Whether the launcher starts all processes again when one dies."""
    return _number("TORCHELASTIC_MAX_RESTARTS", 0) > 0


def mark(run_dir: Path) -> None:
    """Note in a run folder which launch trains in it, for `restarted`. Raises OSError."""
    if may_restart():
        (run_dir / _MARK).write_text(_identity())


def unmark(run_dir: Path) -> None:
    """A folder that was refused is none of this launch's, after a restart neither."""
    if may_restart():
        (run_dir / _MARK).unlink(missing_ok=True)


def restarted(run_dir: Path) -> bool:
    """Whether the launcher has started the processes again, and the run in that folder is the one they trained."""
    if not _number("TORCHELASTIC_RESTART_COUNT", 0):
        return False
    try:
        return (run_dir / _MARK).read_text() == _identity()
    except OSError:
        return False


def _identity() -> str:
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def _number(name: str, otherwise: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else otherwise
