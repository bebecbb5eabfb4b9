"""The parts of `python -m benchmarks.gpu`: what each runs, and what it comes to.

Every part is a function of its Place and returns its Outcome. What it runs are processes of their own, ended when the
part's seconds are over; what they find is in rows.jsonl and failures.txt as it comes.
"""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.checkout import ROOT
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.place import FAILED, NOT_RUN, OK, Ended, Outcome, Part, Place
from benchmarks.suites import step
from engine import ops
from engine.host import environment
from engine.kernels import _native, _spec
from engine.systems.registry import SYSTEMS

PYTHON = sys.executable
PACKAGES = ("triton", "tyro", "tqdm", "safetensors", "PIL", "matplotlib", "jinja2")  # that the parts below import
PAPER = next(iter(step.SETTINGS))
STEP_SECONDS = 75.0  # of one competitor alone, compiling included
TEST_SECONDS = 90  # after which a test hangs
NCU_SECTIONS = ("SpeedOfLight", "Occupancy", "LaunchStats", "MemoryWorkloadAnalysis")
NCU_KERNELS = "regex:conv|grad|activation|pack|l1_|balance|sum|image_batch|landmark|gram|style|norm_act"
NCU_LAUNCHES = 130


def machine(place: Place) -> Outcome:
    """The GPU, the versions, which implementation runs each operator, and what `kiln doctor` says."""
    _native.load()
    doctor = place.attempt(PYTHON, "-m", "engine.doctor", fails=())
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    rows = [row for row in ops.explain() if row.device == "cuda"]
    missing = [f"{row.operator}: {row.why}" for row in rows if row.kind == "none"]
    results = {"snapshot": environment.snapshot(), "operators": [asdict(row) for row in rows]}
    results["doctor"] = doctor.printed
    gpu = torch.cuda.get_device_properties(0)
    line = f"{gpu.name}, {gpu.multi_processor_count} SMs, {gpu.total_memory / 2**30:.0f} GiB, torch {torch.__version__}"
    if absent:
        missing.append(f"not installed: {', '.join(absent)}")
    if missing:
        return Outcome(FAILED, "; ".join([line, *missing]), results=results)
    return Outcome(OK, line, results=results)


def compiling(*groups: str) -> Callable[[Place], Outcome]:
    """Compiles what other parts launch, in parallel, or finds that the kit's kernels fit here."""

    def run(place: Place) -> Outcome:
        if carried := Kit.here().kernels_that_fit():
            return Outcome(OK, f"{carried:,} kernels came with the kit and fit this machine")
        seconds = ["--seconds", f"{max(1.0, place.left - 15):.0f}"]
        ended = place.attempt(PYTHON, "-m", "benchmarks.gpu.compiling", *seconds, "--groups", *groups)
        return Outcome(OK if ended.status == 0 else FAILED, ended.last_line if ended.status == 0 else ended.why)

    return run


def smoke(place: Place) -> Outcome:
    """Every operator in a process of its own, on a few samples, against float64."""
    rows_file = str(place.out / "rows.jsonl")
    programs = {name: (PYTHON, "-m", "benchmarks.gpu.one_operator", name, rows_file) for name in _spec.specs()}
    ended = place.together(programs, at_once=len(programs), seconds=place.left, env={"OMP_NUM_THREADS": "2"})
    rows = [row for row in _rows(place.out / "rows.jsonl") if row["part"] == "smoke"]
    good = sum(row["passed"] for row in rows)
    unfinished = [name for name, program in ended.items() if program.status not in (0, 1)]
    wrong = sorted({row["operator"] for row in rows if not row["passed"]} | {*unfinished, *programs.keys() - ended})
    line = f"{good} of {len(rows)} results right"
    if wrong:
        return Outcome(FAILED, f"{line}; not: {', '.join(wrong)}", results=rows)
    return Outcome(OK, line, results=rows)


def tests(place: Place) -> Outcome:
    """The tests of tests/gpu/, in several processes if pytest-xdist is there."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "gpu").glob("test_*.py"))
    if not files:
        return Outcome(NOT_RUN, "there is no folder tests/gpu")
    if importlib.util.find_spec("pytest") is None:
        return Outcome(NOT_RUN, "pytest is not installed")
    command = [PYTHON, "-m", "pytest", "-p", "benchmarks.gpu.pytest_plugin", "-p", "no:cacheprovider", "-rs"]
    together = importlib.util.find_spec("xdist") is not None
    if together:
        processes = max(1, min(8, len(os.sched_getaffinity(0)) // 2))
        # one test at a time is handed out, so that a process that ends takes no other test with it
        command += ["-n", str(processes), "--dist", "load", "--maxschedchunk", "1", "--max-worker-restart", "100"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        command += ["--timeout", str(TEST_SECONDS), "--timeout-method", "thread"]
    env = {"KILN_GPU_OUT": str(place.out), "OMP_NUM_THREADS": "2"}
    if cache := os.environ.get("TRITON_CACHE_DIR"):
        env["KILN_TEST_TRITON_CACHE"] = cache
    before = len(_rows(place.out / "rows.jsonl"))
    ended = place.attempt(*command, *files, env=env, fails=())
    rows = _rows(place.out / "rows.jsonl")[before:]
    counts = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in ("passed", "failed", "skipped")}
    line = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    if not together:
        line += ", in one process: pytest-xdist is not installed"
    if ended.status == 0:
        return Outcome(OK, line, results=counts)
    failed = [row["test"].rpartition("::")[2] for row in rows if row["outcome"] == "failed"]
    why = "" if ended.status == 1 else f"{ended.why}; "
    return Outcome(FAILED, f"{line}; {why}{', '.join(failed[:5])}", results=counts | {"names": failed})


def verify(place: Place) -> Outcome:
    """`kiln verify --device cuda`, a process for each operator and for the training steps of each system."""
    command = (PYTHON, "-m", "engine.verify", "--device", "cuda", "--json")
    programs = {name: (*command, "--no-operators", "--steps", "5", "--system", name) for name in SYSTEMS}
    programs |= {name: (*command, "--operator", name) for name in _spec.specs()}
    rows, wrong = [], []

    def keep(name: str, ended: Ended) -> None:
        start = ended.printed.find("{\n")
        if ended.status not in (0, 1) or start < 0:
            wrong.append(f"{name} ({ended.why})")
            return
        for row in json.loads(ended.printed[start : ended.printed.rindex("}") + 1])["rows"]:
            rows.append(row)
            place.row(row)
            if not row["passed"]:
                wrong.append(f"{row['subject']} {row['variant']}")
                place.failure(wrong[-1], json.dumps(row, indent=1))

    env = {"OMP_NUM_THREADS": "2"}
    ended = place.together(programs, at_once=4, seconds=place.left, env=env, fails=(2,), then=keep)
    wrong += [f"{name} (no time was left)" for name in programs if name not in ended]
    line = f"{sum(row['passed'] for row in rows)} of {len(rows)} rows pass"
    if wrong:
        return Outcome(FAILED, f"{line}; not: {', '.join(wrong)[:600]}", results=rows)
    return Outcome(OK, line, results=rows)


def steps(precision: str, *, autotuned: bool = False) -> Callable[[Place], Outcome]:
    """Each competitor of the paper's step in a process of its own, fused first, then all of them interleaved."""

    def run(place: Place) -> Outcome:
        wanted = ["fused", "eager channels_last", "strong", "compile", *([step.AUTOTUNED] if autotuned else [])]
        alone: dict[str, dict] = {}
        for name in wanted:
            if place.left < 10:
                break
            seconds = place.left if name == step.AUTOTUNED else STEP_SECONDS
            command = (PYTHON, "-m", "benchmarks.gpu.one_step", name, precision, PAPER)
            row = place.attempt(*command, seconds=seconds).last_json()
            if row:
                alone[name] = row
                place.row(row)
        figures = [_alone(alone, precision)] if "fused" in alone else []
        taken = ", ".join(f"{name} {row['seconds'] * 1e6:.0f}" for name, row in alone.items())
        line = f"us a step, each alone: {taken or 'none ran, and failures.txt says why'}"
        missing = [name for name in wanted if name not in alone]
        interleaved: list[dict] = []
        if not autotuned and place.left > 40 and "fused" in alone:
            interleaved = suite_rows(place, "step", precision, "--filter", PAPER)
            figures += [_figures(row, precision) for row in interleaved if "speedup" in row]
        results = {"alone": list(alone.values()), "interleaved": interleaved}
        if missing:
            return Outcome(FAILED, f"{line}; not: {', '.join(missing)}", figures, results)
        return Outcome(OK, line, figures, results)

    return run


def profile(place: Place) -> Outcome:
    """The kernels of a fused step by GPU time, in bf16 and fp32."""
    shown = []
    for precision in ("bf16", "fp32"):
        command = (PYTHON, "-m", "benchmarks.gpu.one_step", "fused", precision, PAPER, "profile")
        ended = place.attempt(*command, seconds=place.left if precision == "fp32" else 0.6 * place.seconds)
        if ended.status == 0:
            place.write("profile.txt", f"\nfused step, {precision}\n{ended.printed}\n")
            shown.append(precision)
    if not shown:
        return Outcome(FAILED, "no kernels were profiled; failures.txt says why")
    return Outcome(OK if len(shown) == 2 else FAILED, f"profile.txt has the kernels of {' and '.join(shown)}")


def ncu(place: Place) -> Outcome:
    """What Nsight Compute says of each kernel of one fused step in bf16."""
    path = cuda_tool("ncu")
    if path is None:
        return Outcome(NOT_RUN, "ncu is neither on PATH nor in CUDA_HOME")
    sections = [word for section in NCU_SECTIONS for word in ("--section", section)]
    options = ["--profile-from-start", "off", "--clock-control", "none", *sections, "-k", NCU_KERNELS]
    command = [path, *options, "--launch-count", str(NCU_LAUNCHES), PYTHON, "-m", "benchmarks.gpu.one_step"]
    ended = place.attempt(*command, "fused", "bf16", PAPER, "ncu")
    place.write("profile.txt", f"\nncu\n{ended.printed}\n")
    kernels = ended.printed.count("Duration")
    return Outcome(OK if kernels else FAILED, f"{kernels} kernels in profile.txt" if kernels else ended.why)


def cuda_tool(name: str) -> str | None:
    """The path of a tool of the CUDA toolkit; None if it is not there."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [f"{home}/{inner}" for home in homes if home for inner in ("bin", "compute-sanitizer")]
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *folders]))


def sanitized(tool: str) -> Callable[[Place], Outcome]:
    """Every operator's smallest samples under one tool of compute-sanitizer, a process for each operator."""

    def run(place: Place) -> Outcome:
        path = cuda_tool("compute-sanitizer")
        if path is None:
            return Outcome(NOT_RUN, "compute-sanitizer is neither on PATH nor in CUDA_HOME")
        names = [row.operator for row in ops.explain() if row.device == "cuda" and row.kind == "Triton"]
        watch = (path, "--tool", tool, "--error-exitcode", "9", PYTHON, "-m", "benchmarks.gpu.sanitize")
        programs = {name: (*watch, name) for name in names}
        # one allocation for each tensor, so that an access beyond its end does not fall into another tensor
        env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "2"}
        clean: list[str] = []

        def keep(name: str, ended: Ended) -> None:
            summary = next((line.strip("= ") for line in ended.printed.splitlines() if "SUMMARY" in line), "")
            ran = sum(line.startswith(f"{name} ") for line in ended.printed.splitlines())
            place.row({"tool": tool, "operator": name, "says": summary or ended.why, "samples": ran})
            if ended.status == 0 and summary and ran:
                clean.append(name)

        place.together(programs, at_once=4, seconds=place.left, env=env, then=keep)
        wrong = [name for name in names if name not in clean]
        line = f"{len(clean)} of {len(names)} operators clean"
        if wrong:
            return Outcome(FAILED, f"{line}; not: {', '.join(wrong)}")
        return Outcome(OK, line)

    return run


def benchmark(suite: str, precision: str, *options: str, share: float = 0.7) -> Callable[[Place], Outcome]:
    """A suite of `python -m benchmarks`, which begins no further case when `share` of the seconds is spent."""

    def run(place: Place) -> Outcome:
        rows = suite_rows(place, suite, precision, "--budget", f"{share * place.seconds:.0f}", *options)
        measured = [row for row in rows if "speedup" in row]
        different = [f"{row['name']}: {row['failed'][0]}" for row in rows if "failed" in row]
        figures = [_figures(row, precision) for row in measured]
        line = f"{len(measured)} of {len(rows)} cases measured" if rows else "no case ran; failures.txt says why"
        if different:
            place.failure(suite, "\n".join(different))
            return Outcome(FAILED, f"{line}; {'; '.join(different)[:600]}", figures, rows)
        return Outcome(OK if measured else FAILED, line, figures, rows)

    return run


def suite_rows(place: Place, suite: str, precision: str, *options: str) -> list[dict]:
    """The rows of a suite on the GPU, those that it had when its time was over too."""
    file = place.scratch / "suite.jsonl"
    file.unlink(missing_ok=True)
    arithmetic = [] if precision == "fp32" else ["--precision", precision]
    command = (PYTHON, "-m", "benchmarks", suite, "--device", "cuda", "--rows", str(file), *arithmetic, *options)
    # exit status 1 says that a result differs, and the rows say which
    place.attempt(*command, fails=(2, *range(-64, 0)))
    rows = _rows(file)
    for row in rows:
        place.row(row)
    return rows


def _rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _figures(row: dict, precision: str) -> list[str]:
    fused = row["timings"]["fused"]["median"]
    against = [f"{row['speedup'][n]:.2f}" if n in row["speedup"] else "-" for n in ("eager", "compile", "strong")]
    memory = row.get("memory")
    of_eager = f"{memory['fused'] / memory['eager']:.0%}" if memory else ""
    return [row["name"].removesuffix(" channels_last"), precision, f"{fused * 1e6:.0f}", *against, of_eager]


def _alone(alone: dict[str, dict], precision: str) -> list[str]:
    """The row of competitors that ran in processes of their own."""
    fused = alone["fused"]
    best = {}
    for name, row in alone.items():
        baseline = name.split()[0]
        best[baseline] = min(row["seconds"], best.get(baseline, row["seconds"]))
    against = [f"{best[n] / fused['seconds']:.2f}" if n in best else "-" for n in ("eager", "compile", "strong")]
    eager = alone.get("eager channels_last")
    memory = f"{fused['allocated'] / eager['allocated']:.0%}" if eager and eager["allocated"] else ""
    return [f"{PAPER}, each alone", precision, f"{fused['seconds'] * 1e6:.0f}", *against, memory]


def roofline(place: Place) -> Outcome:
    """How far measured launches are from predicted ones."""
    from benchmarks.prediction import forecast  # loads Triton: if that fails, the other parts still run

    # the PTX is read, which kernels of a kit come without: a cache of its own
    file = place.scratch / "predicted.jsonl"
    words = ("predict", "--quick", "--precision", "bf16", "--device", "cuda", "--rows", str(file))
    ended = place.attempt(
        PYTHON, "-m", "benchmarks", *words, env={"TRITON_CACHE_DIR": str(place.scratch / "triton")}, fails=(2,)
    )
    rows = _rows(file)
    for row in rows:
        place.row(row)
    error = forecast.error(rows)
    if error is None:
        return Outcome(FAILED, f"nothing was measured: {ended.why}", results=rows)
    factors = f"median factor {error['median_factor']:.2f}, worst {error['worst_factor']:.2f}"
    line = f"measured against predicted, {error['launches']} launches: {factors}"
    return Outcome(OK, line, results={"error": error, "rows": rows})


def training(place: Place) -> Outcome:
    """A real training run of the refiner at the paper's setting: its samples, its curve and its weights."""
    seconds = max(10.0, place.seconds - 40)
    folder = place.scratch / "training"
    folder.mkdir(exist_ok=True)
    pictures = Kit.here().pictures
    data = [str(pictures)] if pictures else []
    ended = place.attempt(PYTHON, "-m", "benchmarks.gpu.train", str(folder), f"{seconds:.0f}", "bf16", *data)
    for path in sorted((folder / "run").glob("samples/step_*.png"))[-1:]:
        shutil.copy(path, place.out / "samples.png")
    for name, kept in (("metrics.jsonl", "metrics.jsonl"), ("generator.safetensors", "refiner.safetensors")):
        if (folder / "run" / name).exists():
            shutil.copy(folder / "run" / name, place.out / kept)
    trained = ended.last_json()
    if ended.status != 0 or not trained:
        return Outcome(FAILED, ended.why)
    line = (
        f"{trained['images_per_s']:,.0f} images/s over {trained['steps']:,} steps, a million steps in "
        f"{trained['million_steps_minutes']:.1f} min, {trained['peak_memory_mib']:.0f} MiB; {trained['loader']}"
    )
    return Outcome(OK, line, results=trained)


REST = ("training", "shapes", "samples", "exact", "systems")
# those that tell most first. Kernels are compiled before the parts that launch them
PARTS = (
    Part("machine", 40, "the GPU, the versions, and what runs each operator", machine),
    Part("compile", 120, "kernels of the next two parts, compiled on every core", compiling("smoke", "quick", "steps")),
    Part("smoke", 75, "every operator against float64 in three dtypes", smoke),
    Part("steps-bf16", 260, "the refiner's step at the paper's setting against PyTorch", steps("bf16")),
    Part("profile", 60, "the kernels of that step by GPU time", profile),
    Part("compile-rest", 240, "kernels of the parts below, compiled on every core", compiling(*REST)),
    Part("tests", 200, "the GPU tests", tests),
    Part("train", 120, "a real training run: samples, curve, weights", training),
    Part("ops-bf16", 120, "operators, forward and backward, against PyTorch", benchmark("ops", "bf16", "--quick")),
    Part("memcheck", 80, "every operator under compute-sanitizer", sanitized("memcheck")),
    Part("racecheck", 80, "every operator under compute-sanitizer", sanitized("racecheck")),
    Part("systems", 300, "a training step of every other system", benchmark("systems", "fp32")),
    Part("verify", 240, "`kiln verify --device cuda`", verify),
    Part("steps-fp32", 200, "the refiner's step in fp32", steps("fp32")),
    Part("ops-fp32", 120, "operators in fp32", benchmark("ops", "fp32", "--quick")),
    Part("roofline", 90, "how far the predictions are off", roofline),
    Part("ncu", 90, "what Nsight Compute says of each kernel", ncu),
    # last, because it compiles longest
    Part("steps-autotune", 240, "the step against torch.compile in mode max-autotune", steps("bf16", autotuned=True)),
)
