"""Looks at the code of a forward for what leaves no trace in a graph: then no graph stands for the forward."""

import builtins
import dis
import functools
import logging
import types
from collections.abc import Iterator

import torch
from torch import nn

from engine.fusion.lookups import LOADS_GLOBAL, Globals

# single instructions: a context leaves no node, and what is stored during a trace is not stored in later calls
REFUSED_OPERATIONS = {
    "STORE_ATTR": "stores attributes",
    "DELETE_ATTR": "deletes attributes",
    "STORE_GLOBAL": "stores globals",
    "DELETE_GLOBAL": "deletes globals",
    "IMPORT_NAME": "imports modules",
    "SETUP_WITH": "enters a context",
    "BEFORE_WITH": "enters a context",
    "LOAD_SPECIAL": "enters a context",
    "SETUP_FINALLY": "has a try block",
    "PUSH_EXC_INFO": "has a try block",
}
# functions that answer otherwise for a tensor than for the proxy that is traced, or that act at each call
REFUSED_BUILTINS = {
    *("type", "id", "print", "open", "input", "globals", "locals", "vars", "eval", "exec", "setattr", "delattr"),
    *("hash", "repr", "breakpoint", "__import__"),
}
# names that read switches of torch, or all attributes at once: a later call may find other values
REFUSED_NAMES = {
    *("is_grad_enabled", "is_autocast_enabled", "is_inference_mode_enabled", "is_compiling", "is_dynamo_compiling"),
    *("__dict__", "is_tensor", "get_default_dtype", "get_autocast_dtype"),
}
MODULES = ("torch", "math", "operator", "functools", "itertools", "numpy", "typing", "warnings", "logging")
LOADS = (*LOADS_GLOBAL, "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
NESTED = ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>", "<lambda>")
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.memory_format)


def refusal(code: types.CodeType, space: Globals) -> str:
    """Why a trace of this code cannot stand for it; "" where it can.

    code:  of a forward or of a function it calls; comprehensions and lambdas in it are looked at too
    space: the globals that the code reads
    """
    if code.co_name not in NESTED and set(code.co_freevars) - {"__class__"}:
        return "is decorated or made inside a function"
    before = None
    for instruction in dis.get_instructions(code):
        name = str(instruction.argval)
        if instruction.opname in REFUSED_OPERATIONS:
            return REFUSED_OPERATIONS[instruction.opname]
        if instruction.opname in LOADS and name in REFUSED_NAMES:
            return f"uses {name}"
        if instruction.opname in LOADS_GLOBAL and (reason := _refusal_of_global(name, space)):
            return reason
        if instruction.opname == "IS_OP" and not (before.opname.startswith("LOAD_CONST") and before.argval is None):
            return "compares identities"
        before = instruction
    nested = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return next(filter(None, (refusal(inner, space) for inner in nested)), "")


def _refusal_of_global(name: str, space: Globals) -> str:
    """Why a trace cannot stand for code that reads this global: it may change, or act unseen. "" where it can."""
    if name not in space:
        harmless = not (name in REFUSED_BUILTINS and hasattr(builtins, name))
        return "" if harmless else f"uses {name}"
    value = space[name]
    if isinstance(value, types.ModuleType):
        return "" if value.__name__.split(".")[0] in MODULES else f"uses the module {name}"
    if isinstance(value, types.BuiltinFunctionType):
        # random.random is such a function, and the method of an object with a state: its owner
        owner = value.__self__
        harmless = owner is None or isinstance(owner, (types.ModuleType, type)) or is_torch(type(owner))
    else:
        # a cached function gives the same result for the same arguments
        unchanging = (types.FunctionType, type, functools._lru_cache_wrapper, logging.Logger)
        harmless = isinstance(value, unchanging) or is_constant(value) or is_torch(type(value))
    return "" if harmless else f"uses {name}"


def modules_read(code: types.CodeType, space: Globals) -> Iterator[nn.Module]:
    """The globals that the code reads and that are an nn.Module."""
    for operation, name in instructions(code):
        if operation in LOADS_GLOBAL and isinstance(space.get(name), nn.Module):
            yield space[name]


def is_constant(value: object) -> bool:
    """Whether a value can never change: a number, a text, a dtype, or a tuple of such."""
    return all(map(is_constant, value)) if isinstance(value, tuple) else isinstance(value, PLAIN)


def is_torch(thing: object) -> bool:
    """Whether a class or function is torch's own."""
    return (getattr(thing, "__module__", None) or "").split(".")[0] == "torch"


def reachable_functions(forward: object, kind: type) -> Iterator[types.FunctionType]:
    """The functions that a call of a class's forward may run, as far as names in their code tell.

    These are the forward, the methods of its class and the functions of the same file that their code names. Functions
    of other files are not among them: mostly they are the warnings and checks of a library.
    """
    seen, waiting = set(), [forward]
    while waiting:
        function = waiting.pop()
        if id(function) in seen or not isinstance(function, types.FunctionType):
            continue
        seen.add(id(function))
        yield function
        for operation, name in instructions(function.__code__):
            if operation in LOADS_GLOBAL:
                value = function.__globals__.get(name)
                waiting += [value] if getattr(value, "__module__", None) == function.__module__ else []
            elif operation in LOADS:
                waiting += _methods(kind, name)


def _methods(kind: type, name: str) -> Iterator[types.FunctionType]:
    """The functions behind an attribute of a class and of the classes it inherits from."""
    for ancestor in kind.__mro__:
        value = vars(ancestor).get(name)
        if isinstance(value, property):
            value = value.fget
        value = getattr(value, "func", value) if isinstance(value, functools.cached_property) else value
        value = getattr(value, "__func__", value)
        if isinstance(value, types.FunctionType) and not is_torch(value):
            yield value


def instructions(code: types.CodeType) -> Iterator[tuple[str, str]]:
    """(operation, name) of the instructions of a code and of the functions and comprehensions written in it.

    The name of a BINARY_OP is its sign, which ends with "=" for one like `x += y`.
    """
    for instruction in dis.get_instructions(code):
        is_sign = instruction.opname == "BINARY_OP"
        yield instruction.opname, str(instruction.argrepr if is_sign else instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from instructions(constant)


def may_write(module: nn.Module) -> bool:
    """Whether the forward of a module might write into tensors, as far as its code tells: x += y, x.add_(y), x[0] = y.

    For a forward that cannot be traced.
    """
    forward = type(module).forward
    if not isinstance(forward, types.FunctionType) or hasattr(forward, "__wrapped__"):
        return True
    for function in reachable_functions(forward, type(module)):
        for operation, name in instructions(function.__code__):
            assigns = operation == "BINARY_OP" and name.endswith("=")
            calls_in_place = operation in LOADS and name.endswith("_") and not name.endswith("__")
            if assigns or calls_in_place or operation == "STORE_SUBSCR" or operation.startswith("INPLACE_"):
                return True
    return False
