"""The parts of `python -m benchmarks.gpu`: what each runs, and what it comes to.

Every part is a function of its Place and returns its Outcome. What it runs is a process of its own, ended when the
part's seconds are over.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.checkout import ROOT
from engine import ops
from engine.host import environment
from engine.kernels import _native

PACKAGES = ("triton", "tyro", "tqdm", "safetensors", "PIL", "matplotlib", "jinja2")  # that the parts below import
OK, FAILED, NOT_RUN = "ok", "FAILED", "not run"


@dataclass
class Outcome:
    """What a part came to.

    status:  OK, FAILED or NOT_RUN
    line:    one line about it
    figures: rows for the table of speed-ups
    results: everything for gpu.json
    """

    status: str
    line: str
    figures: list[list[str]] = field(default_factory=list)
    results: object = None


@dataclass(frozen=True)
class Place:
    """Where a part works: the user's folder, a folder that is deleted afterwards, and the seconds that it has."""

    out: Path
    scratch: Path
    seconds: float

    def run(self, *command: str, env: dict[str, str] | None = None) -> str:
        """Runs a command in the root of the checkout; what it prints goes to gpu.log and is returned.

        A command that outlasts `seconds` is ended, with every process that it started. Raises RuntimeError with the
        last printed line if the command fails or is ended.
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
    """A part: its name, the seconds that it may take, and the function that does it."""

    name: str
    seconds: float
    run: Callable[[Place], Outcome]


def machine(place: Place) -> Outcome:
    """The GPU, the versions, and which implementation runs each operator."""
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
    """The tests of tests/gpu/."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "gpu").glob("test_*.py"))
    if not files:
        return Outcome(NOT_RUN, "there is no folder tests/gpu")
    if importlib.util.find_spec("pytest") is None:
        return Outcome(NOT_RUN, "pytest is not installed")
    printed = place.run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *files)
    return Outcome(OK, printed.strip().splitlines()[-1].strip("= "))


def sanitizer() -> str | None:
    """The path of compute-sanitizer; None if there is none."""
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
        # one allocation for each tensor, so that an access beyond its end does not fall into another tensor
        printed = place.run(*command, env={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        summary = [line for line in printed.splitlines() if "SUMMARY" in line]
        if not summary:
            return Outcome(FAILED, "it printed no summary")
        return Outcome(OK, summary[-1].strip("= "))

    return run


def benchmark(suite: str, precision: str, *options: str, share: float = 0.6) -> Callable[[Place], Outcome]:
    """A suite of `python -m benchmarks`, which begins no further case when `share` of the seconds is spent."""

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
        # exit status 1 says that a result differs, and the rows say which
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
    """How far measured launches are from predicted ones."""
    from benchmarks.prediction import forecast  # loads Triton: if that fails, the other parts still run

    rows = _rows(place, "predict", "--quick", "--precision", "bf16")
    error = forecast.error(rows)
    if error is None:
        return Outcome(FAILED, "nothing was measured", results=rows)
    factors = f"median factor {error['median_factor']:.2f}, worst {error['worst_factor']:.2f}"
    line = f"measured against predicted, {error['launches']} launches: {factors}"
    return Outcome(OK, line, results={"error": error, "rows": rows})


def training(place: Place) -> Outcome:
    """A real training run of the refiner at the paper's setting."""
    seconds = max(10.0, 0.6 * place.seconds)
    folder = place.scratch / "training"
    folder.mkdir(exist_ok=True)
    printed = place.run(sys.executable, "-m", "benchmarks.gpu.train", str(folder), f"{seconds:.0f}", "bf16")
    trained = json.loads(printed.strip().splitlines()[-1])
    shutil.copy(trained.pop("samples"), place.out / "samples.png")
    shutil.copy(folder / "run" / "metrics.jsonl", place.out / "metrics.jsonl")
    line = (
        f"{trained['images_per_s']:,.0f} images/s over {trained['steps']:,} steps, a million steps in "
        f"{trained['million_steps_minutes']:.1f} min, {trained['peak_memory_mib']:.0f} MiB; {trained['loader']}"
    )
    return Outcome(OK, line, results=trained)
