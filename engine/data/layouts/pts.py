"""Reads .pts files: `version: 1`, `n_points: 68`, and 68 lines of x and y in braces, as 300VW and 300W have them."""

import re

import numpy as np

from engine.data.landmarks import POINTS
from engine.errors import InputError

_WHOLE = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?(?:nan|inf|infinity)"
_COMMA = r"[+-]?[0-9]+(?:,[0-9]+)?(?:e[+-]?[0-9]+)?"
_POINT = re.compile(rf"({_WHOLE})(?:\s*[,;]\s*|\s+)({_WHOLE})", re.IGNORECASE)
_POINT_WITH_DECIMAL_COMMAS = re.compile(rf"({_COMMA})(?:\s*;\s*|\s+)({_COMMA})", re.IGNORECASE)
_COMMENT = re.compile(r"\s*(?:#|//)")


def is_pts_name(name: str) -> bool:
    """Whether the name has the suffix .pts (any case)."""
    return name.lower().endswith(".pts")


def parse_points(text: str, place: str) -> np.ndarray:
    """(68, 2) float64, x and y in pixels with 0 the centre of the first pixel.

    text:  content of a .pts file, which counts pixels from 1 (as menpo's importer reads it too). Without `version: 1`,
           in capitals, with comments, empty lines, and commas between or in numbers, it means the same.
    place: the file, for messages.
    Raises InputError for anything else, and for another number of points.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line and not _COMMENT.match(line)]
    if lines and re.match(r"n_?points", lines[0][1], re.IGNORECASE):
        lines.insert(0, (0, "version: 1"))
    if not lines or not re.fullmatch(r"version\s*:\s*1(\.0*)?", lines[0][1], re.IGNORECASE):
        raise InputError(f"{place} line {lines[0][0] if lines else 1}: expected `version: 1`")
    number, counted = lines[1] if len(lines) > 1 else (2, "")
    count = re.fullmatch(r"n_?points\s*:\s*0*(?P<count>[0-9]+)\s*(?P<brace>\{?)", counted, re.IGNORECASE)
    if count is None:
        raise InputError(f"{place} line {number}: expected `n_points: {POINTS}`")
    if count["count"] != str(POINTS):
        raise InputError(
            f"{place} line {number}: it has {count['count'][:20]} points; this layout needs {POINTS} (iBUG order)"
        )
    body = lines[2:] if not count["brace"] else [(number, "{"), *lines[2:]]
    if len(body) != POINTS + 2 or body[0][1] != "{" or body[-1][1] != "}":
        raise InputError(f"{place}: expected {POINTS} lines of two numbers between {{ and }}, and nothing after them")
    return np.array([_point(line, f"{place} line {number}") for number, line in body[1:-1]]) - 1


def _point(line: str, where: str) -> tuple[float, float]:
    """The two numbers in a line. where: file and line, for messages."""
    if match := _POINT.fullmatch(line):
        return float(match[1]), float(match[2])
    if match := _POINT_WITH_DECIMAL_COMMAS.fullmatch(line):
        return float(match[1].replace(",", ".")), float(match[2].replace(",", "."))
    raise InputError(f"{where}: expected two numbers, not {line[:40]!r}")
