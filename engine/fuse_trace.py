"""Traces the forward of a module into a graph, or says why its graph would not stand for it.

A trace follows one path through the Python code. So only code is traced whose path hangs on nothing but plain
attributes, which are noted and compared at every call of the fused forward.
"""

import builtins
import dis
import functools
import inspect
import operator
import types
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import fx, nn

PLAIN = (bool, int, float, str, type(None), torch.dtype, types.FunctionType, types.BuiltinFunctionType)
ALLOWED_BUILTINS = {
    *("range", "len", "enumerate", "zip", "list", "tuple", "dict", "reversed", "int", "float", "str", "max", "min"),
    *("sum", "abs", "super", "slice", "sorted", "map", "bool", "round", "divmod", "NotImplementedError"),
    *("ValueError", "RuntimeError", "AssertionError", "TypeError"),
}
# what a tensor answers otherwise than the stand-in that is traced, what leaves no node, what differs at each call
REFUSED_NAMES = {
    *("no_grad", "enable_grad", "inference_mode", "set_grad_enabled", "is_grad_enabled", "autocast", "is_tensor"),
    *("is_autocast_enabled", "checkpoint", "random", "rand", "randn", "randint", "randperm", "item", "tolist"),
    *("manual_seed", "__dict__", "__class__", "register_buffer", "register_parameter", "add_module", "numpy"),
}
# single instructions: contexts leave no node, and what is stored during a trace is not stored in later calls
REFUSED_OPERATIONS = {
    "STORE_ATTR": "it stores attributes",
    "DELETE_ATTR": "it deletes attributes",
    "STORE_GLOBAL": "it stores globals",
    "DELETE_GLOBAL": "it deletes globals",
    "IMPORT_NAME": "it imports modules",
    "SETUP_WITH": "it enters a context",
    "BEFORE_WITH": "it enters a context",
    "LOAD_SPECIAL": "it enters a context",
}
LOADS_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")
LOADS = (*LOADS_GLOBAL, "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
OWN_CODE = ("torch.nn.modules.module", "torch.nn.modules.container")


class Untraceable(Exception):
    """Why a graph would not stand for a forward."""


@dataclass
class Traced:
    """A forward as a graph.

    inputs:   names of the arguments that have no default: the graph's inputs, tensors
    order:    names of all arguments that can be given by position
    defaults: the other arguments with the values they have in the graph
    inlined:  names of the Sequential children whose children are called by the graph itself
    values:   (module path, attribute, value) of the plain attributes that the code may read
    """

    graph: fx.Graph
    inputs: list[str]
    order: list[str]
    defaults: dict[str, object]
    inlined: set[str]
    values: list[tuple[str, str, object]] = field(default_factory=list)


class _Proxy(fx.Proxy):
    """Notes `x += y` as what it is: fx itself takes it for `x = x + y`."""


def _in_place(name: str) -> types.FunctionType:
    """A function whose name says, as of tensors' methods, that it writes into its first argument."""
    apply = getattr(operator, name)

    def function(x: object, y: object) -> object:
        return apply(x, y)

    function.__name__ = function.__qualname__ = f"{name}_"
    return function


def _noted(function: types.FunctionType) -> types.FunctionType:
    def method(self: _Proxy, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"):
    setattr(_Proxy, f"__{_name}__", _noted(_in_place(_name)))


class _Tracer(fx.Tracer):
    """Child modules stay calls, but for the plain Sequentials named in `inlined` (None: all without hooks)."""

    proxy_buffer_attributes = True

    def __init__(self, inlined: set[str] | None):
        super().__init__()
        self.asked, self.inlined = inlined, set()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        leaf = type(module) is not nn.Sequential or (self.asked is not None and name not in self.asked)
        leaf = leaf or bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        if not leaf:
            self.inlined.add(name)
        return leaf


def trace(module: nn.Module, inlined: set[str] | None) -> Traced:
    """The graph of a module's forward for tensors as required arguments. Raises Untraceable.

    inlined: the Sequential children that become part of the graph, by name; None: all that can.
    """
    kind = type(module)
    if "forward" in vars(module) or kind.__call__ is not nn.Module.__call__:
        raise Untraceable("its forward is replaced on the instance" if "forward" in vars(module) else "own __call__")
    values = list(_values_read(module))
    inputs, order, defaults = _arguments(kind.forward)
    before = _state(module)
    tracer = _Tracer(inlined)
    module.__class__ = _with_inputs_alone(kind, inputs)
    try:
        graph = tracer.trace(module)
    except Exception as error:
        # whatever the code raises when it meets a stand-in: it cannot be traced
        raise Untraceable(f"its forward cannot be traced ({type(error).__name__})") from error
    finally:
        module.__class__ = kind
        changed = _restore(module, before)
    if changed:
        raise Untraceable("its forward makes tensors or changes the module's state")
    return Traced(graph, inputs, order, defaults, tracer.inlined, values)


def _arguments(forward: types.FunctionType) -> tuple[list[str], list[str], dict[str, object]]:
    """The names of the required arguments and of all positional ones, and the defaults of the others."""
    inputs, order, defaults = [], [], {}
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is not parameter.KEYWORD_ONLY:
            order.append(parameter.name)
        elif parameter.default is parameter.empty:
            raise Untraceable("its forward has a keyword argument without default")
        if parameter.default is parameter.empty:
            inputs.append(parameter.name)
        else:
            defaults[parameter.name] = parameter.default
    return inputs, order, defaults


def _with_inputs_alone(kind: type, inputs: list[str]) -> type:
    """A subclass whose forward takes the required arguments only, so that the others have their defaults."""
    names = [f"input_{i}" for i in range(len(inputs))]
    space = {"original": kind.forward}
    exec(f"def forward(self, {', '.join(names)}):\n    return original(self, {', '.join(names)})", space)
    return type(kind.__name__, (kind,), {"forward": space["forward"], "__module__": kind.__module__})


def _state(module: nn.Module) -> dict[str, tuple[object, object]]:
    """Every attribute of the module, with a copy where it has elements."""
    return {n: (v, v.copy() if isinstance(v, (dict, list, set)) else None) for n, v in vars(module).items()}


def _restore(module: nn.Module, before: dict[str, tuple[object, object]]) -> bool:
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


def _values_read(module: nn.Module) -> Iterator[tuple[str, str, object]]:
    """The plain attributes that the code of forward names. Raises Untraceable where that does not settle its path."""
    kinds = {type(part) for part in module.modules() if not type(part).__module__.startswith("torch.")}
    names = _names_read(type(module).forward, kinds)
    for path, part in module.named_modules():
        if path and type(part).__module__.startswith("torch."):
            continue
        for name in sorted(names & vars(part).keys()):
            value = vars(part)[name]
            if not _plain(value) and not (isinstance(value, (list, tuple)) and all(map(_plain, value))):
                raise Untraceable(f"its forward reads the attribute {name}, a {type(value).__name__}")
            yield path, name, list(value) if isinstance(value, list) else value


def _plain(value: object) -> bool:
    return isinstance(value, PLAIN) and not (isinstance(value, types.FunctionType) and _is_foreign(value))


def _is_foreign(function: object) -> bool:
    return (getattr(function, "__module__", None) or "torch").split(".")[0] not in ("torch", "math", "operator")


def _names_read(forward: object, kinds: set[type]) -> set[str]:
    """Names of all attributes that the code reads, that of the methods and functions it calls with it."""
    names = set()
    for function in _reached(forward, kinds):
        if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
            raise Untraceable("its forward is decorated or not written in Python")
        if set(function.__code__.co_freevars) - {"__class__"}:
            raise Untraceable("its forward is decorated or made inside a function")
        for operation, name in _instructions(function.__code__):
            if operation in REFUSED_OPERATIONS:
                raise Untraceable(f"its forward cannot be traced: {REFUSED_OPERATIONS[operation]}")
            if operation in LOADS and name in REFUSED_NAMES:
                raise Untraceable(f"its forward uses {name}")
            if operation in LOADS and name == "training":
                raise Untraceable("its forward depends on self.training")
            if operation in LOADS_GLOBAL:
                _allow_global(function, name)
            elif operation in LOADS:
                names.add(name)
    return names


def _reached(forward: object, kinds: set[type]) -> Iterator[object]:
    """The forward and the functions and methods that its code names, and theirs; torch's own are left out."""
    seen, waiting = set(), [forward]
    while waiting:
        function = waiting.pop()
        if id(function) in seen or getattr(function, "__module__", "") in OWN_CODE:
            continue
        seen.add(id(function))
        yield function
        if not isinstance(function, types.FunctionType):
            continue
        for operation, name in _instructions(function.__code__):
            if operation in LOADS_GLOBAL:
                value = function.__globals__.get(name)
                waiting += [value] if isinstance(value, types.FunctionType) and _is_foreign(value) else []
            elif operation in LOADS:
                waiting += [method for kind in kinds for method in _methods(kind, name)]
        waiting += [function.__wrapped__] if hasattr(function, "__wrapped__") else []


def _methods(kind: type, name: str) -> Iterator[object]:
    """The functions behind an attribute of the class and of those it inherits from."""
    for ancestor in kind.__mro__:
        value = vars(ancestor).get(name)
        if isinstance(value, property):
            value = value.fget
        value = getattr(value, "func", value) if isinstance(value, functools.cached_property) else value
        value = getattr(value, "__func__", value)
        if isinstance(value, types.FunctionType) and _is_foreign(value):
            yield value


def _instructions(code: types.CodeType) -> Iterator[tuple[str, str]]:
    """(operation, name) of the code and of the functions and comprehensions written in it; "=" ends `x += y`."""
    for instruction in dis.get_instructions(code):
        operator_itself = instruction.opname == "BINARY_OP"
        yield instruction.opname, str(instruction.argrepr if operator_itself else instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)


def _allow_global(function: types.FunctionType, name: str) -> None:
    """Raises Untraceable for a global that may change, or act unseen."""
    if name not in function.__globals__:
        if name not in ALLOWED_BUILTINS and hasattr(builtins, name):
            raise Untraceable(f"its forward uses {name}")
        return
    value = function.__globals__[name]
    if isinstance(value, types.ModuleType):
        if value.__name__.split(".")[0] not in ("torch", "math", "operator"):
            raise Untraceable(f"its forward uses the module {name}")
        return
    of_torch = isinstance(value, type) and not _is_foreign(value)
    if not of_torch and not isinstance(value, (int, float, str, types.FunctionType, types.BuiltinFunctionType)):
        raise Untraceable(f"its forward uses {name}")


def writes_in_place(module: nn.Module) -> bool:
    """Whether the code of a forward that cannot be traced might write into tensors: x += y, x.add_(y), x[0] = y."""
    for function in _reached(type(module).forward, {type(module)}):
        if not isinstance(function, types.FunctionType):
            return True
        for operation, name in _instructions(function.__code__):
            written = operation == "BINARY_OP" and name.endswith("=")
            named = operation in LOADS and name.endswith("_") and not name.endswith("__")
            if written or named or operation == "STORE_SUBSCR" or operation.startswith("INPLACE_"):
                return True
    return False
