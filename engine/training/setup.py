"""What a run needs before its first step: its folder, this process's settings, image sets and loaders."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine import checkpoint, distributed
from engine.config import TrainConfig
from engine.distributed import torchrun
from engine.errors import InputError
from engine.host import allocator
from engine.networks.layers import OPERATORS
from engine.systems.registry import system_class
from engine.training import random_state

if TYPE_CHECKING:
    from engine.data import ImageSet, Loader, Needs, Together


def image_sets(config: TrainConfig) -> list[tuple[Path | None, "Needs"]]:
    """Where the image sets of a configuration are (None: embedded), and what its system needs of them."""
    paths = (config.data, getattr(config, "synthetic", None))
    return list(zip(paths, system_class(config.system).needs(config), strict=False))


def open_set(config: TrainConfig, path: Path | None, need: "Needs") -> "ImageSet":
    """The images of a set that can be used. Raises InputError when there is none."""
    from engine.data import open_dataset

    shape = {"channels": config.channels, "resolution": config.resolution}
    split = config.split if path == config.data else ""
    return open_dataset(path, **shape, points=need.points, members=need.members, split=split, look=need.look)


def open_loaders(config: TrainConfig, datasets: Sequence["ImageSet"], device: torch.device) -> "Loader | Together":
    """What gives this rank's system its batches; config: of_rank. Raises InputError for sets that are too small."""
    from engine.data import Together, open_loader

    loaders = [
        open_loader(
            dataset,
            batch_size=need.samples,
            batches=need.batches,
            rank=distributed.rank(),
            world_size=distributed.size(),
            members=need.members,
            resolution=config.resolution,
            channels=config.channels,
            device=device,
            seed=config.seed + (number << 32),  # each set has an order of its own
            mirror=config.mirror,
            mirror_swap=config.mirror_swap,
            crop=config.crop,
            loader=config.loader,
            fused=config.fused,
        )
        for number, (dataset, (_, need)) in enumerate(zip(datasets, image_sets(config), strict=True))
    ]
    return loaders[0] if len(loaders) == 1 else Together(loaders)


def require_fused(config: TrainConfig) -> None:
    """--fused never falls back: raise InputError when an operator of the networks has no implementation here."""
    if not config.fused:
        return
    from engine import ops

    missing = [row for row in ops.explain() if row.device == config.device and row.kind == "none"]
    for row in missing:
        if row.operator in OPERATORS:
            raise InputError(f"--fused: {row.operator} cannot run on {config.device}: {row.why}")


def mode(config: TrainConfig) -> str:
    """How steps run, for the terminal."""
    operators = "fused operators" if config.fused else "plain PyTorch (eager)"
    launches = ""
    if config.device == "cuda":
        launches = ", each step one CUDA graph" if config.cuda_graph else ", launched kernel by kernel"
    ranks = f", {config.ranks} ranks of {config.batch_size // config.ranks} images a step" if config.ranks > 1 else ""
    return f"{operators}, {config.precision}, {config.device}{launches}{ranks}"


def set_machine(config: TrainConfig) -> None:
    """Threads, memory, precision and seeds of this process."""
    torch.set_num_threads(config.threads)
    if config.device == "cpu":
        allocator.keep_freed_memory()
    tf32 = config.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    random_state.seed_all(config.seed)


def prepare_folder(config: TrainConfig) -> checkpoint.Checkpoint | None:
    """Check and create the run folder; the checkpoint to go on from, if any. Raises InputError."""
    out = config.out
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"--out {out} is a file; name a folder")
        names = {path.name for path in out.iterdir()} if out.exists() else set()
        content = {name for name in names if not name.startswith(".writing-")}  # left by a kill
        if content and not config.resume:
            torchrun.unmark(out)
            raise InputError(f"{out} is not empty; go on with --resume, or choose another --out")
        start = None
        if config.resume:
            found = checkpoint.latest(out, tell=False)  # told when the configuration was resolved
            if found is not None:
                start = checkpoint.load(found)
            elif content and "config.json" not in content:
                raise InputError(f"{out} is not the folder of a run; choose another --out")
            else:
                print(f"no checkpoint in {out} yet: starting at step 0")
        out.mkdir(parents=True, exist_ok=True)
        return start
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
