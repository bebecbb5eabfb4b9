"""Options of `norm_act` for each kind of normalisation."""

from typing import Any


def kind_options(kind: str, channels: int) -> dict[str, Any]:
    """kind, and for groups how many: 3 where they divide the channels, or 1."""
    return {"kind": kind} | ({"groups": 3 if channels % 3 == 0 else 1} if kind == "group" else {})
