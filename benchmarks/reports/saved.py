"""Results that `python -m benchmarks --json FILE` saved, of every schema so far, as the newest one says it."""

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
    """The result: schema (the file's own), commit, date, device, precision, threads, limits, steady_memory,
    machine and rows.

    What an older schema lacks is None; its precision is fp32 on the cpu, and its memory was not steady. Raises
    InputError for what is no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON file ({error}): give one that --json wrote") from error
    return newest(found, str(path))


def newest(found: Any, path: str) -> dict[str, Any]:
    """What `read` returns, of the file's content. path: for the messages."""
    if isinstance(found, dict) and "parts" in found:
        raise InputError(f"{path} is of `make gpu`, whose suites are in its parts: give a file that --json wrote")
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list) or not found["rows"]:
        raise InputError(f"{path} holds no benchmark rows: give a file that --json wrote")
    schema = found.get("schema")
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise InputError(f"{path} is of schema {schema!r}, this version reads 1 to {SCHEMA}: update, or measure again")
    limits, machine = found.get("limits"), found.get("machine")
    if not isinstance(limits, dict | None) or not isinstance(machine, dict | None):
        raise InputError(f"{path}: its limits or its machine are no objects: give a file that --json wrote")
    rows = [_row(path, row) for row in found["rows"]]
    head = {name: found.get(name) for name in ("commit", "date", "threads")}
    head["steady_memory"] = found.get("steady_memory", False)
    head |= {"schema": schema, "device": found.get("device") or "cpu", "precision": found.get("precision") or "fp32"}
    return head | {"limits": limits and _renamed(limits), "machine": machine or {}, "rows": rows}


def samples(row: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of every round by competitor; in scaling by competitor and what grows, in profile the step's."""
    if row["suite"] == "profile":
        return {"fused": row["wall"]["samples"]} if "wall" in row else {}
    found = {}
    for name, timing in row.get("timings", {}).items():
        if "samples" in timing:
            found[name] = timing["samples"]
        else:
            found |= {f"{name}, {row['axis']} {value}": by["samples"] for value, by in timing.items()}
    return found


def machine_words(result: dict[str, Any]) -> str:
    """The processor or GPU, threads and version of torch."""
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
        row.setdefault("axis", "threads")  # since schema 5 there are others
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


def _timed(taken: list[float]) -> bool:
    return bool(taken) and all(isinstance(s, int | float) and 0 < s < math.inf for s in taken)


def _summed(timing: dict[str, Any]) -> bool:
    return isinstance(timing["median"], float) and len(timing["quartiles"]) == 2


def _renamed(entry: dict[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(name, name): value for name, value in entry.items()}
