"""What a call of a module looks up, and whether all of it is torch's own and as it was when the module was fused.

A fused forward computes what calls of layers would compute, without calling them. So whatever such a call would look
up, the fused forward looks at instead, and where anything is replaced the module's own forward runs. `layer(x)` asks:

    who                  asks                                                        looked at by
    torch                modes, transforms (torch.func, forward mode)                only_autograd_listens
    the interpreter      type(layer), its __call__, __getattribute__, __getattr__    Layer, Lookups
    nn.Module.__call__   layer._compiled_call_impl, layer._call_impl                 Layer, Lookups
    _call_impl           hooks of the layer and of every module (HOOKS,              Layer, GLOBAL_HOOKS
                         GLOBAL_HOOKS); layer.forward; _slow_forward while traced
    forward              methods (Conv2d: _conv_forward), on the instance or class   Layer, Lookups
                         options (stride, alpha, ...)                                Layer
                         weight and bias                                             run_chain, at its call
                         functions of torch (F.conv2d), and what these call          Lookups

The names of methods, options and functions come from the code of the torch that is installed. A hook that listens to
one of these is one only for the kinds of hooks that _call_impl knows; tests/fusion/test_lookups.py fails for a torch
whose _call_impl asks for more.
"""

import dis
import operator
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from engine.kernels._dispatch import transformed

ABSENT = "<absent>"  # the value of an attribute that was asked for and does not exist
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = tuple(
    getattr(torch_module, f"_global_{kind}")
    for kind in ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
)
PLAIN_TENSORS = (torch.Tensor, nn.Parameter)  # subclasses may answer torch's functions themselves
TRACED_TENSORS = (*PLAIN_TENSORS, FakeTensor, FunctionalTensor)  # the last two are what compilers trace with
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# what the interpreter asks a class for, though no code names it
SPECIAL = ("__call__", "__getattribute__", "__getattr__", "__iter__")
LOADS_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")
LOADS_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
SILENT = ("EXTENDED_ARG", "PUSH_NULL", "CACHE")  # instructions that may lie between the two

Globals = dict[str, object]
Read = tuple[Globals, str, object]  # a name, the dict it was found in, and its value


class Onlooker(TorchDispatchMode):
    """A mode that looks at operations and changes none: fused models run fused under it."""


def only_autograd_listens() -> bool:
    """Whether no mode and no transform would see, and might change, the operations of a plain call."""
    if not (_function_modes() or _dispatch_modes() or transformed()):
        return True
    harmless = all(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
    harmless = harmless and all(isinstance(mode, Onlooker) for mode in _get_current_dispatch_mode_stack())
    return harmless and not transformed()


# plain C functions, bound once: they run at every call
_function_modes, _dispatch_modes = torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack


def replaced(module: nn.Module) -> str:
    """What of a call of this module is not its class's and torch's own, in words; "" where all is."""
    kind = type(module)
    if any(getattr(module, hooks) for hooks in HOOKS):
        return f"{kind.__name__} has hooks"
    if module._compiled_call_impl is not None:
        return f"{kind.__name__} is compiled on its own"
    called = Called.of(kind)
    if own := sorted(called.methods & vars(module).keys()):
        return f"the {own[0]} of this {kind.__name__} is replaced"
    return f"{called.foreign}, which {kind.__name__} calls, is replaced" if called.foreign else ""


class Called(NamedTuple):
    """What calls of modules of one class run.

    methods: names of the methods
    foreign: the first name of a method or function that is not torch's own; "" for none
    lookups: that all is as it was when this was found out
    """

    methods: frozenset[str]
    foreign: str
    lookups: "Lookups"

    @classmethod
    def of(cls, kind: type) -> "Called":
        """As it is now; to find it out takes longer than to see that it has not changed since."""
        known = _called.get(kind)
        if known is None or not known.lookups.are_as_they_were():
            names = frozenset(_functions_of_class(kind, SPECIAL)) | {name for name in SPECIAL if hasattr(kind, name)}
            reads = reads_of_class(kind)
            foreign = [name for name in sorted(names) if not _is_of_class(getattr(kind, name), kind)]
            foreign += [name for _, name, value in reads if not _is_of_torch(value)]
            known = _called[kind] = cls(names, next(iter(foreign), ""), Lookups({kind: names}, reads))
        return known


_called: dict[type, Called] = {}


def _functions_of_class(kind: type, names: Iterable[str]) -> dict[str, types.FunctionType]:
    """The functions of a class by name: those of the names given, and those that their code names."""
    functions, waiting = {}, list(names)
    while waiting:
        name = waiting.pop()
        function = getattr(kind, name, None)
        if name not in functions and isinstance(function, types.FunctionType):
            functions[name] = function
            waiting += names_in(function.__code__)
    return functions


def methods_run(kind: type) -> dict[type, list[str]]:
    """The methods that the forward of a class runs, by each class that has them: `super()` may lead to any of them."""
    names = _functions_of_class(kind, ["forward"]).keys()
    written = [ancestor for ancestor in kind.__mro__ if not (ancestor.__module__ or "").startswith("torch.")]
    inherited = {ancestor: [name for name in names if name in vars(ancestor)] for ancestor in written[1:-1]}
    return {kind: sorted(names)} | {ancestor: found for ancestor, found in inherited.items() if found}


def names_in(code: types.CodeType) -> set[str]:
    """The names of attributes that a code loads, and those that the functions written in it load."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    own = {i.argval for i in dis.get_instructions(code) if i.opname in LOADS_ATTRIBUTE}
    return own.union(*map(names_in, inner))


def reads_of_class(kind: type) -> list[Read]:
    """The globals that the forward of a class reads, and the attributes of modules among them, as they are now."""
    functions = _functions_of_class(kind, ["forward"]).values()
    return [read for function in functions for read in global_reads(function.__code__, function.__globals__)]


def global_reads(code: types.CodeType, space: Globals, follow: bool = True) -> Iterator[Read]:
    """The globals that a code reads, the attributes that it reads of modules among them, and those of functions in it.

    follow: whether what functions of torch.nn.functional among them read is given too
    """
    value: object = None
    for instruction in dis.get_instructions(code):
        operation, name = instruction.opname, instruction.argval
        if operation in SILENT:
            continue
        if operation in LOADS_GLOBAL and name in space:
            place = space
        elif operation in LOADS_ATTRIBUTE and isinstance(value, types.ModuleType) and name in vars(value):
            place = vars(value)
        else:
            value = None
            continue
        value = place[name]
        yield place, name, value
        if follow and isinstance(value, types.FunctionType) and value.__module__ == "torch.nn.functional":
            yield from global_reads(value.__code__, value.__globals__, follow=False)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from global_reads(constant, space, follow)


def _is_of_class(function: object, kind: type) -> bool:
    """Whether a function is written in one of the classes that `kind` inherits from, and these are torch's."""
    if not isinstance(function, types.FunctionType):
        return True  # of the interpreter: a slot of object
    names = {ancestor.__name__ for ancestor in kind.__mro__}
    return _is_of_torch(function) and function.__qualname__.split(".")[0] in names


def _is_of_torch(value: object) -> bool:
    """Whether a value that torch's code reads is torch's own or the standard library's."""
    if isinstance(value, types.FunctionType):
        # a wrapper takes the name of the function in it, but not its globals
        root = value.__globals__.get("__name__", "").split(".")[0]
        return root == "torch" or root in sys.stdlib_module_names
    if isinstance(value, (types.ModuleType, types.BuiltinFunctionType, type)):
        return True
    return type(value).__module__.split(".")[0] in ("torch", "builtins", "typing")


class Layer:
    """What a module of one class has of its own that its call looks up: options, and no method or hook."""

    def __init__(self, module: nn.Module):
        self.kind = type(module)
        self.methods = Called.of(self.kind).methods
        named = set().union(*(names_in(f.__code__) for f in _functions_of_class(self.kind, ["forward"]).values()))
        options = named & vars(module).keys() - OF_EVERY_MODULE
        self.options = tuple((name, vars(module)[name]) for name in sorted(options))

    def is_as_it_was(self, module: nn.Module | None) -> bool:
        """Whether this module, or its copy, is still called as it was, and nobody listens."""
        if type(module) is not self.kind:
            return False
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or module._compiled_call_impl is not None
        ):
            return False
        own = module.__dict__
        for name in self.methods:  # PyTorch 2.11 compiles no operation of sets on this dictionary
            if name in own:
                return False
        for name, value in self.options:
            now = own.get(name, ABSENT)
            if type(now) is not type(value) or now != value:
                return False
        return True


class Lookups:
    """Methods of classes and names of Python modules, with the values that they have now: compared by identity.

    methods: names of methods by the class that they are looked up in
    reads:   as of `global_reads`
    """

    def __init__(self, methods: Mapping[type, Iterable[str]], reads: Iterable[Read]):
        spaces: dict[int, tuple[Globals, dict[str, object]]] = {}
        for space, name, value in reads:
            spaces.setdefault(id(space), (space, {}))[1].setdefault(name, value)
        # a getter of one name gives no tuple, so each has two at least
        self.places: list[tuple[Callable, object]] = [
            (operator.itemgetter(*names, next(iter(names))), space) for space, names in spaces.values()
        ]
        found = [value for _, names in spaces.values() for value in (*names.values(), next(iter(names.values())))]
        for kind, names in methods.items():
            get = operator.attrgetter("__class__", "__mro__", *names)
            self.places.append((get, kind))
            found += get(kind)
        self.values = tuple(found)

    def are_as_they_were(self) -> bool:
        """Whether every name still has its value."""
        try:
            now = chain.from_iterable([get(place) for get, place in self.places])
            return all(map(operator.is_, now, self.values))
        except (KeyError, AttributeError):
            return False
