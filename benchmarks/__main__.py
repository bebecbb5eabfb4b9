"""`python -m benchmarks [ops|step|all]`: fused against eager PyTorch on this machine, equivalence first."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tqdm import tqdm

from benchmarks import operators, step
from benchmarks.measure import Timing, copy_bandwidth, sgemm_rate
from engine import atomic, cli, environment
from engine.errors import InputError

SCHEMA = 1


@dataclass(frozen=True)
class Arguments:
    """Options of the benchmark."""

    suite: Annotated[Literal["ops", "step", "all"], tyro.conf.Positional] = "all"
    """Operators, whole training steps, or both."""
    filter: str = ""
    """Only cases whose name contains this text."""
    json: Path | None = None
    """Write every sample to this file, with machine, versions and commit."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to measure."""
    rounds: int = 10
    """Interleaved rounds; medians are over them."""
    threads: int = 0
    """CPU threads; 0 = PyTorch's own choice."""


def row(name: str, timings: dict[str, Timing], failed: list[str]) -> dict[str, object]:
    """One line of the result; without speed where the equivalence check failed."""
    if failed:
        return {"name": name, "failed": failed}
    eager = min((t for n, t in timings.items() if n.startswith("eager")), key=lambda t: t.median)
    return {
        "name": name,
        "speedup": eager.median / timings["fused"].median,
        "timings": {n: t.to_json() for n, t in timings.items()},
    }


def line(entry: dict) -> str:
    """A row for the terminal."""
    if "failed" in entry:
        return f"{entry['name']:<58}  DIFFERENT: {entry['failed'][0]}"
    medians = {name: t["median"] for name, t in entry["timings"].items()}
    fused, eager = medians["fused"], min(v for n, v in medians.items() if n.startswith("eager"))
    low, high = entry["timings"]["fused"]["quartiles"]
    text = f"{entry['name']:<58} {fused * 1e3:10.2f} {eager * 1e3:10.2f} {entry['speedup']:7.2f}x"
    text += f"  quartiles {low * 1e3:.2f} .. {high * 1e3:.2f}"
    if "flops" in entry:
        text += f"  {entry['flops'] / fused / 1e9:6.0f} GFLOP/s as written"
    if "memory" in entry:
        text += f"  peak {entry['memory']['fused'] / 2**20:.0f} MiB against {entry['memory']['eager'] / 2**20:.0f}"
    return text


def commit() -> str | None:
    """The checkout's commit, with + where it has changes; None outside one."""
    here = Path(__file__).parent
    try:
        name = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.stdout.strip() + "+" * bool(dirty.stdout.strip())


def run_operators(arguments: Arguments) -> list[dict]:
    """The rows of the ops suite."""
    rows = []
    cases = list(operators.cases(arguments.filter))
    for spec, sample in tqdm(cases, desc="operators", leave=False):
        timings, failed = operators.measure(spec, sample, arguments.device, arguments.rounds)
        entry = row(f"{spec.operator} {sample.name}", timings, failed)
        rows.append(entry | {"flops": spec.flops(sample), "bytes": spec.bytes(sample, torch.float32)})
        tqdm.write(line(rows[-1]))
    return rows


def run_steps(arguments: Arguments) -> list[dict]:
    """The rows of the step suite, with peak memory."""
    rows = []
    for name, setting in step.SETTINGS.items():
        if arguments.filter not in name:
            continue
        with tqdm(total=arguments.rounds, desc=name, leave=False) as bar:
            timings, failed = step.measure(setting, arguments.device, arguments.rounds, lambda _, bar=bar: bar.update())
        entry = row(name, timings, failed)
        if not failed:
            peaks = {n: step.peak_memory(n, setting, arguments.device) for n in step.COMPETITORS}
            entry["memory"] = {"fused": peaks["fused"], "eager": min(v for n, v in peaks.items() if n != "fused")}
        rows.append(entry)
        tqdm.write(line(entry))
    return rows


def main(argv: list[str]) -> int:
    """Measures, prints and saves. Returns 1 when a result differs from the reference."""
    arguments = cli.parse(Arguments, argv, prog="python -m benchmarks", description=__doc__)
    if arguments.rounds < 2:
        raise InputError("--rounds must be at least 2")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device here; use --device cpu")
    if arguments.json and not arguments.json.parent.is_dir():
        raise InputError(f"{arguments.json.parent} is not a folder; create it or write the JSON elsewhere")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    limits = {"sgemm_flops": sgemm_rate(), "copy_bytes_per_s": copy_bandwidth()}
    print(
        f"{torch.get_num_threads()} threads, sgemm {limits['sgemm_flops'] / 1e9:.0f} GFLOP/s, "
        f"copy {limits['copy_bytes_per_s'] / 1e9:.1f} GB/s\n\n"
        f"{'forward + backward, or a whole step':<58} {'fused ms':>10} {'eager ms':>10} {'speed-up':>8}"
    )
    rows = run_operators(arguments) if arguments.suite in ("ops", "all") else []
    rows += run_steps(arguments) if arguments.suite in ("step", "all") else []
    if not rows:
        raise InputError(f"no case contains {arguments.filter!r}")
    if arguments.json:
        result = {"schema": SCHEMA, "commit": commit(), "threads": torch.get_num_threads(), "limits": limits}
        atomic.write_text(
            arguments.json, json.dumps(result | {"machine": environment.snapshot(), "rows": rows}, indent=1)
        )
    return 1 if any("failed" in entry for entry in rows) else 0


if __name__ == "__main__":
    cli.run("benchmarks", main)
