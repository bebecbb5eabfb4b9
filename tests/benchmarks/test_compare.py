"""Comparing saved results: a planted change is found, noise is not, and what cannot be compared is named."""

import copy
import itertools
import json
import math
import random
import statistics
from pathlib import Path

import pytest

import benchmarks.__main__ as bench
from benchmarks.reports import compare, saved
from engine.errors import InputError
from tests.support.benchmark_results import AMD, INTEL, PREDICTED
from tests.support.tiny_run import command


@pytest.fixture(scope="module")
def measured():
    return json.loads(INTEL.read_text())


def again(result: dict, seed: int, slower: dict[str, float] | None = None) -> dict:
    """What another run of the same code might give: each half of the rounds is drawn anew from that of `result`.

    slower: factor on the samples of each competitor
    """
    rng = random.Random(seed)
    other = copy.deepcopy(result)
    for row in other["rows"]:
        for name, timing in row.get("timings", {}).items():
            for by in [timing] if "samples" in timing else timing.values():
                old = by["samples"]
                halves = [rng.choices(old[start::2], k=len(old[start::2])) for start in (0, 1)]
                factor = (slower or {}).get(name, 1.0)
                by["samples"] = [value * factor for pair in zip(*halves, strict=True) for value in pair]
    return other


def written(path: Path, result: dict) -> Path:
    path.write_text(json.dumps(result))
    return path


def compared(a: dict, b: dict, tmp_path: Path) -> list[compare.Change]:
    return compare.changes(*(saved.read(written(tmp_path / f"{n}.json", x)) for n, x in (("a", a), ("b", b))))


def verdicts_of_fused(changes: list[compare.Change], suite: str = "ops") -> list[str]:
    return [c.verdict for c in changes if c.suite == suite and c.competitor == "fused"]


def test_two_runs_that_differ_by_noise_are_unchanged(measured, tmp_path):
    verdicts = []
    for seed in range(4):
        changes = compared(again(measured, seed), again(measured, 100 + seed), tmp_path)
        verdicts += [c.verdict for c in changes if c.ratio]
    assert len(verdicts) > 1500
    assert sum(v != compare.UNCHANGED for v in verdicts) <= 0.01 * len(verdicts)  # what CONFIDENCE allows


def test_a_planted_slowdown_of_a_tenth_is_found(measured, tmp_path):
    changes = compared(again(measured, 1), again(measured, 2, {"fused": 1.1}), tmp_path)
    verdicts = verdicts_of_fused(changes)
    assert compare.FASTER not in verdicts and verdicts.count(compare.SLOWER) >= 0.6 * len(verdicts) > 40
    both = [saved.read(tmp_path / f"{name}.json") for name in "ab"]
    joint = {line[0]: line[5] for line in compare.together(*both, changes).rows}
    assert joint["ops: resize_conv_act"] == joint["step: refiner"] == compare.SLOWER
    calm = [c for c in changes if c.ratio and c.competitor != "fused" and c.suite == "ops"]
    assert sum(c.verdict != compare.UNCHANGED for c in calm) <= 0.01 * len(calm)


def test_a_machine_that_moved_is_no_change_of_fused(measured, tmp_path):
    every = {name for row in measured["rows"] for name in row.get("timings", {})}
    moved = again(measured, 2, dict.fromkeys(every, 1.2))
    verdicts = verdicts_of_fused(compared(again(measured, 1), moved, tmp_path))
    assert verdicts.count(compare.UNCHANGED) == len(verdicts) > 40
    # fused that takes as long on a slower machine has become faster; between two versions of torch this cannot be told
    moved = again(measured, 2, dict.fromkeys(every - {"fused"}, 1.2))
    changes = [c for c in compared(again(measured, 1), moved, tmp_path) if c.competitor == "fused" and c.suite == "ops"]
    assert sum(c.verdict == compare.FASTER for c in changes) >= 0.6 * len(changes)
    assert statistics.median(c.beside for c in changes) == pytest.approx(1 / 1.2, rel=0.03)
    moved["machine"]["packages"]["torch"] = "9.9"
    alone = [c for c in compared(again(measured, 1), moved, tmp_path) if c.competitor == "fused" and c.suite == "ops"]
    assert all(c.beside == c.ratio for c in alone) and compare.FASTER not in {c.verdict for c in alone}


def test_all_rows_together_show_no_change_that_is_none(measured, tmp_path):
    changes = compared(again(measured, 3), again(measured, 4), tmp_path)
    both = [saved.read(tmp_path / f"{name}.json") for name in "ab"]
    joint = [line[5] for line in compare.together(*both, changes).rows]
    assert len(joint) > 10 and set(joint) == {compare.UNCHANGED}


@pytest.mark.parametrize("sigma", [0.01, 0.03])
@pytest.mark.parametrize("factor, expected", [(1.1, "slower"), (1 / 1.1, "faster"), (1.0, "unchanged")])
def test_one_row_of_ten_rounds(sigma, factor, expected):
    """Normal noise, an outlier of twice the time in each run, and odd rounds that take a tenth longer."""
    rng = random.Random(5)
    right = 0
    for _ in range(50):
        a, b = ([math.exp(rng.gauss(0, sigma)) * (1.1 if i % 2 else 1) for i in range(10)] for _ in range(2))
        a[rng.randrange(10)] *= 2
        b[rng.randrange(10)] *= 2
        right += compare.verdict(*compare.ratio_interval(a, [value * factor for value in b])) == expected
    assert right >= 40


def test_the_interval_is_that_of_the_rank_sums():
    """Against every way to divide distinct samples between A and B: 3 and 4 of one half, 3 and 3 of the other."""
    counts = []
    halves = [itertools.combinations(range(7), 3), itertools.combinations(range(6), 3)]
    for chosen in itertools.product(*map(list, halves)):
        above = 0
        for picked, size in zip(chosen, (7, 6), strict=True):
            above += sum(y > x for x in picked for y in set(range(size)) - set(picked))
        counts.append(above)
    expected = 0
    while sum(count <= expected for count in counts) / len(counts) <= (1 - compare.CONFIDENCE) / 2:
        expected += 1
    assert expected > 0 and compare._cut(((3, 4), (3, 3))) == expected
    assert compare._cut(((2, 2), (2, 2))) == 0


def test_the_estimate_is_the_median_of_the_ratios():
    a, b = [1.0, 10.0, 2.0, 20.0, 4.0, 40.0], [3.0, 50.0, 6.0, 60.0, 9.0, 70.0]
    pairs = [y / x for start in (0, 1) for x in a[start::2] for y in b[start::2]]
    ratio, interval = compare.ratio_interval(a, b)
    assert ratio == pytest.approx(statistics.median(pairs)) and min(pairs) <= interval[0] < ratio < interval[1]
    few, interval = compare.ratio_interval(a[:4], b[:4])
    assert interval is None and compare.verdict(few, interval) == compare.FEW
    assert compare.verdict(1.015, (1.01, 1.02)) == compare.UNCHANGED  # certain, but below LEAST


def test_what_cannot_be_compared_is_named(measured, tmp_path):
    a, b = copy.deepcopy(measured), copy.deepcopy(measured)
    names = [row["name"] for row in a["rows"][:6]]
    del a["rows"][1], b["rows"][0]
    for row in [*a["rows"], *b["rows"]]:
        if row["suite"] == "ops" and row["name"] == names[2]:
            row["failed"] = ["output: error 1"]
    b["rows"][3]["not_run"] = "the budget was spent"
    a["rows"][4]["timings"]["mine"] = b["rows"][4]["timings"].pop("eager contiguous")
    changes = compared(a, b, tmp_path)
    by_row = {c.name: c.verdict for c in changes if not c.competitor and c.suite == "ops"}
    assert by_row[names[0]] == "only in A" and by_row[names[1]] == "only in B" and by_row[names[2]] == "failed in both"
    assert by_row[names[4]] == "not run in B"
    lone = {(c.name, c.competitor) for c in changes if c.competitor and c.verdict == "only in A"}
    assert lone == {(names[5], "mine"), (names[5], "eager contiguous")}


def test_the_command(measured, tmp_path, capsys):
    a = written(tmp_path / "a.json", measured)
    b = again(measured, 7, {"fused": 1.3})
    b |= {"threads": 1, "precision": "bf16", "schema": 3}
    b["machine"]["cpu"]["model"] = "Another processor"
    assert command(bench.main, "compare", a, written(tmp_path / "b.json", b)) == 0
    printed = capsys.readouterr().out
    for words in ("different machines: A Intel(R) Xeon(R) Processor, B Another", "different precisions: A fp32, B bf16",
                 "different numbers of threads: A 2, B 1", "different schemas: A 2, B 3", "need not be"):  # fmt: skip
        assert words in printed
    assert "slower" in printed and "ops: resize_conv_act" in printed and "rows of fused" not in printed.splitlines()[0]
    assert command(bench.main, "compare", a, a) == 0
    printed = capsys.readouterr().out
    assert "Nothing changed beyond noise" in printed and "!" not in printed
    assert command(bench.main, "compare", a, a, "--all", "--filter", "gram") == 0
    printed = capsys.readouterr().out
    assert "gram 25x64x32x32" in printed and "1.000" in printed and "refiner" not in printed


def test_a_result_of_schema_1(tmp_path, capsys):
    old = saved.read(AMD)
    assert {row["suite"] for row in old["rows"]} == {"ops", "step"} and old["limits"]["matrix_flops"] > 1e11
    assert old["rows"][0]["speedup"].keys() == {"eager"} and (old["device"], old["precision"]) == ("cpu", "fp32")
    assert command(bench.main, "compare", AMD, INTEL) == 0
    printed = capsys.readouterr().out
    assert "different machines" in printed and "different schemas: A 1, B 2" in printed and "only in B" in printed


def test_files_that_are_no_results(measured, tmp_path, capsys):
    newer = copy.deepcopy(measured) | {"schema": saved.SCHEMA + 1}
    wrong = copy.deepcopy(measured)
    wrong["rows"][0]["timings"]["fused"]["samples"][0] = -1
    unsummed = copy.deepcopy(measured)
    del unsummed["rows"][0]["timings"]["fused"]["median"]
    nameless = copy.deepcopy(measured)
    del nameless["rows"][0]["name"]
    cases = {
        "[]": "holds no benchmark rows",
        '{"rows": []}': "holds no benchmark rows",
        '{"parts": []}': "make gpu",
        "{": "is no JSON file",
        '{"schema": 2, "rows": [1]}': "has no name",
        '{"schema": 2, "rows": [{"name": "x"}], "limits": 3}': "no objects",
        '{"schema": 2, "rows": [{"name": "x", "suite": "ops"}]}': "'x' has no speedup",
        '{"schema": 4, "rows": [{"name": "x", "suite": "profile", "wall": {}}]}': "'x' has no calls",
        json.dumps(newer): "this version reads 1 to",
        json.dumps(wrong): "no positive seconds",
        json.dumps(unsummed): "no positive seconds",
        json.dumps(nameless): "has no name",
        PREDICTED.read_text(): "has no samples of times (its suites: predict)",
    }
    for text, expected in cases.items():
        path = tmp_path / "x.json"
        path.write_text(text)
        assert command(bench.main, "compare", INTEL, path) == 2
        message = capsys.readouterr().err
        assert expected in message and message.count("\n") == 1, text[:50]
    assert command(bench.main, "compare", INTEL, tmp_path / "none.json") == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "x.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is no JSON"):
        saved.read(tmp_path / "x.json")
    assert command(bench.main, "compare", INTEL, INTEL, "--filter", "conv9") == 2
    assert "no row contains 'conv9'" in capsys.readouterr().err
    assert command(bench.main, "compare", INTEL) == 2
