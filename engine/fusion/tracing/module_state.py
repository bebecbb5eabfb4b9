"""What a trace reads of modules, and what it must leave as it was: their attributes, and the random numbers."""

import random
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from engine.fusion.lookups import ABSENT, OF_EVERY_MODULE

NOT_RECORDED = OF_EVERY_MODULE - {"training"}  # names of attributes whose reads are not recorded


class AttributeReads:
    """Records, within its block, which attributes the code of this thread reads from the given modules.

    modules: the modules to watch; a module that a recorded read returns is watched from then on
    reads:   (module, value) by (identity of the module, name of the attribute), of the first read of each; the value is
             ABSENT where the module has no such attribute

    Reads by torch's own code, and reads of parameters, buffers and registered children, are not recorded.

    Until the block ends each watched module has a class derived from its own, with another `__getattribute__`. All
    other modules, and nn.Module itself, stay as they are. The `__class__` that a watched module names is the one it
    had; only code that compares `type(module)` sees the difference.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        self.modules = list(modules)
        self.reads: dict[tuple[int, str], tuple[nn.Module, object]] = {}
        self.classes: dict[int, tuple[nn.Module, type]] = {}  # the watched modules and the classes they had
        self.watching_classes: dict[type, type] = {}
        self.thread = threading.get_ident()

    def __enter__(self) -> "AttributeReads":
        try:
            for module in self.modules:
                self.watch(module)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for module, kind in self.classes.values():
            object.__setattr__(module, "__class__", kind)

    def watch(self, module: nn.Module) -> None:
        """Records the reads of this module too."""
        if self.watches(module):
            return
        kind = type(module)
        if kind not in self.watching_classes:
            self.watching_classes[kind] = self._watching_class(kind)
        # not by the module's own __setattr__, which may do something else
        object.__setattr__(module, "__class__", self.watching_classes[kind])
        self.classes[id(module)] = module, kind

    def watches(self, module: nn.Module) -> bool:
        """Whether the reads of this module are, or were until the block ended, recorded."""
        return id(module) in self.classes

    def _watching_class(self, kind: type) -> type:
        """A subclass whose instances record what is read from them."""
        record = self.record

        def __getattribute__(module: nn.Module, name: str) -> object:
            reader = sys._getframe(1).f_globals.get("__name__", "")
            try:
                value = kind if name == "__class__" else kind.__getattribute__(module, name)
            except AttributeError:
                # nn.Module.__getattr__ is asked next, which knows parameters, buffers and children
                if not any(name in group for group in (module._modules, module._parameters, module._buffers)):
                    record(module, name, ABSENT, reader)
                raise
            record(module, name, value, reader)
            return value

        return type(kind.__name__, (kind,), {"__getattribute__": __getattribute__, "__module__": kind.__module__})

    def record(self, module: nn.Module, name: str, value: object, reader: str) -> None:
        """Enters one read. reader: the name of the Python module whose code reads."""
        if name in NOT_RECORDED or reader.split(".")[0] == "torch" or threading.get_ident() != self.thread:
            return
        if issubclass(type(value), nn.Module):  # isinstance would ask the proxy of a tensor for its class
            self.watch(value)
        self.reads.setdefault((id(module), name), (module, value))


def state_of(module: nn.Module) -> dict[str, tuple[object, object]]:
    """Every attribute of the module by name: (value, a copy of a value that has elements, else None)."""
    return {n: (v, v.copy() if isinstance(v, (dict, list, set)) else None) for n, v in vars(module).items()}


def restore_state(module: nn.Module, before: dict[str, tuple[object, object]]) -> bool:
    """Undoes what was changed in the module's attributes since `state_of`; returns whether anything was."""
    changed = vars(module).keys() != before.keys()
    for name in vars(module).keys() - before.keys():
        del vars(module)[name]
    for name, (value, elements) in before.items():
        changed |= vars(module).get(name) is not value
        vars(module)[name] = value
        if elements is not None and _identities(value) != _identities(elements):
            changed = True
            value.clear()
            value.extend(elements) if isinstance(value, list) else value.update(elements)
    return changed


def _identities(elements: dict | list | set) -> list[object]:
    if isinstance(elements, dict):
        return [(key, id(value)) for key, value in elements.items()]
    return sorted(map(id, elements)) if isinstance(elements, set) else [id(element) for element in elements]


@contextmanager
def random_numbers_kept() -> Iterator[list[str]]:
    """Yields a list that names, once the block has ended, the generators that were drawn from: random, numpy, torch.

    Afterwards their random numbers go on as if none had been drawn.
    """
    drawn: list[str] = []
    numpy = sys.modules.get("numpy")
    before = random.getstate(), numpy and numpy.random.get_state(), torch.get_rng_state()
    try:
        yield drawn
    finally:
        if random.getstate() != before[0]:
            drawn.append("random")
            random.setstate(before[0])
        if numpy and str(numpy.random.get_state()) != str(before[1]):
            drawn.append("numpy")
            numpy.random.set_state(before[1])
        if not torch.equal(torch.get_rng_state(), before[2]):
            drawn.append("torch")
            torch.set_rng_state(before[2])
