"""Watches the Python code of a forward while it is traced: what it does must leave its trace in the graph."""

import builtins
import dis
import functools
import sys
import types
from collections.abc import Iterator

from torch import nn

ALLOWED_BUILTINS = {
    *("range", "len", "enumerate", "zip", "list", "tuple", "dict", "reversed", "int", "float", "str", "max", "min"),
    *(
        "sum",
        "abs",
        "super",
        "slice",
        "sorted",
        "map",
        "bool",
        "round",
        "divmod",
        "pow",
        "any",
        "all",
        "NotImplementedError",
    ),
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
    "STORE_ATTR": "stores attributes",
    "DELETE_ATTR": "deletes attributes",
    "STORE_GLOBAL": "stores globals",
    "DELETE_GLOBAL": "deletes globals",
    "IMPORT_NAME": "imports modules",
    "SETUP_WITH": "enters a context",
    "BEFORE_WITH": "enters a context",
    "LOAD_SPECIAL": "enters a context",
}
LOADS_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")
LOADS = (*LOADS_GLOBAL, "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
NESTED = ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>", "<lambda>")
OF_LIBRARIES = ("torch", "math", "operator")

# what runs between the instructions: Kiln's stand-ins, the constructors that the standard library generates
UNWATCHED = ("engine.fusion.", "namedtuple_")


class Refused(BaseException):
    """Ends a trace at an instruction; no `except Exception` of the code that is traced holds it up."""


class Watch:
    """Within the block, every instruction of code that is neither torch's nor Kiln's is looked at before it runs.

    names: of the attributes that were read
    why:   what ended the trace; "" where nothing did
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._entered: set[types.CodeType] = set()
        self._reported: set[types.CodeType] = set()
        self.why = ""
        self._codes: dict[types.CodeType, dict[int, dis.Instruction]] = {}

    def __enter__(self) -> "Watch":
        self._before = sys.gettrace()
        # Python 3.12 and 3.13 report instructions only to what is set after some frame has asked for them
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._before)

    @property
    def complete(self) -> bool:
        """Whether of all code that ran the instructions were reported."""
        return self._entered == self._reported

    def _call(self, frame: types.FrameType, event: str, arg: object) -> object:
        module = frame.f_globals.get("__name__")
        if module is None or module.startswith(UNWATCHED) or _of_library(module):
            return None
        self._entered.add(frame.f_code)
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        if frame.f_code.co_name not in NESTED and set(frame.f_code.co_freevars) - {"__class__"}:
            self._refuse("is decorated or made inside a function")
        return self._instruction

    def _instruction(self, frame: types.FrameType, event: str, arg: object) -> object:
        if event == "opcode":
            self._reported.add(frame.f_code)
            instruction = self._at(frame)
            name = str(instruction.argval)
            if instruction.opname in REFUSED_OPERATIONS:
                self._refuse(REFUSED_OPERATIONS[instruction.opname])
            if instruction.opname in LOADS and name in REFUSED_NAMES:
                self._refuse(f"uses {name}")
            if instruction.opname in LOADS and name == "training":
                self._refuse("depends on self.training")
            if instruction.opname in LOADS_GLOBAL:
                reason = _why_not_global(frame.f_globals, name)
                if reason:
                    self._refuse(reason)
            elif instruction.opname in LOADS:
                self.names.add(name)
        return self._instruction

    def _at(self, frame: types.FrameType) -> dis.Instruction:
        code, offset = frame.f_code, frame.f_lasti
        if code not in self._codes:
            self._codes[code] = {instruction.offset: instruction for instruction in dis.get_instructions(code)}
        found = self._codes[code][offset]
        while found.opname == "EXTENDED_ARG":
            # a prefix of the next instruction, which is not reported itself
            offset += 2
            found = self._codes[code][offset]
        return found

    def _refuse(self, why: str) -> None:
        self.why = self.why or f"its forward {why}"
        raise Refused(self.why)


def is_foreign(function: object) -> bool:
    """Whether code is neither torch's nor of the modules that only compute."""
    return _root(getattr(function, "__module__", None) or "torch") not in OF_LIBRARIES


def _why_not_global(space: dict[str, object], name: str) -> str:
    """What is against reading a global: that it may change, or act unseen."""
    if name not in space:
        return f"uses {name}" if name not in ALLOWED_BUILTINS and hasattr(builtins, name) else ""
    value = space[name]
    if isinstance(value, types.ModuleType):
        return "" if _root(value.__name__) in OF_LIBRARIES else f"uses the module {name}"
    # what is cached gives the same for the same arguments
    plain = isinstance(value, (int, float, str, functools._lru_cache_wrapper))
    watched = isinstance(value, types.FunctionType) and _root(value.__module__) not in sys.stdlib_module_names
    of_torch = isinstance(value, (type, types.BuiltinFunctionType)) and not is_foreign(value) and not _bound(value)
    return "" if plain or watched or of_torch else f"uses {name}"


def _bound(value: object) -> bool:
    """Whether a built-in function is the method of an object, like random.random."""
    owner = getattr(value, "__self__", None)
    return owner is not None and not isinstance(owner, types.ModuleType) and is_foreign(type(owner))


def _of_library(module: str) -> bool:
    return _root(module) in OF_LIBRARIES or _root(module) in sys.stdlib_module_names


def _root(module: str) -> str:
    return module.split(".")[0]


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


def _reached(forward: object, kinds: set[type]) -> Iterator[object]:
    """The forward, the methods and the functions of the same file that its code names, and theirs."""
    seen, waiting = set(), [forward]
    while waiting:
        function = waiting.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        yield function
        if not isinstance(function, types.FunctionType):
            continue
        for operation, name in _instructions(function.__code__):
            if operation in LOADS_GLOBAL:
                value = function.__globals__.get(name)
                # not the warnings and checks of a library's other files
                near = isinstance(value, types.FunctionType) and value.__module__ == function.__module__
                waiting += [value] if near else []
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
        if isinstance(value, types.FunctionType) and is_foreign(value):
            yield value


def _instructions(code: types.CodeType) -> Iterator[tuple[str, str]]:
    """(operation, name) of the code and of the functions and comprehensions written in it; "=" ends `x += y`."""
    for instruction in dis.get_instructions(code):
        operator_itself = instruction.opname == "BINARY_OP"
        yield instruction.opname, str(instruction.argrepr if operator_itself else instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)
