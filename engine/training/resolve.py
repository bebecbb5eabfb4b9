"""From a command line to the complete configuration of a run.

Precedence: default < preset < checkpoint (with --resume) < command line.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from engine import checkpoint
from engine.cli import parse
from engine.config import DEFAULT_SYSTEM, Origins, TrainConfig, saved_fields, show
from engine.distributed import torchrun
from engine.errors import InputError
from engine.systems.registry import SYSTEMS, config_class


def resolve(argv: Sequence[str]) -> tuple[TrainConfig, Origins]:
    """The configuration of a command line, complete and checked, and the origin of each value.

    origins: "default", "preset quick", "preset paper", "checkpoint", "launcher" or "command line".
    Raises InputError for wrong usage. With --resume, and after a restart by the launcher, the
    newest good checkpoint of --out is read.
    """
    out = _word(argv, "out")
    if out is not None and "--resume" not in argv and torchrun.restarted(Path(out)):
        argv = [*argv, "--resume"]
    kind, saved = _class_and_saved(argv)
    parsed = parse(kind, argv, prog="kiln train", description=_description(kind))
    fields = [f.name for f in dataclasses.fields(kind)]
    kept = saved_fields(kind)
    given = _given(argv, fields)
    config, origins = kind(), dict.fromkeys(fields, "default")
    preset = parsed.preset if saved is None or "preset" in given else saved.preset
    config = dataclasses.replace(config, preset=preset, **kind.PRESETS[preset])
    origins |= dict.fromkeys(kind.PRESETS[preset], f"preset {preset}")
    if saved is not None:
        config = dataclasses.replace(saved, **{name: getattr(config, name) for name in fields if name not in kept})
        origins |= dict.fromkeys(kept, "checkpoint")
    config = dataclasses.replace(config, **{name: getattr(parsed, name) for name in given})
    origins |= dict.fromkeys(given, "command line")
    config = _count_ranks(config, origins)
    config = _choose_mode(config, given, origins).completed(given, origins)
    config = _fill(config)
    config.check()
    if "cuda_graph" in given and config.cuda_graph and config.device != "cuda":
        raise InputError("--cuda-graph needs an NVIDIA GPU: add --device cuda, or leave it out")
    if saved is not None:
        config.check_resumed(saved)
    return config, origins


def _class_and_saved(argv: Sequence[str]) -> tuple[type[TrainConfig], TrainConfig | None]:
    """The class that a command line is parsed with, and the configuration of the checkpoint that --resume goes on from.

    The system is --system, else that of the checkpoint, else the refiner.
    """
    system, out = _word(argv, "system"), _word(argv, "out")
    asking = {"-h", "--help"} & set(argv)
    saved = None
    if "--resume" in argv and not asking:
        if out is None:
            raise InputError("--resume needs the run folder: add --out RUN")
        saved = _saved_config(Path(out))
    if saved is not None and system not in (None, saved.system):
        raise InputError(f"the run in {out} is of --system {saved.system}, which cannot become {system}")
    return config_class(system or (saved.system if saved else DEFAULT_SYSTEM)), saved


def _word(argv: Sequence[str], option: str) -> str | None:
    """The value of --option in a command line that is not parsed yet."""
    for word, following in zip(argv, [*argv[1:], None], strict=False):
        if word == f"--{option}":
            return following
        if word.startswith(f"--{option}="):
            return word.split("=", 1)[1]
    return None


def _given(argv: Sequence[str], fields: Sequence[str]) -> set[str]:
    """The fields named on the command line."""
    words = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}
    return {name for name in fields if name in words or f"no_{name}" in words}


def _saved_config(out: Path) -> TrainConfig | None:
    newest = checkpoint.latest(out)
    return None if newest is None else checkpoint.read_config(newest)


def _choose_mode(config: TrainConfig, given: set[str], origins: Origins) -> TrainConfig:
    if {"fused", "eager"} <= given:
        raise InputError("--fused and --eager exclude each other; give one")
    if not {"fused", "eager"} & given and origins["fused"] != "checkpoint":
        raise InputError("say how to train: --fused (Kiln's operators) or --eager (plain PyTorch)")
    if "eager" in given:
        origins["fused"] = "command line"
        return dataclasses.replace(config, fused=False)
    return dataclasses.replace(config, eager=not config.fused)


def _count_ranks(config: TrainConfig, origins: Origins) -> TrainConfig:
    """With as many ranks as there are; threads that another number of ranks shared the cores among are chosen anew."""
    if (ranks := torchrun.size()) == config.ranks:
        return config
    origins["ranks"] = "launcher"
    threads = config.threads if origins["threads"] == "command line" else 0
    return dataclasses.replace(config, ranks=ranks, threads=threads)


def _fill(config: TrainConfig) -> TrainConfig:
    """Replace the values that depend on the machine by what they mean here."""
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    # a launcher sets OMP_NUM_THREADS=1, whatever the machine
    threads = config.threads or (torchrun.cores() if torchrun.local_size() > 1 else torch.get_num_threads())
    if config.out is None and torchrun.may_restart():
        raise InputError("torchrun may start this run again (--max-restarts): add --out RUN, so that it goes on")
    out = config.out or Path("runs") / f"{config.system}-{time.strftime('%Y%m%d-%H%M%S')}"
    return dataclasses.replace(config, device=device, threads=threads, out=out)


def _description(kind: type[TrainConfig]) -> str:
    head = f"Train a system on a folder of images. Systems: {', '.join(SYSTEMS)} (--system S --help for its options)."
    presets = (
        f"--preset {name}: {', '.join(f'{field} {show(value)}' for field, value in values.items())}."
        for name, values in kind.PRESETS.items()
    )
    return "\n\n".join([head, *presets])
