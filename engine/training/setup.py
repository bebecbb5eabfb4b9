"""Prepares a run: its folder, the settings of this process, its image sets and its loaders."""

from collections.abc import Sequence
from pathlib import Path

import torch

from engine import checkpoint, distributed, ops
from engine.config import TrainConfig
from engine.data import ImageSet, Loader, Needs, Together, open_dataset, open_loader
from engine.distributed import torchrun
from engine.errors import InputError
from engine.host import allocator, atomic_files
from engine.host.tf32 import allow_tf32
from engine.systems.registry import system_class
from engine.training import random_state


def image_sets(config: TrainConfig) -> list[tuple[Path | None, Needs]]:
    """The path of each image set of a configuration (None: the embedded avatars), and what the system needs of it."""
    paths = (config.data, getattr(config, "synthetic", None))
    return list(zip(paths, system_class(config.system).needs(config), strict=False))


def open_set(config: TrainConfig, path: Path | None, need: Needs) -> ImageSet:
    """Open the images of a set that the system can use. Raises InputError when there are none."""
    shape = {"channels": config.channels, "resolution": config.resolution}
    split = config.split if path == config.data else ""
    return open_dataset(path, **shape, points=need.points, members=need.members, split=split, look=need.look)


def open_loaders(config: TrainConfig, datasets: Sequence[ImageSet], device: torch.device) -> Loader | Together:
    """Open the loader of this rank's batches.

    config: that of the rank (TrainConfig.of_rank). Raises InputError for sets that are too small.
    """
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
            seed=config.seed + (number << 32),  # each set is shuffled by its own seed
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
    """Raise InputError where --fused cannot run an operator of the networks on this machine: it never falls back."""
    if not config.fused:
        return
    try:
        ops.require(config.device, ops.picked)
    except InputError as error:
        raise InputError(f"--fused: {error}") from None


def mode(config: TrainConfig) -> str:
    """One line for the terminal that says how steps run."""
    operators = "fused operators" if config.fused else "plain PyTorch (eager)"
    launches = ""
    if config.device == "cuda":
        launches = ", each step one CUDA graph" if config.cuda_graph else ", launched kernel by kernel"
    ranks = f", {config.ranks} ranks of {config.batch_size // config.ranks} images a step" if config.ranks > 1 else ""
    return f"{operators}, {config.precision}, {config.device}{launches}{ranks}"


def set_machine(config: TrainConfig) -> None:
    """Set the threads, memory, precision and seeds of this process."""
    torch.set_num_threads(config.threads)
    if config.device == "cpu":
        allocator.keep_freed_memory()
    allow_tf32(config.precision == "tf32")
    random_state.seed_all(config.seed)


def prepare_folder(config: TrainConfig) -> checkpoint.Checkpoint | None:
    """Check and create the run folder; returns the checkpoint to go on from, None to start. Raises InputError."""
    out = config.out
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"--out {out} is a file; name a folder")
        content = set(atomic_files.contents(out))
        if content and not config.resume:
            torchrun.unmark(out)
            raise InputError(f"{out} is not empty; go on with --resume, or choose another --out")
        start = None
        if config.resume:
            newest = checkpoint.latest(out, tell=False)  # engine.training.resolve has named the damaged ones
            if newest is not None:
                start = checkpoint.load(newest)
            elif content and "config.json" not in content:
                raise InputError(f"{out} is not the folder of a run; choose another --out")
            else:
                print(f"no checkpoint in {out} yet: starting at step 0")
        out.mkdir(parents=True, exist_ok=True)
        return start
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
