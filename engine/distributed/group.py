"""Lets several processes train as one: each holds the whole networks and works on its share of every batch.

A global batch is the share of rank 0, then that of rank 1, and so on. Every rank draws random numbers for the whole
global batch, from generators in the same state, and takes its share of them: so N ranks see what one process sees. With
one process every function of this file is the identity, and no process group exists.

The default group uses gloo and carries Python objects and flags. Tensors go through gloo on CPUs and through NCCL on
GPUs.
"""

import contextlib
import gc
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from engine.distributed import torchrun
from engine.errors import InputError, LostRank, SharedError
from engine.version import __version__

T = TypeVar("T")
# limit of a wait for other ranks that hang; a rank that dies breaks the connection at once
PATIENCE = timedelta(minutes=30)


@dataclass
class _World:
    """The processes that train together, as this one sees them.

    rank, size: this process's number, and how many there are
    batch_size: images of a batch that are this rank's share
    tensors:    the group that tensors go through; None is the default group
    """

    rank: int
    size: int
    batch_size: int = 0
    tensors: "dist.ProcessGroup | None" = None


_world: _World | None = None


def rank() -> int:
    """The number of this process among the processes that train together."""
    return _world.rank if _world else 0


def size() -> int:
    """How many processes train together."""
    return _world.size if _world else 1


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within the block the processes that torchrun started train together; only rank 0 prints.

    Tracebacks of every rank are printed. A process can enter such a block once; a block inside another one changes
    nothing. Raises LostRank when another rank has died, SharedError when the ranks have different versions of Kiln or
    torch.
    """
    global _world
    if torchrun.size() == 1 or _world:
        yield
        return
    _world = _World(torchrun.rank(), torchrun.size())
    try:
        store = _meet(next(dist.rendezvous("env://", timeout=PATIENCE))[0], _world)
        dist.init_process_group("gloo", store=store, rank=_world.rank, world_size=_world.size, timeout=PATIENCE)
        with _silence() if _world.rank else contextlib.nullcontext():
            _require_same_versions()
            yield
    except (SharedError, SystemExit):  # raised on all ranks, so that all of them can leave in order
        _leave()
        raise
    except RuntimeError as error:
        # gloo has no error class of its own, only its name in the message
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise LostRank("the connection to another rank broke: it has ended, or its machine is gone") from error
    else:
        _leave()
    finally:
        _world = None


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within the block this process is the only one: nothing is exchanged."""
    global _world
    world, _world = _world, None
    try:
        yield
    finally:
        _world = world


def _leave() -> None:
    """End the process groups and free them at once, because gloo's threads must not outlive the interpreter."""
    dist.destroy_process_group()
    gc.collect()


def _meet(store: "dist.Store", world: _World) -> "dist.Store":
    """A part of the launcher's store that only the ranks of this start use.

    torchrun keeps its store over restarts, and gloo would call the addresses of dead processes in it. Rank 0 names a
    new part. Every other rank asks for the name with a random word of its own, and says so when it has the name.
    Raises LostRank when a rank does not come within PATIENCE.
    """
    last = time.monotonic() + PATIENCE.total_seconds()
    if world.rank:
        mine = uuid.uuid4().hex
        store.set(f"kiln/asks/{world.rank}", mine)
        # store.get would wait too, but no signal is heeded meanwhile
        while not store.check([f"kiln/answer/{mine}"]):
            if time.monotonic() > last:
                raise LostRank("rank 0 has not come")
            time.sleep(0.05)
        name = store.get(f"kiln/answer/{mine}").decode()
        store.set(f"{name}/{world.rank}", "here")
        return dist.PrefixStore(name, store)
    torchrun.know(store.compare_set("kiln/launch", "", uuid.uuid4().hex).decode())  # a word that is already there stays
    name, missing = f"kiln/{uuid.uuid4().hex}", set(range(1, world.size))
    while missing:
        for other in sorted(missing):
            if store.check([f"{name}/{other}"]):
                missing.remove(other)
            elif store.check([f"kiln/asks/{other}"]):  # also for a word of an earlier start, in vain
                store.set(f"kiln/answer/{store.get(f'kiln/asks/{other}').decode()}", name)
        if time.monotonic() > last:
            raise LostRank(f"{len(missing)} of {world.size} ranks have not come, rank {min(missing)} first")
        time.sleep(0.01)
    return dist.PrefixStore(name, store)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Within the block nothing is printed."""
    with open(os.devnull, "w") as nowhere:  # noqa: SIM117
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield


def prepare(device: str, batch_size: int) -> torch.device:
    """This rank's device of the kind `device` ("cpu" or "cuda"); from now on tensors on it can be exchanged.

    batch_size: images of a batch that are this rank's share
    Raises InputError when this machine has fewer GPUs than ranks.
    """
    if _world is None:
        return torch.device(device)
    _world.batch_size = batch_size
    if device != "cuda":
        return torch.device(device)
    number, gpus = torchrun.local_rank(), torch.cuda.device_count()
    with together():
        if number >= gpus:
            raise InputError(f"{torchrun.local_size()} ranks on a machine with {gpus} GPUs: lower --nproc-per-node")
    torch.cuda.set_device(number)
    _world.tensors = dist.new_group(backend="nccl", timeout=PATIENCE)
    return torch.device("cuda", number)


# agreement


def from_first(work: Callable[[], T]) -> T:
    """Run `work()` only on rank 0, and return its result on every rank.

    An InputError of `work()` is raised on every rank as a SharedError, a SystemExit as a SystemExit.
    """
    if _world is None:
        return work()
    outcome: list[Any] = [None]
    if _world.rank == 0:
        try:
            outcome = [("done", work())]
        except InputError as error:
            outcome = [("refused", str(error))]
        except SystemExit as left:
            outcome = [("left", left.code)]
    dist.broadcast_object_list(outcome, src=0)
    how, value = outcome[0]
    if how == "refused":
        raise SharedError(value)
    if how == "left":
        raise SystemExit(value)
    return value


def of_all(value: T) -> list[T]:
    """The value of every rank, in the order of the ranks."""
    if _world is None:
        return [value]
    values: list[Any] = [None] * _world.size
    dist.all_gather_object(values, value)
    return values


def require_alike(mine: str, fix: str) -> None:
    """Raise a SharedError, which names the ranks, unless every rank says the same of itself as rank 0.

    mine: what this rank has, as in "torch 2.13.0"
    fix:  what to do when they differ
    """
    first, *rest = of_all(mine)
    unlike = [(number, theirs) for number, theirs in enumerate(rest, start=1) if theirs != first]
    if unlike:
        (number, theirs), *more = unlike
        others = ", ".join(str(number) for number, _ in more[:8]) + ", ..." * (len(more) > 8)
        differ = f"ranks {others} differ" if more[1:] else f"rank {others} differs"
        also = f" ({differ} from rank 0 too)" if more else ""
        raise SharedError(f"rank 0 has {first}, but rank {number} has {theirs}{also}: {fix}")


def _require_same_versions() -> None:
    require_alike(f"Kiln {__version__} with torch {torch.__version__}", "install the same on every machine")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that every rank runs; an InputError in one of them is raised on every rank, as a SharedError."""
    if _world is None:
        yield
        return
    message = None
    try:
        yield
    except SharedError:
        raise
    except InputError as error:
        message = str(error)
    errors = [text for text in of_all(message) if text is not None]
    if errors:
        raise SharedError(errors[0])


def one_by_machine(work: Callable[[], T]) -> T:
    """Run `work()` on every rank; on each machine its first rank runs alone first, and fills the caches of files."""
    if _world is None:
        return work()
    first = torchrun.local_rank() == 0
    with together():
        result = work() if first else None
    with together():
        return result if first else work()


def largest(number: int) -> int:
    """The largest of the ranks' numbers."""
    if _world is None:
        return number
    highest = torch.tensor(number)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest)


def require_same(tensors: Iterable[Tensor]) -> None:
    """Raise a SharedError when the ranks' tensors do not have the same bits."""
    if _world is None:
        return
    sums = [t.detach().contiguous().view(-1).view(torch.uint8).sum(dtype=torch.int64) for t in tensors if t.numel()]
    checksums = torch.stack(sums).cpu()
    lowest, highest = checksums.clone(), checksums.clone()
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    if not torch.equal(lowest, highest):
        raise SharedError(
            "the ranks' weights have come apart: machines of different kinds, or a broken one; train on machines of "
            "one kind, from the last checkpoint with --resume"
        )


# tensors


def mean_(tensor: Tensor) -> Tensor:
    """Replace the tensor by its mean over the ranks, with the same bits on every rank; returns the tensor."""
    if _world is not None:
        dist.all_reduce(tensor, group=_world.tensors)
        tensor.div_(_world.size)
    return tensor


def least_(tensor: Tensor) -> Tensor:
    """Replace each element of the tensor by its least value over the ranks; returns the tensor."""
    if _world is not None:
        dist.all_reduce(tensor, dist.ReduceOp.MIN, group=_world.tensors)
    return tensor


def stacked(tensor: Tensor) -> Tensor:
    """The ranks' tensors (...) of one shape, stacked to (ranks, ...)."""
    if _world is None:
        return tensor[None]
    stack = torch.empty((_world.size, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
    dist.all_gather(list(stack.unbind()), tensor.contiguous(), group=_world.tensors)
    return stack


def gather(share: Tensor) -> Tensor:
    """The global batch (B, ...) of the ranks' shares (b, ...), without gradient, in the memory format of the share."""
    if _world is None:
        return share
    share = share.detach()
    last = share.dim() == 4 and share.is_contiguous(memory_format=torch.channels_last)
    rows = stacked(share.permute(0, 2, 3, 1) if last else share).flatten(0, 1)
    return rows.permute(0, 3, 1, 2) if last else rows


def share(rows: Tensor) -> Tensor:
    """This rank's share of one or more global batches: (n B, ...) -> (n b, ...)."""
    if _world is None:
        return rows
    return rows.unflatten(0, (-1, _world.size, _world.batch_size))[:, _world.rank].flatten(0, 1)


def drawn(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """`count` random rows for this rank; draw(rows) draws so many rows from a generator."""
    return draw(count) if _world is None else share(draw(count * _world.size))


def spread(rows: Tensor, bounds: list[int]) -> None:
    """Send the rows that each rank has to all ranks: rank r has those from bounds[r] to bounds[r + 1].

    rows: contiguous; the rows of the other ranks are overwritten
    """
    for source in range(size()) if _world else ():
        dist.broadcast(rows[bounds[source] : bounds[source + 1]], src=source, group=_world.tensors)
