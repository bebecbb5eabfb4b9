"""What two ranks do for tests/distributed/test_distributed.py: `torchrun ... -m tests.support.ranks_worker FOLDER`.

Each rank leaves what it found in FOLDER/rank0.json and rank1.json. Without DALI it leaves the pictures there alone.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from engine import cli, distributed, train
from engine.config import TrainConfig
from engine.data import Batch, ImageSet, Loader, open_dataset, open_loader
from engine.distributed import group
from engine.distributed.gradients import GradientBucket
from engine.errors import InputError, SharedError
from engine.systems.registry import SYSTEMS, build
from engine.training import loop, report
from engine.version import __version__
from tests.support.packages import installed
from tests.support.training_fakes import batch_of, tiny_config

STEPS = 10  # more than fill the image pools
# options with which a loss looks at the whole batch, or draws random numbers for it
VARIANTS = {
    "refiner": ("--landmarks", "--landmark-weight", "0.5"),
    "refiner critic": ("--critic-weight", "0.1", "--critic-filters", "8", "--critic-pack", "2", "--correct"),
    "began critic": (
        "--critic-weight",
        "0.1",
        "--critic-filters",
        "8",
        "--critic-sees",
        "whole",
        "--augment-judged",
        "0.5",
    ),
    "simgan": ("--cycle-weight", "1", "--part-weight", "1", "--history", "16"),
    "cyclegan": ("--pool", "6"),
    "wgan penalty": ("--gradient-penalty", "10", "--critic-steps", "2"),
    "reenact dropout": ("--dropout",),
}
CASES = {f"{name} {mode}": (name.split()[0], mode, flags) for mode in ("--fused", "--eager")
         for name, flags in ({name: () for name in SYSTEMS} | VARIANTS).items()}  # fmt: skip
TRAINING = ("--fused", "--filters", "2", "--resolution", "16", "--batch-size", "6", "--steps", "30", "--log-every", "3",
            "--checkpoint-every", "10", "--sample-every", "10", "--threads", "1", "--crop", "random",
            "--lambda-k", "0.1", "--critic-weight", "0", "--keep", "9")  # fmt: skip


def configure(case: str) -> TrainConfig:
    """The configuration of a case: tiny networks, batch 4."""
    system, mode, flags = CASES[case]
    width = ("--vgg-width", "4") if system == "reenact" else ()
    return tiny_config("--ema", "0.9", *width, *flags, mode=mode, system=system)


def part(batch: Batch) -> Batch:
    """This rank's share of a global batch."""
    landmarks = None if batch.landmarks is None else distributed.share(batch.landmarks)
    return Batch(distributed.share(batch.images), landmarks, batch.indices, tuple(map(part, batch.more)))


def losses(case: str) -> list[dict[str, float]]:
    """The losses of STEPS steps, means over the ranks.

    Raises SharedError unless the ranks end with the same weights and state.
    """
    config = configure(case)
    own = config.of_rank()
    distributed.prepare("cpu", own.batch_size)
    torch.manual_seed(5)
    system = build(own, "cpu")
    found = []
    for number in range(STEPS):
        step = system.step(part(batch_of(config, number)))
        states = {name: value.item() for name, value in step.items() if name == "k"}
        means = {name: distributed.mean_(value.detach().clone()).item() for name, value in step.items()}
        found.append(means | states)
    distributed.require_same(system.weights().values())
    distributed.require_same([torch.get_rng_state()])
    if pools := getattr(system, "pools", None) or [d.history for d in getattr(system, "directions", [])]:
        distributed.require_same([tensor for pool in pools for tensor in (*pool.kept, pool.count)])
    return found


def batches(images: ImageSet, kind: str) -> tuple[list, int]:
    """Indices of this rank's batches of one epoch, the sums of their pixels, and how many files it has read."""
    read, count = ImageSet.read, 0

    def counting(self: ImageSet, index: int) -> bytes:
        nonlocal count
        count += 1
        return read(self, index)

    ImageSet.read = counting
    try:
        with contextlib.closing(load(images, kind, distributed.rank(), distributed.size())) as loader:
            taken = [loader.next() for _ in range(3)]
            return [[batch.indices.tolist(), batch.images.sum((1, 2, 3)).tolist()] for batch in taken], count
    finally:
        ImageSet.read = read


def load(images: ImageSet, kind: str, rank: int, ranks: int) -> Loader:
    """A loader of 12 images whose global batches of 4 are two batches of 2: an epoch has three."""
    shape = {"resolution": 16, "channels": 3, "device": "cpu", "seed": 3}
    return open_loader(
        images, batch_size=4 // ranks, batches=2, rank=rank, world_size=ranks, loader=kind, crop="random", **shape
    )


def errors() -> dict[str, str | None]:
    """What this rank is told when one rank raises an error, and when the ranks' tensors differ."""
    found = {}
    for name, rank in (("first", 0), ("second", 1)):
        try:
            with distributed.together():
                if distributed.rank() == rank:
                    raise InputError(f"of the {name}")
        except SharedError as error:
            found[name] = str(error)
    try:
        distributed.require_same([torch.full((2,), float(distributed.rank()))])
    except SharedError as error:
        found["apart"] = str(error)
    found["different"] = refused(lambda: distributed.require_alike(f"number {distributed.rank()}", "take one"))
    found["same"] = refused(lambda: distributed.require_alike("one number", "take one"))
    return found


def refused(work: Callable[[], None]) -> str | None:
    """The error that `work()` raises on all ranks; None for none."""
    try:
        work()
    except SharedError as error:
        return str(error)
    return None


def version_of_its_own() -> str | None:
    """What this rank is told when the last rank has another version of Kiln."""
    if distributed.rank():
        group.__version__ = "0.0.1"
    try:
        return refused(group._require_same_versions)
    finally:
        group.__version__ = __version__


@contextlib.contextmanager
def other_pictures(place: Path) -> Iterator[None]:
    """Within the block rank 1 finds other pictures than rank 0 in its data set, as on a machine of its own."""
    open_set = loop.open_set
    if distributed.rank():
        loop.open_set = lambda config, path, need: open_set(replace(config, data=place), place, need)
    try:
        yield
    finally:
        loop.open_set = open_set


def uneven_gradients() -> list:
    """The gradients that an optimiser's step finds: of a contiguous and a channels_last weight, and of one without."""
    weights = [torch.nn.Parameter(torch.ones(2, 3, 2, 2).contiguous(memory_format=layout))
               for layout in (torch.contiguous_format, torch.channels_last, torch.contiguous_format)]  # fmt: skip
    optimiser = torch.optim.SGD(weights, lr=1.0)
    GradientBucket(optimiser)
    found = []
    for _ in range(2):
        optimiser.zero_grad(set_to_none=True)
        scale = torch.arange(24.0).view(2, 3, 2, 2) * (1 + 2 * distributed.rank())
        sum((weight * scale).sum() for weight in weights[:2]).backward()
        optimiser.step()
        strides = [weight.grad.stride() == weight.stride() for weight in weights[:2]]
        found.append([weights[0].grad.flatten().tolist(), torch.equal(*(w.grad for w in weights[:2])), strides])
    return [*found, weights[2].grad is None]


def command(*words: str) -> tuple[int, str]:
    """The exit status of `kiln train words` and what this rank prints to standard error."""
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard):
        return cli.status_of("train", train.main, words), heard.getvalue()


@contextlib.contextmanager
def asked_to_stop(run: Path, number: int = signal.SIGTERM) -> Iterator[None]:
    """Within the block rank 1 gets a signal when the run has recorded something."""

    def ask() -> None:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    if os.environ["RANK"] == "1":
        threading.Thread(target=ask, daemon=True).start()
    yield


def interrupted(run: Path, copy: Path) -> None:
    """A copy of a run as it was after its first checkpoint, step 10 of TRAINING."""
    shutil.copytree(run, copy, ignore=lambda _, names: [name for name in names if name.startswith("step_0000002")])
    shutil.rmtree(copy / "checkpoints" / "step_00000030")


def trained(folder: Path) -> dict[str, object]:
    """Exit statuses and messages of whole `kiln train` runs: refused, finished, stopped by a signal, resumed."""
    words = [*TRAINING, "--data", str(folder / "images")]
    found = {"uneven": command("--fused", "--batch-size", "5", "--out", str(folder / "uneven"))}
    found["whole"] = command(*words, "--out", str(folder / "whole"))[0]
    found["taken"] = command(*words, "--out", str(folder / "one"))
    with asked_to_stop(folder / "stopped"):
        found["stopped"] = command(*words, "--steps", "3000", "--out", str(folder / "stopped"))[0]
    with asked_to_stop(folder / "hung up", signal.SIGHUP):
        found["hung up"] = command(*words, "--steps", "3000", "--out", str(folder / "hung up"))[0]
    with other_pictures(folder / "fewer"):
        found["other pictures"] = command(*words, "--out", str(folder / "refused"))
    found["other options"] = command(*words, "--seed", os.environ["RANK"], "--out", str(folder / "refused"))
    if os.environ["RANK"] == "0":
        interrupted(folder / "whole", folder / "resumed")
    found["resumed"] = command("--resume", "--out", str(folder / "resumed"))[0]
    found["from one"] = command("--resume", "--out", str(folder / "from-one"))[0]
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    report.write = lambda run_dir: None
    found: dict[str, object] = {}
    with distributed.joined():
        found["losses"] = {case: losses(case) for case in CASES}
        found["errors"] = errors() | {"versions": version_of_its_own()}
        found["gradients"] = uneven_gradients()
        if installed("nvidia.dali"):
            images = open_dataset(folder / "images", channels=3, resolution=16)
            found["batches"] = {kind: batches(images, kind) for kind in ("resident", "dali")}
            found["trained"] = trained(folder)
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
