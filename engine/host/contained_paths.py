"""Makes paths of names that stand in archives, tables and run files, so that none leads out of its folder."""

from pathlib import Path

from engine.errors import InputError


def contained(root: Path, name: str) -> Path:
    """The path of `name` below the folder `root`. Raises InputError for a name that would lead out of it."""
    if why := leads_out(name):
        raise InputError(f"{name!r} {why}: it is neither read nor written")
    return root / name


def leads_out(name: str) -> str:
    """How a name, with "/" between its folders, would lead out of the folder that it is for; "" for one that stays."""
    if "\0" in name:
        return "has a zero byte in its name"
    if name.startswith("/"):
        return "has an absolute name"
    return "has .. in its name, which leads out of its folder" if ".." in name.split("/") else ""
