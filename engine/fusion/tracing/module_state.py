"""What a trace reads of modules, and what it must leave as it was: their attributes and random numbers."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

ABSENT = "<absent>"  # the value of an attribute that was asked for and is not there
OF_MODULES = frozenset(vars(nn.Module())) - {"training"}


def state_of(module: nn.Module) -> dict[str, tuple[object, object]]:
    """Every attribute of the module, with a copy where it has elements."""
    return {n: (v, v.copy() if isinstance(v, (dict, list, set)) else None) for n, v in vars(module).items()}


def restore_state(module: nn.Module, before: dict[str, tuple[object, object]]) -> bool:
    """Undoes what a trace changed in the module's attributes; whether there was anything."""
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
def reads_of_modules() -> Iterator[dict[tuple[int, str], tuple[nn.Module, object]]]:
    """The attributes of modules that code other than torch's reads within the block, with their values."""
    reads: dict[tuple[int, str], tuple[nn.Module, object]] = {}

    def noting(self: nn.Module, name: str) -> object:
        reader = sys._getframe(1).f_globals.get("__name__", "")
        noted = name not in OF_MODULES and reader.split(".")[0] != "torch"
        try:
            value = object.__getattribute__(self, name)
        except AttributeError:
            members = (self._modules, self._parameters, self._buffers)
            if noted and not any(name in group for group in members):
                reads.setdefault((id(self), name), (self, ABSENT))
            raise
        if noted:
            reads.setdefault((id(self), name), (self, value))
        return value

    nn.Module.__getattribute__ = noting
    try:
        yield reads
    finally:
        del nn.Module.__getattribute__


@contextmanager
def random_numbers_kept() -> Iterator[list[str]]:
    """Whose random numbers were drawn within the block, which go on afterwards as if they were not."""
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
