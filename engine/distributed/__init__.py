"""One process or many that train as one. Importing this package loads no torch; its names come from `group`.

from engine import distributed

with distributed.joined():                  # the processes that torchrun started
    config = distributed.from_first(read)   # read() runs on rank 0 alone; every rank gets what it returns
    distributed.mean_(losses)               # the mean over the ranks, in place
"""

from importlib import import_module

_SUBMODULES = ("gradients", "group", "torchrun")


def __getattr__(name: str) -> object:
    """A name of engine.distributed.group, imported when it is first used."""
    if name.startswith("__") or name in _SUBMODULES:  # `from engine.distributed import torchrun` must load no torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("engine.distributed.group"), name)
