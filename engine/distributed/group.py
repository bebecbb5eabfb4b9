"""Several processes that train as one: each has the whole networks and its share of every batch.

A global batch is rank 0's share, then rank 1's, and so on. What is drawn at random is drawn for the global batch by
every rank, from generators in the same state, and each takes its share: N ranks see what one sees. With one process
every function here is the identity, and no process group exists.

The default group is gloo's, for Python objects and flags. Tensors go through it on a CPU, and through NCCL on GPUs.
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

T = TypeVar("T")
# a rank that is gone breaks the connection at once; this ends what hangs for another reason
PATIENCE = timedelta(minutes=30)


@dataclass
class _World:
    rank: int
    size: int
    batch_size: int = 0  # of this rank
    tensors: "dist.ProcessGroup | None" = None  # None: the default group


_world: _World | None = None


def rank() -> int:
    """This process's number among those that train together."""
    return _world.rank if _world else 0


def size() -> int:
    """How many processes train together."""
    return _world.size if _world else 1


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within the block the launcher's processes train together; only rank 0 is heard (and every rank's traceback).

    A process can begin this once; a block within it changes nothing. Raises LostRank when another has died.
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
            yield
    except (SharedError, SystemExit):  # on all ranks: so they can leave in order
        _leave()
        raise
    except RuntimeError as error:
        # gloo has no class of its own
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise LostRank("the connection to another rank broke: it has ended, or its machine is gone") from error
    else:
        _leave()
    finally:
        _world = None


def _leave() -> None:
    """Ends the groups and frees them now: gloo's threads must not outlive the interpreter."""
    dist.destroy_process_group()
    gc.collect()


def _meet(store: "dist.Store", world: _World) -> "dist.Store":
    """A part of the launcher's store that the ranks of this start have for themselves.

    torchrun keeps its store over restarts, and gloo would call the addresses there of processes that are dead. Every
    rank but the first asks with a word of its own for the name of the part, and says when it has got it.
    """
    if world.rank:
        mine = uuid.uuid4().hex
        store.set(f"kiln/asks/{world.rank}", mine)
        name = store.get(f"kiln/answer/{mine}").decode()  # waits
        store.set(f"{name}/{world.rank}", "here")
        return dist.PrefixStore(name, store)
    torchrun.know(store.compare_set("kiln/launch", "", uuid.uuid4().hex).decode())  # what is there stays
    name, missing = f"kiln/{uuid.uuid4().hex}", set(range(1, world.size))
    last = time.monotonic() + PATIENCE.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"{name}/{other}"]):
                missing.remove(other)
            elif store.check([f"kiln/asks/{other}"]):  # perhaps of an earlier start: its word is answered in vain
                store.set(f"kiln/answer/{store.get(f'kiln/asks/{other}').decode()}", name)
        if time.monotonic() > last:
            raise LostRank(f"{len(missing)} of {world.size} ranks have not come, rank {min(missing)} first")
        time.sleep(0.01)
    return dist.PrefixStore(name, store)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere:  # noqa: SIM117
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield


def prepare(device: str, batch_size: int) -> torch.device:
    """This rank's device of a kind ("cpu", "cuda"), through which tensors are exchanged from now on.

    batch_size: this rank's share of a batch. Raises InputError when this machine has fewer GPUs than ranks.
    """
    if _world is None:
        return torch.device(device)
    _world.batch_size = batch_size
    if device != "cuda":
        return torch.device(device)
    number, there = torchrun.local_rank(), torch.cuda.device_count()
    with together():
        if number >= there:
            raise InputError(f"{torchrun.local_size()} ranks on a machine with {there} GPUs: lower --nproc-per-node")
    torch.cuda.set_device(number)
    _world.tensors = dist.new_group(backend="nccl", timeout=PATIENCE)
    return torch.device("cuda", number)


# agreement


def from_first(work: Callable[[], T]) -> T:
    """What `work()` returns on rank 0, where alone it runs, on every rank.

    An InputError there is raised on all as a SharedError, a SystemExit as such.
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


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that all ranks pass; an InputError on one of them is raised on all, as a SharedError."""
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
    messages: list[str | None] = [None] * _world.size
    dist.all_gather_object(messages, message)
    told = [one for one in messages if one is not None]
    if told:
        raise SharedError(told[0])


def one_by_machine(work: Callable[[], T]) -> T:
    """`work()` of every rank, on each machine first of its first rank, which fills the caches of files."""
    if _world is None:
        return work()
    first = torchrun.local_rank() == 0
    with together():
        found = work() if first else None
    with together():
        return found if first else work()


def largest(number: int) -> int:
    """The largest of the ranks' numbers."""
    if _world is None:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def require_same(tensors: Iterable[Tensor]) -> None:
    """Raise a SharedError when the ranks' tensors do not have the same bits."""
    if _world is None:
        return
    sums = [t.detach().contiguous().view(-1).view(torch.uint8).sum(dtype=torch.int64) for t in tensors if t.numel()]
    found = torch.stack(sums).cpu()
    lowest, highest = found.clone(), found.clone()
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    if not torch.equal(lowest, highest):
        raise SharedError(
            "the ranks' weights have come apart: machines of different kinds, or a broken one; train on machines of "
            "one kind, from the last checkpoint with --resume"
        )


# tensors


def mean_(tensor: Tensor) -> Tensor:
    """The mean over the ranks in place of the tensor; the same bits on all of them."""
    if _world is not None:
        dist.all_reduce(tensor, group=_world.tensors)
        tensor.div_(_world.size)
    return tensor


def least_(tensor: Tensor) -> Tensor:
    """The least of the ranks' values in place of the tensor."""
    if _world is not None:
        dist.all_reduce(tensor, dist.ReduceOp.MIN, group=_world.tensors)
    return tensor


def stacked(tensor: Tensor) -> Tensor:
    """(...) of each rank -> (ranks, ...)."""
    if _world is None:
        return tensor[None]
    found = torch.empty((_world.size, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
    dist.all_gather(list(found.unbind()), tensor.contiguous(), group=_world.tensors)
    return found


def gather(share: Tensor) -> Tensor:
    """The global batch of the ranks' shares (b, ...), without gradient, in the share's memory format."""
    if _world is None:
        return share
    share = share.detach()
    last = share.dim() == 4 and share.is_contiguous(memory_format=torch.channels_last)
    rows = stacked(share.permute(0, 2, 3, 1) if last else share).flatten(0, 1)
    return rows.permute(0, 3, 1, 2) if last else rows


def share(rows: Tensor) -> Tensor:
    """This rank's part of one or more global batches (n B, ...) -> (n b, ...)."""
    if _world is None:
        return rows
    return rows.unflatten(0, (-1, _world.size, _world.batch_size))[:, _world.rank].flatten(0, 1)


def drawn(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """`count` rows of chance for this rank; draw: (rows) -> Tensor, which asks a generator."""
    return draw(count) if _world is None else share(draw(count * _world.size))


def spread(rows: Tensor, bounds: list[int]) -> None:
    """Give all ranks the rows that each has: rank r those from bounds[r] to bounds[r + 1]. rows: contiguous."""
    for source in range(size()) if _world else ():
        dist.broadcast(rows[bounds[source] : bounds[source + 1]], src=source, group=_world.tensors)
