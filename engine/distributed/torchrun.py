"""Reads what torchrun says: which of several processes this is, and whether it was restarted. Imports no torch."""

import os
from pathlib import Path

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MARK = "launch"  # file in a run folder that names the launch which started or resumed the run
_token = ""


def size() -> int:
    """How many processes train together; 1 without a launcher."""
    return _number("WORLD_SIZE", 1) if all(name in os.environ for name in _NEEDED) else 1


def rank() -> int:
    """The number of this process among the processes that train together; 0 without a launcher."""
    return _number("RANK", 0) if size() > 1 else 0


def local_size() -> int:
    """How many of the processes that train together are on this machine."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1)) if size() > 1 else 1


def local_rank() -> int:
    """The number of this process among those on this machine, which is the number of its GPU."""
    return _number("LOCAL_RANK", 0) if size() > 1 else 0


def cores() -> int:
    """How many CPU cores of this machine are the share of this process."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // local_size())


def may_restart() -> bool:
    """Whether the launcher starts all processes again when one dies."""
    return _number("TORCHELASTIC_MAX_RESTARTS", 0) > 0


def know(token: str) -> None:
    """Remember the word of this launch: no other launch has it, and a restart does not change it."""
    global _token
    _token = token


def mark(run_dir: Path) -> None:
    """Write into a run folder which launch trains there, for `restarted`. Raises OSError."""
    if _identity()[0]:
        (run_dir / _MARK).write_text("\n".join(_identity()))


def unmark(run_dir: Path) -> None:
    """Remove the mark of this launch from a run folder that it refused, so that a restart does not resume that run."""
    if _identity()[0]:
        (run_dir / _MARK).unlink(missing_ok=True)


def restarted(run_dir: Path) -> bool:
    """Whether the launcher has restarted the processes, and they trained the run in that folder before.

    torchrun counts restarts for each machine, but not the restarts after machines come or go. So the word of the
    launch, which torchrun's store keeps, counts too; the store is lost with the machine that holds it.
    """
    try:
        job, token = (run_dir / _MARK).read_text().split("\n")
    except (OSError, ValueError):
        return False
    again = _number("TORCHELASTIC_RESTART_COUNT", 0) > 0
    return (again and job == _identity()[0]) or (token != "" and token == _identity()[1])


def _identity() -> tuple[str, str]:
    """The job's name and the launch's word; "" for each that is unknown."""
    return os.environ.get("TORCHELASTIC_RUN_ID", ""), _token


def _number(name: str, otherwise: int) -> int:
    """The number in an environment variable, or `otherwise`."""
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else otherwise
