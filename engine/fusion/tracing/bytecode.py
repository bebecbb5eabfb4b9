"""Looks at the code of a forward for what leaves no trace in a graph: then no graph stands for it."""

import builtins
import dis
import functools
import logging
import types
from collections.abc import Iterator

import torch

# single instructions: contexts leave no node, and what is stored during a trace is not stored in later calls
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
# what a tensor answers otherwise than the stand-in that is traced, or what acts at each call
REFUSED_BUILTINS = {
    *("type", "id", "print", "open", "input", "globals", "locals", "vars", "eval", "exec", "setattr", "delattr"),
    *("hash", "repr", "breakpoint", "__import__"),
}
# switches of torch that a later call may find otherwise
REFUSED_NAMES = {
    *("is_grad_enabled", "is_autocast_enabled", "is_inference_mode_enabled", "is_compiling", "is_dynamo_compiling"),
    *("__dict__", "is_tensor", "get_default_dtype", "get_autocast_dtype"),
}
MODULES = ("torch", "math", "operator", "functools", "itertools", "numpy", "typing", "warnings", "logging")
LOADS_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")
LOADS = (*LOADS_GLOBAL, "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
NESTED = ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>", "<lambda>")
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.memory_format)

Space = dict[str, object]


def why_not(code: types.CodeType, space: Space) -> str:
    """What in the code keeps a trace from standing for it; "" where nothing does. space: its globals."""
    if code.co_name not in NESTED and set(code.co_freevars) - {"__class__"}:
        return "is decorated or made inside a function"
    before = None
    for instruction in dis.get_instructions(code):
        name = str(instruction.argval)
        if instruction.opname in REFUSED_OPERATIONS:
            return REFUSED_OPERATIONS[instruction.opname]
        if instruction.opname in LOADS and name in REFUSED_NAMES:
            return f"uses {name}"
        if instruction.opname in LOADS_GLOBAL and (reason := _why_not_global(space, name)):
            return reason
        if instruction.opname == "IS_OP" and not (before.opname.startswith("LOAD_CONST") and before.argval is None):
            return "compares identities"
        before = instruction
    nested = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return next(filter(None, (why_not(inner, space) for inner in nested)), "")


def _why_not_global(space: Space, name: str) -> str:
    """What is against reading a global: that it may change, or act unseen."""
    if name not in space:
        return f"uses {name}" if name in REFUSED_BUILTINS and hasattr(builtins, name) else ""
    value = space[name]
    if isinstance(value, types.ModuleType):
        return "" if value.__name__.split(".")[0] in MODULES else f"uses the module {name}"
    if isinstance(value, types.BuiltinFunctionType):
        owner = value.__self__  # like random.random, the method of an object
        return (
            ""
            if owner is None or isinstance(owner, (types.ModuleType, type)) or is_torch(type(owner))
            else f"uses {name}"
        )
    # what is cached gives the same for the same arguments
    harmless = (types.FunctionType, type, functools._lru_cache_wrapper, logging.Logger)
    return "" if isinstance(value, harmless) or is_constant(value) or is_torch(type(value)) else f"uses {name}"


def globals_read(code: types.CodeType, space: Space) -> Iterator[tuple[Space, str, object]]:
    """(globals, name, value) of the plain globals that the code reads: they may change between calls."""
    for operation, name in instructions(code):
        if operation in LOADS_GLOBAL and is_constant(space.get(name, builtins)):
            yield space, name, space[name]


def is_constant(value: object) -> bool:
    """Whether a value is what it is for good: a number, a text, a dtype, or a tuple of such."""
    return all(map(is_constant, value)) if isinstance(value, tuple) else isinstance(value, PLAIN)


def is_torch(thing: object) -> bool:
    """Whether a class or function is torch's own."""
    return (getattr(thing, "__module__", None) or "").split(".")[0] == "torch"


def reached(forward: object, kind: type) -> Iterator[types.FunctionType]:
    """The forward, the methods of its class and the functions of the same file that its code names, and theirs."""
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
                # not the warnings and checks of a library's other files
                waiting += [value] if getattr(value, "__module__", None) == function.__module__ else []
            elif operation in LOADS:
                waiting += _methods(kind, name)


def _methods(kind: type, name: str) -> Iterator[object]:
    """The functions behind an attribute of the class and of those it inherits from."""
    for ancestor in kind.__mro__:
        value = vars(ancestor).get(name)
        if isinstance(value, property):
            value = value.fget
        value = getattr(value, "func", value) if isinstance(value, functools.cached_property) else value
        value = getattr(value, "__func__", value)
        if isinstance(value, types.FunctionType) and not is_torch(value):
            yield value


def instructions(code: types.CodeType) -> Iterator[tuple[str, str]]:
    """(operation, name) of the code and of the functions and comprehensions written in it; "=" ends `x += y`."""
    for instruction in dis.get_instructions(code):
        operator_itself = instruction.opname == "BINARY_OP"
        yield instruction.opname, str(instruction.argrepr if operator_itself else instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from instructions(constant)


def may_write(module: torch.nn.Module) -> bool:
    """Whether the code of a forward that cannot be traced might write into tensors: x += y, x.add_(y), x[0] = y."""
    forward = type(module).forward
    if not isinstance(forward, types.FunctionType) or hasattr(forward, "__wrapped__"):
        return True
    for function in reached(forward, type(module)):
        for operation, name in instructions(function.__code__):
            written = operation == "BINARY_OP" and name.endswith("=")
            named = operation in LOADS and name.endswith("_") and not name.endswith("__")
            if written or named or operation == "STORE_SUBSCR" or operation.startswith("INPLACE_"):
                return True
    return False
