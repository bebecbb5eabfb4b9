"""One process, or many that train as one.

torchrun.py reads what the launcher says, without torch; group.py lets the processes agree and exchange tensors;
gradients.py averages gradients before an optimiser's step. The names below come from group.py when they are first used,
so that importing this package loads no torch.

from engine import distributed

with distributed.joined():                  # the processes that torchrun started
    config = distributed.from_first(read)   # read() runs only on rank 0; every rank gets what it returns
    distributed.mean_(losses)               # the mean over the ranks, in place
"""

from importlib import import_module
from typing import Any

__all__ = [
    "alone",
    "drawn",
    "from_first",
    "gather",
    "joined",
    "largest",
    "least_",
    "mean_",
    "of_all",
    "one_by_machine",
    "prepare",
    "rank",
    "require_alike",
    "require_same",
    "share",
    "size",
    "spread",
    "stacked",
    "together",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("engine.distributed.group"), name)
