"""`make gpu` without a GPU: a part that fails stops no other, and what is found is kept as it comes."""

import dataclasses
import json
import signal
import sys
import time
from pathlib import Path

import pytest
import safetensors
import torch

import benchmarks.gpu.__main__ as gpu
from benchmarks.arguments import Arguments
from benchmarks.gpu import one_operator, one_step, parts, samples, sanitize, train
from benchmarks.gpu.place import FAILED, NOT_RUN, OK, Ended, Outcome, Part, Place
from benchmarks.suites import step
from engine import cli
from engine.data import avatars
from engine.errors import InputError
from engine.kernels import _spec
from engine.systems.refiner import RefinerConfig
from engine.verification.checks import VerifyOptions
from tests.support.benchmark_cases import TINY
from tests.support.tiny_run import command


@pytest.fixture
def place(tmp_path) -> Place:
    (tmp_path / "scratch").mkdir()
    return Place("a part", tmp_path, tmp_path / "scratch", 20.0)


def rows(place: Place) -> list[dict]:
    return parts._rows(place.out / "rows.jsonl")


@pytest.fixture
def pretended_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "check_gpu", lambda: None)


def prints(text: str, status: int = 0) -> tuple[str, ...]:
    return sys.executable, "-c", f"import sys; print({text!r}); sys.exit({status})"


def test_without_a_gpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command(gpu.main, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "no CUDA device" in message and message.count("\n") == 1 and not (tmp_path / "out").exists()
    assert sanitize.main([]) == 2 and train.main([str(tmp_path), "1", "bf16"]) == 2


@pytest.mark.parametrize(("free", "says"), [(80 << 30, ""), (3 << 30, "3.0 of 80.0 GiB")])
def test_memory_that_others_take(free, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.ops, "require", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 80 << 30))
    if not says:
        gpu.check_gpu()
        return
    with pytest.raises(InputError, match=says):
        gpu.check_gpu()


def test_wrong_usage(pretended_gpu, tmp_path, capsys):
    assert command(gpu.main) == 2 and "make gpu OUT=folder" in capsys.readouterr().err
    assert command(gpu.main, tmp_path / "out", "--parts", "smoke", "moke") == 2
    assert "--parts: there is no moke; there are machine, compile" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert command(gpu.main, tmp_path / "file") == 2 and "name another folder" in capsys.readouterr().err


def test_a_failing_part_stops_no_other(pretended_gpu, monkeypatch, tmp_path, capsys):
    def fails(place):
        raise ZeroDivisionError("of all things")

    figures = [["refiner", "bf16", "900", "4.00", "1.50", "1.30", "50%"]]
    written = []

    def looks(place):
        written.append(json.loads((place.out / "gpu.json").read_text())["parts"])
        return Outcome(OK, f"{place.seconds:g} s", figures, {"a": 1})

    made_up = (
        Part("first", 5, "fails", fails),
        Part("second", 5, "looks", looks),
        Part("third", 5, "nothing", lambda place: Outcome(NOT_RUN, "no tool")),
    )
    monkeypatch.setattr(gpu, "PARTS", made_up)
    assert command(gpu.main, tmp_path / "out") == 1
    assert [row["part"] for row in written[0]] == ["first"], "gpu.json is written after each part"
    assert "first: ZeroDivisionError\nof all things" in (tmp_path / "out" / "failures.txt").read_text()
    result, printed = json.loads((tmp_path / "out" / "gpu.json").read_text()), capsys.readouterr().out
    assert [(row["part"], row["status"]) for row in result["parts"]] == [
        ("first", FAILED), ("second", OK), ("third", NOT_RUN)
    ]  # fmt: skip
    assert result["parts"][0]["line"] == "ZeroDivisionError: of all things"
    assert result["parts"][1]["results"] == {"a": 1} and result["schema"] == gpu.SCHEMA
    assert "Fused on this GPU" in printed and "no tool" in printed and "1.50" in printed
    assert command(gpu.main, tmp_path / "again", "--parts", "third,second") == 0
    result = json.loads((tmp_path / "again" / "gpu.json").read_text())
    assert [row["part"] for row in result["parts"]] == ["third", "second"]


def test_all_parts_fit_into_the_time(tmp_path):
    seen = []

    def sees(place):
        seen.append(place.seconds)
        return Outcome(OK, "")

    made_up = tuple(Part(str(n), 50, "", sees) for n in range(3))
    found = gpu.run_all(tmp_path, made_up, seconds=30)
    assert len(found) == 3 and max(seen) <= 30
    found = gpu.run_all(tmp_path, made_up, seconds=5)
    assert [row["status"] for row in found] == [NOT_RUN] * 3 and len(seen) == 3
    assert len({part.name for part in gpu.PARTS}) == len(gpu.PARTS)


def test_commands_are_logged_and_ended(place):
    assert place.run(*prints("hello")).strip() == "hello"
    with pytest.raises(RuntimeError, match="exit status 3: bad luck"):
        place.run(*prints("bad luck", 3))
    started = time.monotonic()
    sleeper = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with pytest.raises(RuntimeError, match="ended after 2 s"):
        place.run(sys.executable, "-c", sleeper, seconds=2.0)
    assert time.monotonic() - started < 30
    log = (place.out / "gpu.log").read_text()
    assert "hello" in log and "bad luck" in log and log.count("$ ") == 3
    failures = (place.out / "failures.txt").read_text()
    assert "exit status 3: bad luck" in failures and "ended after 2 s" in failures and "hello" not in failures


WAITS = """
import pathlib, sys, time
print("begun", flush=True)
while "begun" not in pathlib.Path(sys.argv[1]).read_text().splitlines():
    time.sleep(0.05)
"""


def test_what_a_program_prints_is_in_the_log_before_it_ends(place):
    log = place.out / "gpu.log"
    assert place.run(sys.executable, "-c", WAITS, str(log), seconds=15).strip() == "begun"


def test_programs_side_by_side(place):
    programs = {name: prints(f"I am {name}", status) for name, status in (("one", 0), ("two", 3))}
    programs["slow"] = (sys.executable, "-c", "import time; time.sleep(60)")
    ended = place.together(programs, at_once=3, seconds=3)
    assert [ended[name].status for name in programs] == [0, 3, None]
    log = (place.out / "gpu.log").read_text()
    assert "[one] I am one" in log and "[two] I am two" in log
    late = dataclasses.replace(place, seconds=0.0)
    assert late.together(programs, at_once=3, seconds=3) == {}


def test_a_program_that_a_signal_ends_is_a_failure(place):
    ended = place.attempt(sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", fails=())
    assert ended.status == -signal.SIGSEGV


def test_the_benchmark_s_rows_become_figures(monkeypatch, place):
    row = {
        "suite": "step",
        "name": "refiner",
        "speedup": {"eager": 4.0, "strong": 1.25},
        "timings": {"fused": {"median": 0.001}},
        "memory": {"fused": 1, "eager": 2, "compile": None, "strong": 2},
    }
    wrong = {"suite": "step", "name": "other", "failed": ["output: error 1"]}
    left = {"suite": "step", "name": "last", "not_run": "the budget was spent"}
    monkeypatch.setattr(parts, "suite_rows", lambda *a: [row, left])
    outcome = parts.benchmark("step", "bf16")(place)
    assert (outcome.status, outcome.line) == (OK, "1 of 2 cases measured")
    assert outcome.figures == [["refiner", "bf16", "1000", "4.00", "-", "1.25", "50%"]]
    monkeypatch.setattr(parts, "suite_rows", lambda *a: [row, wrong])
    outcome = parts.benchmark("step", "bf16")(place)
    assert outcome.status == FAILED and "other: output: error 1" in outcome.line and len(outcome.figures) == 1


def test_rows_of_a_benchmark_that_is_ended_are_kept(monkeypatch, place):
    def attempt(self, *words, **options):
        file = Path(words[words.index("--rows") + 1])
        file.write_text(json.dumps({"suite": "ops", "name": "gram", "failed": ["output: error 1"]}) + "\n")
        return Ended(None, "half", 20.0)

    monkeypatch.setattr(Place, "attempt", attempt)
    outcome = parts.benchmark("ops", "bf16")(place)
    assert outcome.status == FAILED and "0 of 1 cases measured; gram: output: error 1" in outcome.line
    assert rows(place) == [{"part": "a part", "suite": "ops", "name": "gram", "failed": ["output: error 1"]}]


def test_every_benchmark_is_one_that_the_command_takes(monkeypatch, place):
    commands = []

    def attempt(self, *words, **options):
        if words[2] == "benchmarks":
            arguments = cli.parse(Arguments, words[3:], prog="benchmarks", description="")
            assert arguments.precision in (None, "fp32") or all(suite.precisions for suite in arguments.suites)
            commands.append(arguments)
        return Ended(0, json.dumps({"seconds": 1e-3, "allocated": 1}) if words[2].endswith("one_step") else "", 0.1)

    monkeypatch.setattr(Place, "attempt", attempt)
    long = dataclasses.replace(place, seconds=100.0)
    for part in gpu.PARTS:
        if part.name.startswith(("steps", "ops", "systems", "roofline")):
            part.run(long)
    assert {a.suite for a in commands} == {"ops", "step", "systems", "predict"}
    assert {a.device for a in commands} == {"cuda"} and {a.precision for a in commands} == {None, "bf16"}
    assert all(0 < a.budget < 100 for a in commands if a.suite in ("ops", "systems"))


def test_each_competitor_of_a_step_has_its_own_process(monkeypatch, place):
    """Fused first; one that fails takes no other with it."""
    seen = []

    def attempt(self, *words, **options):
        seen.append(words[3])
        assert words[4:] == ("bf16", parts.PAPER)
        if words[3] == "strong":
            return Ended(1, "cannot be recorded", 1.0)
        seconds = {"fused": 1e-3, "eager channels_last": 4e-3, "compile": 3e-3}[words[3]]
        return Ended(0, "table\n" + json.dumps({"name": words[3], "seconds": seconds, "allocated": 2**20}), 1.0)

    monkeypatch.setattr(Place, "attempt", attempt)
    outcome = parts.steps("bf16")(place)
    assert seen == ["fused", "eager channels_last", "strong", "compile"]
    assert outcome.status == FAILED and outcome.line.endswith("not: strong")
    assert outcome.figures == [[f"{parts.PAPER}, each alone", "bf16", "1000", "4.00", "3.00", "-", "100%"]]
    assert [row["name"] for row in rows(place)] == ["fused", "eager channels_last", "compile"]


@pytest.mark.parametrize("more", [(), ("profile",)])
def test_one_competitor_of_a_step(more, monkeypatch, capsys):
    monkeypatch.setitem(step.SETTINGS, "tiny", TINY)
    monkeypatch.setattr(one_step, "interleaved", lambda calls, rounds: {n: timing(c) for n, c in calls.items()})
    assert one_step.main(["fused", "fp32", "tiny", *more], device="cpu") == 0
    printed = capsys.readouterr().out
    row = json.loads(printed.splitlines()[-1])
    assert (
        row["name"] == "fused" and row["seconds"] == 2.0 and row["allocated"] > 0 and len(row["losses"]) == step.CHECKED
    )
    assert ("kiln::resize_conv_act" in printed) == bool(more)


def timing(call):
    call()
    return step.Timing([1.0, 2.0, 3.0])


def test_one_operator_against_float64(monkeypatch):
    told = []
    assert one_operator.check("gram", "cpu", told.append) == 0
    assert told and all(row["passed"] and row["error"] <= row["allowed"] for row in told)
    assert {row["dtype"] for row in told} == {"float32", "bfloat16", "float16"}
    honest = one_operator._spec.compare

    def wrong(spec, sample, dtype, device):
        if dtype == torch.float16:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return [dataclasses.replace(error, fused=1.0) for error in honest(spec, sample, dtype, device)]

    monkeypatch.setattr(one_operator._spec, "compare", wrong)
    told.clear()
    assert one_operator.check("gram", "cpu", told.append) == 3, "the process ends where CUDA has"
    assert [row["passed"] for row in told] == [False] * 3 and "illegal memory access" in told[-1]["error"]


TESTS = """
import os, time, pytest

def test_passes(): pass

def test_crashes(): os._exit(7)

def test_hangs(): time.sleep(600)

def test_loses_the_gpu(): raise RuntimeError("CUDA error: an illegal memory access was encountered")

def test_is_wrong(): assert 1 == 2, "one is not two"

@pytest.mark.skip(reason="no such GPU")
def test_is_skipped(): pass

@pytest.mark.parametrize("n", range(6))
def test_others(n): pass
"""


@pytest.mark.slow
def test_tests_in_several_processes(monkeypatch, tmp_path, place):
    """A test that crashes, hangs or loses the GPU is a failure with its name, and all others run."""
    pytest.importorskip("xdist")
    pytest.importorskip("pytest_timeout")
    folder = tmp_path / "root" / "tests" / "gpu"
    folder.mkdir(parents=True)
    (folder / "test_made_up.py").write_text(TESTS)
    monkeypatch.setattr(parts, "ROOT", tmp_path / "root")
    monkeypatch.setattr(parts, "TEST_SECONDS", 3)
    monkeypatch.setenv("PYTEST_ADDOPTS", f"--rootdir {tmp_path / 'root'}")
    honest = Place.attempt

    def attempt(self, *words, **options):
        (name,) = [word for word in words if word.endswith("test_made_up.py")]
        return honest(self, *[str(folder / "test_made_up.py") if word == name else word for word in words], **options)

    monkeypatch.setattr(Place, "attempt", attempt)
    outcome = parts.tests(dataclasses.replace(place, seconds=100.0))
    found = {row["test"].rpartition("::")[2]: row for row in rows(place)}
    assert outcome.status == FAILED and outcome.line.startswith("7 passed, 4 failed, 1 skipped"), outcome
    assert {name for name, row in found.items() if row["outcome"] == "failed"} == {
        "test_crashes", "test_hangs", "test_loses_the_gpu", "test_is_wrong"
    }  # fmt: skip
    assert len(rows(place)) == 12, "each test has one row"
    assert "one is not two" in found["test_is_wrong"]["why"] and "no such GPU" in found["test_is_skipped"]["why"]
    failures = (place.out / "failures.txt").read_text()
    assert "illegal memory access" in failures and "one is not two" in failures


def test_tests_without_xdist(monkeypatch, place):
    commands = []
    monkeypatch.setattr(Place, "attempt", lambda self, *words, **options: commands.append(words) or Ended(0, "", 1.0))
    found = parts.importlib.util.find_spec
    monkeypatch.setattr(
        parts.importlib.util, "find_spec", lambda name: None if name in ("xdist", "pytest_timeout") else found(name)
    )
    assert "in one process: pytest-xdist is not installed" in parts.tests(place).line
    assert "-n" not in commands[0] and "--timeout" not in commands[0] and commands[0][-1].startswith("tests/gpu/")


def test_verify_in_processes(monkeypatch, place):
    """A row for each operator and each system as it ends; what has ended without rows is named."""

    def attempt(self, *words, **options):
        cli.parse(VerifyOptions, words[3:], prog="verify", description="").check()
        name = words[-1]
        if name == "ggb":
            return Ended(None, "half", 9.0)
        passed = name != "gram"
        row = {"subject": name, "variant": "fp32", "passed": passed}
        return Ended(0 if passed else 1, f"a warning\n{json.dumps({'rows': [row]}, indent=2)}\n", 1.0)

    monkeypatch.setattr(Place, "attempt", attempt)
    outcome = parts.verify(place)
    count = len(parts.SYSTEMS) + len(_spec.specs())
    assert outcome.status == FAILED and outcome.line.startswith(f"{count - 2} of {count - 1} rows pass; not: ")
    assert "gram fp32" in outcome.line and "ggb (ended after 9 s: half)" in outcome.line
    assert len(rows(place)) == count - 1 and "gram fp32" in (place.out / "failures.txt").read_text()


def test_missing_tools(monkeypatch, place):
    monkeypatch.setattr(parts, "cuda_tool", lambda name: None)
    assert parts.sanitized("memcheck")(place).status == parts.ncu(place).status == NOT_RUN


def test_each_operator_is_sanitized_by_itself(monkeypatch, tmp_path, place):
    tool = tmp_path / "compute-sanitizer" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/sh\necho $PYTORCH_NO_CUDA_MEMORY_CACHING $2\nfor name; do :; done\n"
        "[ $name = gram ] && { echo ========= ERROR SUMMARY: 2 errors; exit 9; }\n"
        "[ $name = linear ] || echo $name a sample torch.float32\necho ========= ERROR SUMMARY: 0 errors\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert parts.cuda_tool("compute-sanitizer") == str(tool)
    row = parts.ops.explain("gram")[0]
    named = [
        dataclasses.replace(row, operator=n, device="cuda", kind="Triton") for n in ("gram", "image_batch", "linear")
    ]
    monkeypatch.setattr(parts.ops, "explain", lambda: named)
    outcome = parts.sanitized("racecheck")(place)
    # one that ran nothing is not clean
    assert (outcome.status, outcome.line) == (FAILED, "1 of 3 operators clean; not: gram, linear")
    says = {row["operator"]: row["says"] for row in rows(place)}
    assert says["gram"] == "ERROR SUMMARY: 2 errors" and says["image_batch"] == "ERROR SUMMARY: 0 errors"
    assert "1 racecheck" in (place.out / "gpu.log").read_text()


@pytest.mark.parametrize("spec", _spec.specs().values(), ids=_spec.specs())
def test_small_samples_for_the_sanitizer(spec):
    few = samples.smallest(spec)
    assert 0 < len(few) <= 4 * samples.COUNT and all(spec.flops(s) < 1e9 for s in few)
    assert set().union(*map(samples.aspects, few)) == set().union(*map(samples.aspects, spec.samples))


@pytest.fixture
def few_avatars_and_no_dali(monkeypatch):
    monkeypatch.setattr(train, "_has_dali", lambda: False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # importing it fails
    read = train.read_avatars
    monkeypatch.setattr(train, "read_avatars", lambda folder, size: read(folder, size, count=12))


def test_training_without_dali(few_avatars_and_no_dali, monkeypatch, tmp_path):
    """The whole run on the CPU, on a few avatars decoded by Pillow."""
    monkeypatch.setattr(train, "TRIED", 4)
    small = ["--resolution", "16", "--model", "A", "--filters", "8", "--hidden", "8", "--batch-size", "4"]
    trained = train.train(tmp_path, 0.01, ["--device", "cpu", *small], tell=lambda _: None)
    assert "Pillow" in trained["loader"] and trained["steps"] >= 4 and trained["images_per_s"] > 0
    assert trained["million_steps_minutes"] == pytest.approx(1e6 * 4 / trained["images_per_s"] / 60)
    assert Path(trained["samples"]).is_file() and trained["last"]["step"] == trained["steps"]
    with safetensors.safe_open(tmp_path / "run" / "generator.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"])["filters"]["value"] == 8
        assert file.metadata()["step"] == str(trained["steps"])
        assert all(name.startswith("ema.") for name in file.keys())  # noqa: SIM118


def test_training_on_given_pictures(few_avatars_and_no_dali, tmp_path):
    config = dataclasses.replace(RefinerConfig(), resolution=16, batch_size=2, device="cpu")
    avatars.write(tmp_path / "avatars", 4, 16, 1, progress=False)
    loader = train.open_images(config, tmp_path, tmp_path / "avatars" / "photo")
    assert len(loader.images) == 4 and loader.next().images.shape == (2, 3, 16, 16)
    with pytest.raises(InputError, match="has 16x16 pixels, not 32x32"):
        train.open_images(dataclasses.replace(config, resolution=32), tmp_path, tmp_path / "avatars" / "photo")


def test_pictures_decoded_by_pillow_are_the_avatars(few_avatars_and_no_dali, tmp_path):
    config = dataclasses.replace(RefinerConfig(), resolution=16, batch_size=2, device="cpu")
    loader = train.open_images(config, tmp_path)
    expected, _ = avatars.render(0, 0, "photo", 16)
    shown = loader.fixed(12).images[0].permute(1, 2, 0).add(1).mul(127.5)
    assert (shown - torch.from_numpy(expected)).abs().mean() < 8  # JPEG
    assert loader.next().images.shape == (2, 3, 16, 16) and "Pillow" in loader.describe()
