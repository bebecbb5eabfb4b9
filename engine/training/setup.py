"""Prepares a run: its folder, the settings of this process, its image sets and its loaders."""

import contextlib
from collections.abc import Iterator, Sequence
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
from engine.training import random_state, run_lock
from engine.training.fused_share import fused_share


def image_sets(config: TrainConfig) -> list[tuple[Path | None, Needs]]:
    """The path of each image set of a configuration (None: the embedded avatars), and what the system needs of it."""
    paths = (config.data, getattr(config, "synthetic", None))
    return list(zip(paths, system_class(config.system).needs(config), strict=False))


def open_set(config: TrainConfig, path: Path | None, need: Needs, *, held: bool = False) -> ImageSet:
    """Open the images of a set that the system can use. Raises InputError when there are none.

    held: those that it is measured on, not those that it trains on
    """
    shape = {"channels": config.channels, "resolution": config.resolution}
    # splits are those of --data
    part = config.images(held=held) if path == config.data else {"hold_out": config.hold_out, "held": held}
    return open_dataset(path, **shape, points=need.points, members=need.members, look=need.look, **part)


def require_same_data(datasets: Sequence[ImageSet]) -> None:
    """Raise a SharedError, which names the set and the ranks, unless all ranks have opened the same images.

    Names, contents, landmarks, clips and pairs are compared, of the images that are used.
    """
    for images in datasets:
        distributed.require_alike(
            f"{len(images):,} images in the data set {images.name} (digest {images.digest[:12]})",
            f"give all machines the same files in {images.root}",
        )


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
            geometry=config.augment_geometry,
            light=config.augment_light,
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
    """One line for the terminal that says how steps run, and the share of a fused step that is Kiln's."""
    operators = f"fused operators ({fused_share(config)})" if config.fused else "plain PyTorch (eager)"
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


def contents(run_dir: Path) -> set[str]:
    """The names in a run folder, without what a killed process leaves; empty where there is no folder."""
    return set(atomic_files.contents(run_dir)) - {run_lock.FILE}


@contextlib.contextmanager
def claimed_folder(config: TrainConfig) -> Iterator[checkpoint.Checkpoint | None]:
    """The run folder for this process alone; yields the checkpoint to go on from, None to start.

    Raises InputError for a folder of something else, one in which another process trains, and one that cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            if (config.out / run_lock.FILE).exists():
                with run_lock.locked(config.out):
                    pass  # a process that trains there is named, whatever else speaks against the folder
            _newest(config)  # a folder of something else is refused before anything is written there
            stack.enter_context(run_lock.locked(config.out))
        except OSError as error:
            raise _cannot_write(config.out, error) from None
        yield prepare_folder(config)


def prepare_folder(config: TrainConfig) -> checkpoint.Checkpoint | None:
    """Check and create the run folder; returns the checkpoint to go on from, None to start. Raises InputError."""
    try:
        newest = _newest(config)
        start = None if newest is None else checkpoint.load(newest)
        config.out.mkdir(parents=True, exist_ok=True)
        for folder in (config.out, config.out / checkpoint.FOLDER, config.out / "samples"):
            atomic_files.sweep(folder)
    except OSError as error:
        raise _cannot_write(config.out, error) from None
    if config.resume and start is None:
        print(f"no checkpoint in {config.out} yet: starting at step 0")
    return start


def _newest(config: TrainConfig) -> Path | None:
    """The checkpoint to go on from, None to start. Raises InputError where --out is no place for this run."""
    out = config.out
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    content = contents(out)
    if not config.resume:
        if content:
            torchrun.unmark(out)
            raise InputError(f"{out} is not empty; go on with --resume, or choose another --out")
        return None
    newest = checkpoint.latest(out, tell=False)  # engine.training.resolve has named the damaged ones
    if newest is None and content and "config.json" not in content:
        raise InputError(f"{out} is not the folder of a run; choose another --out")
    return newest


def _cannot_write(out: Path, error: OSError) -> InputError:
    return InputError(f"cannot write to {out}: {error.strerror}; choose another --out")
