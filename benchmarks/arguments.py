"""The options of `python -m benchmarks`, and whether they fit."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from engine.errors import InputError

LEAST_ROUNDS = 10
WITHOUT_PAGE = ("compiled", "predict")


@dataclass(frozen=True)
class Arguments:
    """Options of the benchmark."""

    suite: Annotated[
        Literal[
            "ops",
            "step",
            "systems",
            "latency",
            "loading",
            "scaling",
            "profile",
            "fuse",
            "all",
            "compiled",
            "predict",
        ],
        tyro.conf.Positional,
    ] = "all"
    """Operators; whole training steps of the refiner; those of the other systems; one image through a trained refiner;
    the loaders of pictures; the first two at 1 to all threads; where a fused step's time goes on the CPU; models that
    engine.fuse rewrites; or all of these. compiled: GPU kernels ahead of time; predict: their times by a roofline, with
    cuda also measured."""
    filter: str = ""
    """Only cases whose name contains this text."""
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    """A few operator shapes, the small step, and systems at 32x32 uncompiled: minutes. For compiled: what the tests
    compile."""
    json: Path | None = None
    """Write every sample to this file, with machine, versions and commit."""
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
    """Seconds after which no further case of ops or step is begun; those left out are named."""
    rounds: int = LEAST_ROUNDS
    """Interleaved rounds, at the least; medians and quartiles are over them."""
    threads: int = 0
    """CPU threads; 0 = PyTorch's own choice."""

    @property
    def can_compile(self) -> bool:
        """Whether torch.compile can build CPU code here."""
        return bool(shutil.which("g++") or shutil.which("clang++"))


def check(arguments: Arguments) -> None:
    """Raises InputError with what to do when the arguments do not fit."""
    if arguments.rounds < LEAST_ROUNDS:
        raise InputError(f"--rounds must be at least {LEAST_ROUNDS}: medians of fewer say little")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device here; use --device cpu")
    cuda_alone = {"--autotune": arguments.autotune, "--precision": (arguments.precision or "fp32") != "fp32"}
    for option, given in cuda_alone.items():
        if given and arguments.device != "cuda" and arguments.suite != "predict":
            raise InputError(f"{option} {arguments.precision if option == '--precision' else ''}".rstrip()
                             + " needs --device cuda")  # fmt: skip
    if arguments.device == "cuda" and arguments.suite in ("loading", "scaling", "profile", "fuse"):
        raise InputError(f"{arguments.suite} is measured on the CPU alone; leave --device cuda out")
    if arguments.html and arguments.suite in WITHOUT_PAGE:
        raise InputError(f"{arguments.suite} has no page; leave --html out, or give --markdown")
    files = {"--json": arguments.json, "--markdown": arguments.markdown, "--html": arguments.html}
    for option, path in files.items():
        if path and not path.parent.is_dir():
            raise InputError(f"{path.parent} is not a folder; create it or give {option} another")
