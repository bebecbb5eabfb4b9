"""`python -m benchmarks.gpu OUT` (make gpu): everything that a GPU can show of Kiln, in under eight minutes.

Builds' and machine's facts, the GPU tests, compute-sanitizer, the benchmark, the roofline's error and a real training
run. Each part is a process of its own with a budget of seconds; one that fails or overruns is a row that says so, and
the others go on. OUT gets gpu.json, gpu.log (all that the parts print), metrics.jsonl and samples.png.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.checkout import ROOT, commit
from benchmarks.timing.table import Table
from engine import ops
from engine.errors import InputError
from engine.host import atomic_files, environment
from engine.kernels import _native

SCHEMA = 1
SECONDS = 460  # of all parts together; the rest of eight minutes starts processes and builds
PACKAGES = ("triton", "tyro", "tqdm", "safetensors", "PIL", "matplotlib", "jinja2")  # that the parts below import
OK, FAILED, NOT_RUN = "ok", "FAILED", "not run"


@dataclass
class Outcome:
    """What a part came to: its status, one line about it, lines for the table at the end, and figures for the JSON."""

    status: str
    line: str
    figures: list[list[str]] = field(default_factory=list)
    results: object = None


@dataclass(frozen=True)
class Place:
    """Where a part works: the folder for the user, one for what is not kept, and the seconds it has."""

    out: Path
    scratch: Path
    seconds: float

    def run(self, *command: str, env: dict[str, str] | None = None) -> str:
        """Runs a command in the root of the sources; what it prints goes to gpu.log and is returned.

        Raises RuntimeError with its last line where it fails or outlasts `seconds`; then it is ended, with all that
        it started.
        """
        with (self.out / "gpu.log").open("a+") as log:
            log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            start = log.tell()
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"} | (env or {}),
                start_new_session=True,
            )
            try:
                status = child.wait(self.seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
            log.seek(start)
            printed = log.read()
        if status != 0:
            last = next((line.strip() for line in reversed(printed.splitlines()) if line.strip()), "")
            why = f"ended after {self.seconds:.0f} s" if status is None else f"exit status {status}"
            raise RuntimeError(f"{why}: {last[:200]}")
        return printed


@dataclass(frozen=True)
class Part:
    """A name, the seconds it may take, and what does it."""

    name: str
    seconds: float
    run: Callable[[Place], Outcome]


def machine(place: Place) -> Outcome:
    """The GPU, the versions, and what runs each operator."""
    _native.load()
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    rows = [row for row in ops.explain() if row.device == "cuda"]
    missing = [f"{row.operator}: {row.why}" for row in rows if row.kind == "none"]
    results = {"snapshot": environment.snapshot(), "operators": [asdict(row) for row in rows]}
    gpu = torch.cuda.get_device_properties(0)
    line = f"{gpu.name}, {gpu.multi_processor_count} SMs, {gpu.total_memory / 2**30:.0f} GiB, torch {torch.__version__}"
    if absent:
        missing.append(f"not installed: {', '.join(absent)}")
    if missing:
        return Outcome(FAILED, "; ".join([line, *missing]), results=results)
    return Outcome(OK, line, results=results)


def tests(place: Place) -> Outcome:
    """tests/gpu/."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "gpu").glob("test_*.py"))
    if not files:
        return Outcome(NOT_RUN, "there is no folder tests/gpu")
    if importlib.util.find_spec("pytest") is None:
        return Outcome(NOT_RUN, "pytest is not installed")
    printed = place.run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *files)
    return Outcome(OK, printed.strip().splitlines()[-1].strip("= "))


def sanitizer() -> str | None:
    """The path of compute-sanitizer; None where it is not found."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [
        f"{home}/{inner}" for home in [*homes, "/usr/local/cuda"] if home for inner in ("bin", "compute-sanitizer")
    ]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *folders]))


def sanitized(tool: str) -> Callable[[Place], Outcome]:
    """Every operator's smallest samples under one tool of compute-sanitizer."""

    def run(place: Place) -> Outcome:
        path = sanitizer()
        if path is None:
            return Outcome(NOT_RUN, "compute-sanitizer is neither on PATH nor in CUDA_HOME")
        options = ["--tool", tool, "--error-exitcode", "9"]
        command = [path, *options, sys.executable, "-m", "benchmarks.gpu.sanitize"]
        # one allocation for each tensor: what lies beyond it is not another's
        printed = place.run(*command, env={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        summary = [line for line in printed.splitlines() if "SUMMARY" in line]
        if not summary:
            return Outcome(FAILED, "it printed no summary")
        return Outcome(OK, summary[-1].strip("= "))

    return run


def benchmark(suite: str, precision: str, *options: str, share: float = 0.6) -> Callable[[Place], Outcome]:
    """A suite of `python -m benchmarks`, which begins no case once `share` of the seconds are spent."""

    def run(place: Place) -> Outcome:
        rows = _rows(place, suite, "--precision", precision, "--budget", f"{share * place.seconds:.0f}", *options)
        measured = [row for row in rows if "speedup" in row]
        different = [f"{row['name']}: {row['failed'][0]}" for row in rows if "failed" in row]
        figures = [_figures(row, precision) for row in measured]
        line = f"{len(measured)} of {len(rows)} cases measured"
        if different:
            return Outcome(FAILED, f"{line}; {'; '.join(different)}", figures, rows)
        return Outcome(OK if measured else FAILED, line, figures, rows)

    return run


def _rows(place: Place, suite: str, *options: str) -> list[dict]:
    file = place.scratch / "result.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks", suite, "--device", "cuda", "--json", str(file), *options]
    try:
        place.run(*command)
    except RuntimeError:
        # 1 says that a result differs: the rows tell which
        if not file.is_file():
            raise
    return json.loads(file.read_text())["rows"]


def _figures(row: dict, precision: str) -> list[str]:
    fused = row["timings"]["fused"]["median"]
    against = [f"{row['speedup'][n]:.2f}" if n in row["speedup"] else "-" for n in ("eager", "compile", "strong")]
    memory = row.get("memory")
    of_eager = f"{memory['fused'] / memory['eager']:.0%}" if memory else ""
    return [row["name"].removesuffix(" channels_last"), precision, f"{fused * 1e6:.0f}", *against, of_eager]


def roofline(place: Place) -> Outcome:
    """Measured launches against predicted ones."""
    from benchmarks.prediction import forecast

    rows = _rows(place, "predict", "--quick", "--precision", "bf16")
    found = forecast.error(rows)
    if found is None:
        return Outcome(FAILED, "nothing was measured", results=rows)
    line = (
        f"{found['launches']} launches: median factor {found['median_factor']:.2f}, worst {found['worst_factor']:.2f}"
    )
    return Outcome(OK, f"measured against predicted, {line}", results={"error": found, "rows": rows})


def training(place: Place) -> Outcome:
    """A real training run of the refiner at the paper's setting."""
    seconds = max(10.0, 0.6 * place.seconds)
    folder = place.scratch / "training"
    folder.mkdir(exist_ok=True)
    printed = place.run(sys.executable, "-m", "benchmarks.gpu.train", str(folder), f"{seconds:.0f}", "bf16")
    found = json.loads(printed.strip().splitlines()[-1])
    shutil.copy(found.pop("samples"), place.out / "samples.png")
    shutil.copy(folder / "run" / "metrics.jsonl", place.out / "metrics.jsonl")
    line = (
        f"{found['images_per_s']:,.0f} images/s over {found['steps']:,} steps, a million steps in "
        f"{found['million_steps_minutes']:.1f} min, {found['peak_memory_mib']:.0f} MiB; {found['loader']}"
    )
    return Outcome(OK, line, results=found)


PARTS = (
    Part("machine", 10, machine),
    Part("GPU tests", 100, tests),
    Part("steps, bf16", 90, benchmark("step", "bf16", "--filter", "64 filters")),
    Part("operators, bf16", 75, benchmark("ops", "bf16", "--quick")),
    Part("training, bf16", 90, training),
    Part("memcheck", 50, sanitized("memcheck")),
    Part("racecheck", 50, sanitized("racecheck")),
    Part("roofline", 40, roofline),
    Part("steps, fp32", 60, benchmark("step", "fp32", "--filter", "64 filters")),
    Part("operators, fp32", 50, benchmark("ops", "fp32", "--quick")),
    # compiling it takes longest: what time is left
    Part("steps, bf16, max-autotune", 120, benchmark("step", "bf16", "--filter", "64 filters", "--autotune")),
)


def run_all(out: Path, parts: tuple[Part, ...] = PARTS, seconds: float = SECONDS) -> list[dict]:
    """Runs the parts in turn, each for its seconds at most and all for `seconds`; prints and returns their rows."""
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="kiln-gpu-") as scratch:
        for part in parts:
            left = seconds - (time.monotonic() - began)
            print(f"{part.name} ...", flush=True)
            started = time.monotonic()
            outcome = _outcome(part, Place(out, Path(scratch), min(part.seconds, left)))
            took = time.monotonic() - started
            rows.append({"part": part.name, "seconds": round(took, 1), **asdict(outcome)})
            print(f"    {outcome.status}, {took:.0f} s: {outcome.line}", flush=True)
    return rows


def _outcome(part: Part, place: Place) -> Outcome:
    """A part's outcome, whatever happens in it."""
    if place.seconds < min(part.seconds, 10):
        return Outcome(NOT_RUN, "no time was left")
    try:
        return part.run(place)
    except Exception as error:  # the other parts are to run
        return Outcome(FAILED, f"{type(error).__name__}: {error}")


def tables(rows: list[dict]) -> list[Table]:
    """What each part came to, and the speed-ups."""
    parts = Table("Parts", [("part", 26), ("status", 8), ("seconds", 7), ("", 100)], left=2)
    speed = Table(
        "Fused on this GPU",
        [("", 60), ("precision", 9), ("fused us", 9), ("eager x", 8), ("compile x", 9), ("strong x", 8), ("memory", 6)],
    )
    for row in rows:
        parts.add([row["part"], row["status"], f"{row['seconds']:.0f}", row["line"]])
        for figures in row["figures"]:
            speed.add(figures)
    return [parts, *([speed] if speed.rows else [])]


def main(argv: list[str]) -> int:
    """0 when no part failed; 1 when one did."""
    if len(argv) != 1 or argv[0].startswith("-"):
        raise InputError("give one folder for the results: python -m benchmarks.gpu OUT (make gpu OUT=folder)")
    if not torch.cuda.is_available():
        raise InputError(
            "torch finds no CUDA device; on a machine without one `make test` and `python -m benchmarks` run"
        )
    out = Path(argv[0]).resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.log").write_text("")
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; name another folder") from None
    began = time.monotonic()
    rows = run_all(out)
    shown = tables(rows)
    print(*shown, sep="\n")
    everything = {"schema": SCHEMA, "commit": commit(), "seconds": round(time.monotonic() - began, 1), "parts": rows}
    atomic_files.write_text(out / "gpu.json", json.dumps(everything, indent=1))
    print(f"\n{everything['seconds']:.0f} s in all; {out / 'gpu.json'}")
    return 1 if any(row["status"] == FAILED for row in rows) else 0


if __name__ == "__main__":
    from engine import cli

    cli.run("benchmarks.gpu", main)
