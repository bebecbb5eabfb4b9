"""What torchrun says: which of several processes this is, and whether it was started again. Imports nothing heavy."""

import os
from pathlib import Path

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MARK = "launch"  # in the run folder: the launch that began or resumed the run
_token = ""


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


def know(token: str) -> None:
    """Take a word that is this launch's alone, and the same after it has started the processes again."""
    global _token
    _token = token


def mark(run_dir: Path) -> None:
    """Note in a run folder which launch trains in it, for `restarted`. Raises OSError."""
    if _identity()[0]:
        (run_dir / _MARK).write_text("\n".join(_identity()))


def unmark(run_dir: Path) -> None:
    """A folder that was refused is none of this launch's, after a restart neither."""
    if _identity()[0]:
        (run_dir / _MARK).unlink(missing_ok=True)


def restarted(run_dir: Path) -> bool:
    """Whether the launcher has started the processes again, and the run in that folder is the one they trained.

    torchrun counts restarts for each machine, and not those for machines that come or go: so a word kept in its store
    tells too. The store is lost with the machine it is on.
    """
    try:
        job, token = (run_dir / _MARK).read_text().split("\n")
    except (OSError, ValueError):
        return False
    again = _number("TORCHELASTIC_RESTART_COUNT", 0) > 0
    return (again and job == _identity()[0]) or (token != "" and token == _identity()[1])


def _identity() -> tuple[str, str]:
    return os.environ.get("TORCHELASTIC_RUN_ID", ""), _token


def _number(name: str, otherwise: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else otherwise
