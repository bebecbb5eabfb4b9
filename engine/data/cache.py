"""The cache folder: validation results and the rendered avatars. Safe to delete at any time."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """KILN_CACHE if set, else the platform's cache folder + "kiln". Not created here."""
    if named := os.environ.get("KILN_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kiln"
