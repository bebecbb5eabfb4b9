"""The checkout that is measured: where it lies, and which commit it is."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the folder that holds engine/, kernels/ and benchmarks/


def commit() -> str | None:
    """The checkout's commit, with + where tracked files have changes; None outside a checkout."""
    try:
        name = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.stdout.strip() + "+" * bool(dirty.stdout.strip())
