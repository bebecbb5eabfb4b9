"""The options of `python -m benchmarks SUITE`, and the checks of whether they fit together."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from benchmarks import catalogue
from engine import ops
from engine.errors import InputError
from engine.host import environment

LEAST_ROUNDS = 10
BF16_FLAGS = ("avx512_bf16", "amx_bf16")  # of processors that multiply numbers in bfloat16
_MEASURES = "; ".join(f"{suite.name}: {suite.measures}" for suite in catalogue.SUITES.values())
_ON_CUDA = " and ".join(suite.name for suite in catalogue.chosen(catalogue.ALL, "cuda"))
_MEASURES += f"; {catalogue.ALL}: everything that is timed (with --device cuda {_ON_CUDA})."
_QUICK = "Minutes instead of hours. " + "; ".join(f"{s.name}: {s.quick}" for s in catalogue.SUITES.values()) + "."


@dataclass(frozen=True)
class Arguments:
    """Options of the benchmark."""

    suite: Annotated[
        Literal[catalogue.NAMES],  # a tuple is the same as its elements
        tyro.conf.Positional,
        tyro.conf.arg(help=_MEASURES),
    ] = catalogue.ALL
    filter: str = ""
    """Only cases whose name contains this text."""
    quick: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help=_QUICK)] = False
    json: Path | None = None
    """Write every sample to this file, with machine, versions and commit."""
    rows: Path | None = None
    """Append each row to this file as JSON as soon as it is measured, so that a run that is ended keeps its rows."""
    markdown: Path | None = None
    """Write the tables to this file."""
    html: Path | None = None
    """Write a page with figures to this file."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to measure."""
    precision: Literal["fp32", "tf32", "bf16"] | None = None
    """Arithmetic of every competitor; default fp32, for predict bf16. tf32 and bf16 need cuda or predict."""
    gpu: Literal["a100", "h100", "h200", "b200"] = "h100"
    """The GPU to predict for, without --device cuda."""
    autotune: tyro.conf.FlagCreatePairsOff[bool] = False
    """On cuda: also torch.compile in mode max-autotune, which takes minutes for each step and long for each shape."""
    budget: float = float("inf")
    """Seconds after which no further case begins (in scaling and profile: all begin); cases left out are named."""
    rounds: int = LEAST_ROUNDS
    """Interleaved rounds, at the least; medians and quartiles are over them."""
    threads: int = 0
    """CPU threads; 0 = PyTorch's own choice."""

    @property
    def can_compile(self) -> bool:
        """Whether torch.compile can build CPU code here, and with it the baseline `compile`."""
        return bool(shutil.which("g++") or shutil.which("clang++"))

    @property
    def bf16_beside(self) -> bool:
        """Whether baselines compete in bfloat16 too: on a CPU that multiplies such numbers people would use them."""
        return self.device == "cpu" and any(flag in environment.cpu()["flags"] for flag in BF16_FLAGS)

    @property
    def suites(self) -> list[catalogue.Suite]:
        """The suites that are to run."""
        return catalogue.chosen(self.suite, self.device)


def check(arguments: Arguments) -> None:
    """Raises InputError with what to do when the arguments do not fit."""
    if arguments.rounds < LEAST_ROUNDS:
        raise InputError(f"--rounds must be at least {LEAST_ROUNDS}: medians of fewer say little")
    if arguments.device == "cuda":
        if not torch.cuda.is_available():
            raise InputError("no CUDA device here; use --device cpu")
        ops.require("cuda")
    timed = any(suite.stopwatch for suite in arguments.suites)
    precision = arguments.precision or "fp32"
    cuda_alone = {"--autotune": arguments.autotune, f"--precision {precision}": precision != "fp32"}
    for option, given in cuda_alone.items():
        if given and arguments.device != "cuda" and timed:
            raise InputError(f"{option} needs --device cuda")
    for suite in arguments.suites:
        if precision != "fp32" and not suite.precisions:
            raise InputError(f"{suite.name} is measured in fp32 alone; leave --precision {precision} out")
        if arguments.device not in suite.devices:
            raise InputError(f"{suite.name} is measured on the CPU alone; leave --device cuda out")
    if arguments.html and not timed:
        raise InputError(f"{arguments.suite} has no page; leave --html out, or give --markdown")
    files = {
        "--json": arguments.json,
        "--rows": arguments.rows,
        "--markdown": arguments.markdown,
        "--html": arguments.html,
    }
    for option, path in files.items():
        if path and not path.parent.is_dir():
            raise InputError(f"{path.parent} is not a folder; create it or give {option} another")
