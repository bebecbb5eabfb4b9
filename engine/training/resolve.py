"""Turns a command line into the complete configuration of a run.

A value of the command line wins over that of the checkpoint (with --resume) or of the model (with --init), which wins
over that of the preset, which wins over the default.
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
from engine.training import initial


def resolve(argv: Sequence[str]) -> tuple[TrainConfig, Origins]:
    """The configuration of a command line, complete and checked, and the origin of each value.

    An origin is "default", "preset quick", "preset paper", "init", "checkpoint", "launcher" or "command line". With
    --resume, and after a restart by torchrun, the newest good checkpoint of --out is read. Raises InputError for wrong
    usage.
    """
    out = _word(argv, "out")
    if out is not None and "--resume" not in argv and torchrun.restarted(Path(out)):
        argv = [*argv, "--resume"]
    kind, saved, model = _beginning(argv)
    parsed = parse(kind, argv, prog="kiln train", description=_description(kind))
    fields = [f.name for f in dataclasses.fields(kind)]
    of_checkpoint = saved_fields(kind)
    given = _given(argv, fields)
    config, origins = kind(), dict.fromkeys(fields, "default")
    preset = parsed.preset if saved is None or "preset" in given else saved.preset
    config = dataclasses.replace(config, preset=preset, **kind.PRESETS[preset])
    origins |= dict.fromkeys(kind.PRESETS[preset], f"preset {preset}")
    if saved is not None:
        config = dataclasses.replace(
            saved, **{name: getattr(config, name) for name in fields if name not in of_checkpoint}
        )
        origins |= dict.fromkeys(of_checkpoint, "checkpoint")
    if model is not None:
        config = initial.adopt(config, model, given, origins)
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
    if model is not None:
        initial.check(config, model)
    return config, origins


def _beginning(argv: Sequence[str]) -> tuple[type[TrainConfig], TrainConfig | None, TrainConfig | None]:
    """The configuration class of a command line's system, and what the run begins with.

    returns: the class; the configuration of the checkpoint that --resume reads; that of the model of --init, which a
             resumed run needs no more
    The system is --system, else that of the checkpoint or the model, else the refiner. Raises InputError where they
    contradict.
    """
    system, out = _word(argv, "system"), _word(argv, "out")
    asks_for_help = {"-h", "--help"} & set(argv)
    saved = model = None
    if "--resume" in argv and not asks_for_help:
        if out is None:
            raise InputError("--resume needs the run folder: add --out RUN")
        saved = _saved_config(Path(out))
    if saved is not None and system not in (None, saved.system):
        raise InputError(f"the run in {out} is of --system {saved.system}, which cannot become {system}")
    if saved is None and (name := _word(argv, "init")) and not asks_for_help:
        model = initial.read_config(name)
    begins = saved or model
    return config_class(system or (begins.system if begins else DEFAULT_SYSTEM)), saved, model


def _word(argv: Sequence[str], option: str) -> str | None:
    """The value of --option in a command line that tyro has not parsed yet, or None."""
    for word, following in zip(argv, [*argv[1:], None], strict=False):
        if word == f"--{option}":
            return following
        if word.startswith(f"--{option}="):
            return word.split("=", 1)[1]
    return None


def _given(argv: Sequence[str], fields: Sequence[str]) -> set[str]:
    """The fields that the command line names, as --name or --no-name."""
    words = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}
    return {name for name in fields if name in words or f"no_{name}" in words}


def _saved_config(out: Path) -> TrainConfig | None:
    """The configuration of the newest good checkpoint of a run folder, or None."""
    newest = checkpoint.latest(out)
    return None if newest is None else checkpoint.read_config(newest)


def _choose_mode(config: TrainConfig, given: set[str], origins: Origins) -> TrainConfig:
    """The configuration with `fused` and `eager` set. Raises InputError unless exactly one of them is chosen."""
    if {"fused", "eager"} <= given:
        raise InputError("--fused and --eager exclude each other; give one")
    if not {"fused", "eager"} & given and origins["fused"] != "checkpoint":
        raise InputError("say how to train: --fused (Kiln's operators) or --eager (plain PyTorch)")
    if "eager" in given:
        origins["fused"] = "command line"
        return dataclasses.replace(config, fused=False)
    return dataclasses.replace(config, eager=not config.fused)


def _count_ranks(config: TrainConfig, origins: Origins) -> TrainConfig:
    """The configuration with the number of ranks that torchrun started.

    When a checkpoint had another number of ranks, the threads of each rank are chosen anew, because they share the
    cores with another number of ranks; --threads of the command line stays.
    """
    if (ranks := torchrun.size()) == config.ranks:
        return config
    origins["ranks"] = "launcher"
    threads = config.threads if origins["threads"] == "command line" else 0
    return dataclasses.replace(config, ranks=ranks, threads=threads)


def _fill(config: TrainConfig) -> TrainConfig:
    """The configuration with the values that depend on the machine and the time filled in."""
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    # torchrun sets OMP_NUM_THREADS=1 on every machine, so torch's number of threads says nothing under it
    threads = config.threads or (torchrun.cores() if torchrun.local_size() > 1 else torch.get_num_threads())
    if config.out is None and torchrun.may_restart():
        raise InputError("torchrun may start this run again (--max-restarts): add --out RUN, so that it goes on")
    out = config.out or Path("runs") / f"{config.system}-{time.strftime('%Y%m%d-%H%M%S')}"
    return dataclasses.replace(config, device=device, threads=threads, out=out)


def _description(kind: type[TrainConfig]) -> str:
    """The head of `kiln train --help`: what the command does, the systems, the presets."""
    head = f"Train a system on a folder of images. Systems: {', '.join(SYSTEMS)} (--system S --help for its options)."
    presets = (
        f"--preset {name}: {', '.join(f'{field} {show(value)}' for field, value in values.items())}."
        for name, values in kind.PRESETS.items()
    )
    return "\n\n".join([head, *presets])
