"""Reads results that `python -m benchmarks --json FILE` saved; those of older schemas become as the newest has them."""

import json
import math
from pathlib import Path
from typing import Any

from benchmarks import catalogue
from engine.errors import InputError

SCHEMA = 6
STEPS = "refiner "  # the names of training steps begin so in schema 1, whose rows have no suite
# old name -> new name: since schema 3
_RENAMED = {"sgemm_flops": "matrix_flops", "share_of_sgemm": "share_of_matrix"}
_RENAMED["speedup_over_one_thread"] = "speedup_over_one"  # since schema 5


def read(path: Path) -> dict[str, Any]:
    """A saved result: schema (the file's own), commit, date, device, precision, threads, limits, steady_memory, machine
    and rows.

    A fact that an older schema lacks is None; its device is cpu, its precision fp32, its memory not steady. Raises
    InputError for a file that is no result.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON file ({error}): give one that --json wrote") from error
    return newest(content, str(path))


def newest(content: Any, path: str) -> dict[str, Any]:
    """What `read` returns, from a file's content. path: for the messages."""
    if isinstance(content, dict) and "parts" in content:
        raise InputError(f"{path} is of `make gpu`, whose suites are in its parts: give a file that --json wrote")
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list) or not content["rows"]:
        raise InputError(f"{path} holds no benchmark rows: give a file that --json wrote")
    schema = content.get("schema")
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise InputError(f"{path} is of schema {schema!r}, this version reads 1 to {SCHEMA}: update, or measure again")
    limits, machine = content.get("limits"), content.get("machine")
    if not isinstance(limits, dict | None) or not isinstance(machine, dict | None):
        raise InputError(f"{path}: its limits or its machine are no objects: give a file that --json wrote")
    rows = [_row(path, row) for row in content["rows"]]
    head = {name: content.get(name) for name in ("commit", "date", "threads")}
    head["steady_memory"] = content.get("steady_memory", False)
    head |= {"schema": schema, "device": content.get("device") or "cpu"}
    head["precision"] = content.get("precision") or "fp32"
    return head | {"limits": limits and _renamed(limits), "machine": machine or {}, "rows": rows}


def samples(row: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of every round, by competitor; in `scaling` by competitor and value on the axis."""
    if row["suite"] == "profile":
        return {"fused": row["wall"]["samples"]} if "wall" in row else {}
    seconds = {}
    for name, timing in row.get("timings", {}).items():
        if "samples" in timing:
            seconds[name] = timing["samples"]
        else:
            seconds |= {f"{name}, {row['axis']} {value}": by["samples"] for value, by in timing.items()}
    return seconds


def machine_words(result: dict[str, Any]) -> str:
    """One line: GPU, processor, threads, version of torch and precision."""
    machine = result["machine"]
    parts = [machine.get("cpu", {}).get("model") or "an unknown processor", f"{result['threads']} threads"]
    if result["device"] == "cuda":
        parts.insert(0, next((gpu["name"] for gpu in machine.get("gpus", [])), "an unknown GPU"))
    return ", ".join([*parts, f"torch {machine.get('packages', {}).get('torch', 'unknown')}", result["precision"]])


def _row(path: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        raise InputError(f"{path}: one of its rows has no name: give a file that --json wrote")
    row = _renamed(row)
    row.setdefault("suite", "step" if row["name"].startswith(STEPS) else "ops")
    if row["suite"] == "scaling":
        row.setdefault("axis", "threads")  # the only axis before schema 5
    if isinstance(row.get("speedup"), float):
        row["speedup"] = {"eager": row["speedup"]}
    if row.get("calls"):
        row["calls"] = [_renamed(call) for call in row["calls"]]
    if "failed" in row or "not_run" in row:
        return row
    suite = catalogue.SUITES.get(row["suite"])
    lacking = [part for part in suite.holds if not isinstance(row.get(part), dict | list)] if suite else []
    if lacking:
        raise InputError(f"{path}: {row['name']!r} has no {lacking[0]}: give a file that --json wrote")
    try:
        whole = all(map(_timed, samples(row).values())) and all(map(_summed, _timings(row)))
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(f"{path}: samples of {row['name']!r} are no positive seconds: give a file that --json wrote")
    return row


def _timings(row: dict[str, Any]) -> list[dict[str, Any]]:
    if row["suite"] == "profile":
        return [row["wall"]]
    by_name = row.get("timings", {}).values()
    return [t for timing in by_name for t in ([timing] if "samples" in timing else timing.values())]


def _timed(seconds: list[float]) -> bool:
    return bool(seconds) and all(isinstance(s, int | float) and 0 < s < math.inf for s in seconds)


def _summed(timing: dict[str, Any]) -> bool:
    return isinstance(timing["median"], float) and len(timing["quartiles"]) == 2


def _renamed(entry: dict[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(name, name): value for name, value in entry.items()}
