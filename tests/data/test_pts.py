""".pts files: the points they hold, in the dialects that people write."""

import numpy as np
import pytest

from engine.data.layouts.pts import parse_points
from engine.errors import InputError

POINTS = np.stack([np.arange(68) * 1.25 - 3, np.arange(68) * 2.5 + 0.5], axis=1)


def pts(points: np.ndarray = POINTS, between: str = " ") -> str:
    lines = "".join(f"{x + 1:.3f}{between}{y + 1:.3f}\n" for x, y in points)  # files count from 1
    return f"version: 1\nn_points: {len(points)}\n{{\n{lines}}}\n"


PLAIN = pts()
DIALECTS = {
    "plain": PLAIN,
    "CRLF": PLAIN.replace("\n", "\r\n"),
    "CR": PLAIN.replace("\n", "\r"),
    "no version": PLAIN.replace("version: 1\n", ""),
    "version 1.0": PLAIN.replace("version: 1", "version: 1.0"),
    "capitals": PLAIN.replace("version", "Version").replace("n_points", "N_Points"),
    "blanks": PLAIN.replace(":", " :").replace("\n", " \n").replace(" ", "  "),
    "tabs": pts(between="\t"),
    "empty lines": PLAIN.replace("\n", "\n\n"),
    "comments": "# of a tool\n" + PLAIN.replace("{\n", "{\n// points\n"),
    "commas": pts(between=", "),
    "commas alone": pts(between=","),
    "semicolons": pts(between=";"),
    "decimal commas": PLAIN.replace(".", ","),
    "decimal commas and semicolons": pts(between="; ").replace(".", ","),
    "brace beside": PLAIN.replace("68\n{", "68 {"),
    "zeros in front": PLAIN.replace("n_points: 68", "n_points: 0068"),
    "no number behind the point": PLAIN.replace(".000", "."),
    "powers of ten": pts(POINTS * 0 + POINTS).replace("3.500", "35e-1"),
    "no line end": PLAIN.strip(),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(dialect: str) -> None:
    found = parse_points(DIALECTS[dialect], "x.pts")
    assert found.dtype == np.float64 and found.shape == (68, 2)
    np.testing.assert_allclose(found, POINTS, atol=1e-9)


def test_numbers_that_are_none() -> None:
    found = parse_points(PLAIN.replace("-2.000", "NaN", 1).replace("-0.750", "-inf", 1), "x.pts")
    assert np.isnan(found[0, 0]) and found[1, 0] == -np.inf and np.isfinite(found[2:]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected `version: 1`"),
        (" \n\n", "line 1: expected `version: 1`"),
        (PLAIN.replace("version: 1", "version: 2"), "line 1: expected `version: 1`"),
        ("x\n" + PLAIN, "line 1: expected `version: 1`"),
        ("version: 1", "line 2: expected `n_points: 68`"),
        (PLAIN.replace("n_points: 68", "points 68"), "line 2: expected `n_points: 68`"),
        (PLAIN.replace("n_points: 68", "n_points: -68"), "line 2: expected `n_points: 68`"),
        (pts(POINTS[:5]), "line 2: it has 5 points; this layout needs 68"),
        (PLAIN.replace("68", "9" * 5000, 1), f"line 2: it has {'9' * 20} points; this layout needs 68"),
        (PLAIN.replace("{", ""), "expected 68 lines of two numbers between"),
        (PLAIN.replace("}", ""), "expected 68 lines of two numbers between"),
        (PLAIN + "1 2\n", "expected 68 lines of two numbers between"),
        (PLAIN.replace("-2.000 1.500", "1.0"), "line 4: expected two numbers, not '1.0'"),
        (PLAIN.replace("-2.000 1.500", "1.0 x"), "line 4: expected two numbers, not '1.0 x'"),
        (PLAIN.replace("-2.000 1.500", "1 2 3"), "line 4: expected two numbers, not '1 2 3'"),
        (PLAIN.replace("-2.000 1.500", "1,2,3"), "line 4: expected two numbers, not '1,2,3'"),
        (PLAIN.replace("-2.000 1.500", "1_0 2"), "line 4: expected two numbers, not '1_0 2'"),
        ("#\n\n" + PLAIN.replace("-2.000 1.500", "one"), "line 6: expected two numbers, not 'one'"),
    ],
)
def test_anything_else_is_an_error(text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_points(text, "x.pts")
    assert str(raised.value).startswith("x.pts") and message in str(raised.value) and "\n" not in str(raised.value)
