"""A CUDA graph's stand-in on the CPU: operators and their tensors are recorded once and run again without Python."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.systems.base import System
from engine.training.cuda_graph import Losses

# what makes the host wait for a GPU: a value read, a shape that depends on values, host data made into a tensor
WAITS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.lift_fresh.default,
    torch.ops.aten.repeat_interleave.Tensor,
}


# tensors that an operator writes although its schema does not declare it
WRITTEN_IN_SILENCE = {torch.ops.aten.native_batch_norm.default: ("running_mean", "running_var")}


class NoWaiting(TorchDispatchMode):
    """Raises AssertionError where the host would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        by_mask = func is torch.ops.aten.index.Tensor and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
        )
        if func in WAITS or by_mask:
            raise AssertionError(f"the host would wait: {func}")
        return func(*args, **(kwargs or {}))


class Tape(NoWaiting):
    """A recorder of engine.training.cuda_graph.

    As on a GPU, recording leaves tensors and the random generator as they were, and what it makes is garbage.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tape: list[tuple[Any, tuple, dict, list[Tensor]]] = []
        self._written: list[tuple[Tensor, Tensor]] = []
        self.recordings = self.replays = 0

    def warm(self, work: Callable[[], Losses]) -> Losses:
        return work()

    def record(self, work: Callable[[], Losses]) -> Losses:
        self._tape, self._written = [], []
        with torch.random.fork_rng(devices=()), self:
            losses = work()
        with torch.no_grad():
            for tensor, before in reversed(self._written):
                tensor.copy_(before)
            for *_, made in self._tape:
                for tensor in made:
                    tensor.fill_(float("nan") if tensor.is_floating_point() else 1)
        self._written = []
        self.recordings += 1
        return losses

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, made in self._tape:
            results = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
            for tensor, result in zip(made, results, strict=False):
                tensor.copy_(result)
        self.replays += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        given = dict(zip([a.name for a in schema.arguments], args, strict=False)) | kwargs
        writes = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        silent = WRITTEN_IN_SILENCE.get(func, ())
        for tensor in tree_leaves([given[name] for name in (*writes, *silent) if given.get(name) is not None]):
            self._written.append((tensor, tensor.clone()))
        results = super().__torch_dispatch__(func, types, args, kwargs)
        views = any(r.alias_info is not None for r in schema.returns)
        if writes or not views:
            made = [] if writes else [t for t in tree_leaves(results) if isinstance(t, Tensor)]
            self._tape.append((func, args, kwargs, made))
        return results


def rates_on_device(system: System) -> System:
    """The system with its learning rates as tensors, as they are on a GPU."""
    for optimiser in system.optimisers.values():
        for group in optimiser.param_groups:
            group["lr"] = torch.tensor(group["lr"])
    return system
