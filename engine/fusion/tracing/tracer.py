"""Traces the forward of a module into a graph, or says why its graph would not stand for it.

A trace follows one path through the Python code. So only code is traced whose path hangs on nothing but plain
attributes and globals, and the inputs' shapes and dtypes: they are noted, and compared at every call of the fused
forward. What the code decides by objects outside the module is taken as it was.
"""

import inspect
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from engine.fusion.tracing.bytecode import Space, globals_read, is_constant, is_torch, reached, why_not
from engine.fusion.tracing.module_state import random_numbers_kept, reads_of_modules, restore_state, state_of
from engine.fusion.tracing.proxies import StandIn

# what of a tensor is known from the outside: a branch may hang on it, and is compared at every call
METADATA = {
    *("shape", "dtype", "device", "ndim", "is_cuda", "size", "dim", "numel", "nelement", "ndimension", "is_contiguous"),
    *("is_floating_point", "is_complex", "stride"),
}
ATTEMPTS = 8  # at a path through such branches
# torch's own code that may lie between a forward and the operations it calls; all other of it may leave no trace
THROUGH = ("torch.fx", "torch.nn", "torch.functional", "torch.overrides", "torch._jit_internal", "torch._tensor")


class Untraceable(Exception):
    """Why a graph would not stand for a forward."""


@dataclass
class Traced:
    """A forward as a graph.

    inputs:   names of the arguments that have no default: the graph's inputs, tensors
    order:    names of all arguments that can be given by position
    defaults: the other arguments with the values they have in the graph
    inlined:  names of the Sequential children whose children are called by the graph itself
    values:   (module path, attribute, value) of the plain attributes that were read
    globals:  the same of the globals: (their dict, name, value)
    conditions, answers: a graph of what branches on the inputs' shapes and dtypes asked, and the answers taken
    """

    graph: fx.Graph
    inputs: list[str]
    order: list[str]
    defaults: dict[str, object]
    inlined: set[str]
    values: list[tuple[str, str, object]]
    globals: list[tuple[Space, str, object]]
    conditions: fx.Graph
    answers: list[bool]

    @property
    def asks_training(self) -> bool:
        return any(name == "training" for _, name, _ in self.values)


class _Tracer(fx.Tracer):
    """Child modules stay calls, but for the Sequentials named in `asked` (None: all without hooks).

    decisions: answers to the first questions about the inputs' shapes and dtypes; to all others it is no
    """

    proxy_buffer_attributes = True

    def __init__(self, asked: set[str] | None, decisions: list[bool]):
        super().__init__()
        self.asked, self.inlined = asked, set()
        self.decisions, self.taken = decisions, []
        self.switches, self.why = _switches(), ""
        self.codes: dict[types.CodeType, Space] = {}  # of the functions that tensors pass through

    def refuse(self, why: str) -> None:
        """Ends the trace, also where the code that is traced catches the exception."""
        self.why = self.why or why
        raise Untraceable(f"its forward {self.why}")

    def create_node(self, kind: str, *args: object, **kwargs: object) -> fx.Node:
        if _switches() != self.switches:
            self.refuse("switches gradients or autocast")
        if kind not in ("placeholder", "output"):
            self._look_back(sys._getframe(1))
        return super().create_node(kind, *args, **kwargs)

    def _look_back(self, frame: types.FrameType) -> None:
        """Notes the code between the forward that is traced and the operation that it calls."""
        while frame.f_code.co_filename != _WRAPPER:
            name = frame.f_globals.get("__name__", "")
            if name.split(".")[0] != "torch":
                if not name.startswith("engine.fusion"):
                    self.codes[frame.f_code] = frame.f_globals
            elif not name.startswith(THROUGH):
                self.refuse(f"goes through {name}")
            frame = frame.f_back

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return StandIn(node, self)

    def to_bool(self, proxy: fx.Proxy) -> bool:
        if not _is_metadata(proxy.node):
            self.refuse("branches on values of tensors")
        given = self.decisions[len(self.taken) :]
        self.taken.append((proxy.node, given[0] if given else False))
        return self.taken[-1][1]

    def iter(self, proxy: fx.Proxy) -> Iterator:
        self.refuse("iterates over a tensor or its sizes")

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        kind = type(module)
        sequential = kind.forward is nn.Sequential.forward and kind.__call__ is nn.Module.__call__
        leaf = not sequential or (self.asked is not None and name not in self.asked)
        leaf = leaf or bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        if not leaf:
            self.inlined.add(name)
        return leaf


def _switches() -> tuple[object, ...]:
    """What decides how torch runs an operation, beside the operation itself."""
    autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    modes = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast, *modes


def trace(
    module: nn.Module, inlined: set[str] | None, training: bool | None = None, first_alone: bool = False
) -> Traced:
    """The graph of a module's forward for tensors as required arguments. Raises Untraceable.

    inlined:  the Sequential children that become part of the graph, by name; None: all that can.
    training: the module's mode while it is traced; None: as it is
    first_alone: the required arguments after the first are None
    """
    kind = type(module)
    if "forward" in vars(module) or kind.__call__ is not nn.Module.__call__:
        raise Untraceable("its forward is replaced on the instance" if "forward" in vars(module) else "own __call__")
    if not isinstance(kind.forward, types.FunctionType) or hasattr(kind.forward, "__wrapped__"):
        raise Untraceable("its forward is decorated or not written in Python")
    codes = {} if is_torch(kind) else {f.__code__: f.__globals__ for f in reached(kind.forward, kind)}
    _look(codes)
    inputs, order, defaults = _arguments(kind.forward)
    before, mode = {part: state_of(part) for part in module.modules()}, module.training
    module.__class__ = _with_inputs_alone(kind, inputs, first_alone)
    if first_alone:
        defaults |= dict.fromkeys(inputs[1:])
        inputs = inputs[:1]
    module.training = mode if training is None else training
    try:
        # a trace that ends in the middle may leave gradients switched off
        gradients = torch.set_grad_enabled(torch.is_grad_enabled())
        with gradients, reads_of_modules() as reads, random_numbers_kept() as drawn:
            tracer, graph = _first_path(module, inlined)
    finally:
        module.__class__, module.training = kind, mode
        changed = [part for part, state in before.items() if restore_state(part, state)]
    if changed:
        raise Untraceable("its forward makes tensors or changes the module's state")
    if drawn:
        raise Untraceable("its forward draws random numbers")
    _look(tracer.codes)
    spaces = [read for code, space in (codes | tracer.codes).items() for read in globals_read(code, space)]
    values = list(_values(module, reads, training))
    conditions, answers = _split_off(graph, tracer.taken), [answer for _, answer in tracer.taken]
    return Traced(graph, inputs, order, defaults, tracer.inlined, values, spaces, conditions, answers)


def _look(codes: dict[types.CodeType, Space]) -> None:
    for code, space in codes.items():
        if reason := why_not(code, space):
            raise Untraceable(f"its forward {reason}")


def _first_path(module: nn.Module, inlined: set[str] | None) -> tuple[_Tracer, fx.Graph]:
    """The first path that can be traced, branches on the inputs' shapes and dtypes not taken where that goes."""
    decisions: list[bool] = []
    for _ in range(ATTEMPTS):
        tracer = _Tracer(inlined, decisions)
        try:
            graph = tracer.trace(module)
        except Exception as error:
            if tracer.why:
                raise Untraceable(f"its forward {tracer.why}") from error
            # an assertion that does not hold, say: the last branch that was not taken is
            decisions = [answer for _, answer in tracer.taken]
            while decisions and decisions[-1]:
                decisions.pop()
            if not decisions:
                raise Untraceable(f"its forward cannot be traced ({type(error).__name__})") from error
            decisions[-1] = True
            continue
        if tracer.why:
            raise Untraceable(f"its forward {tracer.why}")
        return tracer, graph
    raise Untraceable(f"its forward cannot be traced in {ATTEMPTS} attempts")


def _is_metadata(node: fx.Node) -> bool:
    if node.op == "call_method" or node.target is getattr:
        name = node.target if node.op == "call_method" else node.args[1]
        return node.args[0].op == "placeholder" and name in METADATA
    of_operator = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
    return of_operator and all(map(_is_metadata, node.all_input_nodes))


def _split_off(graph: fx.Graph, taken: list[tuple[fx.Node, bool]]) -> fx.Graph:
    """A graph that gives the conditions of the branches; what only they need leaves the first one."""
    needed, waiting = set(), [node for node, _ in taken]
    while waiting:
        node = waiting.pop()
        needed.add(node)
        waiting += node.all_input_nodes
    made, of = fx.Graph(), {}
    for node in graph.nodes:
        if node.op == "placeholder" or node in needed:
            of[node] = made.node_copy(node, of.__getitem__)
    made.output(tuple(of[node] for node, _ in taken))
    for node in reversed(list(graph.nodes)):
        if node in needed and not node.users and node.op != "placeholder":
            graph.erase_node(node)
    return made


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


_WRAPPER = "<inputs of a traced forward>"


def _with_inputs_alone(kind: type, inputs: list[str], first_alone: bool) -> type:
    """A subclass whose forward takes the required arguments (or the first) alone; the others have their defaults."""
    names = [f"input_{i}" for i in range(len(inputs))]
    taken = names[:1] if first_alone else names
    passed = [name if name in taken else "None" for name in names]
    space = {"original": kind.forward}
    code = f"def forward(self, {', '.join(taken)}):\n    return original(self, {', '.join(passed)})"
    exec(compile(code, _WRAPPER, "exec"), space)
    return type(kind.__name__, (kind,), {"forward": space["forward"], "__module__": kind.__module__})


def _values(
    module: nn.Module, reads: dict[tuple[int, str], tuple[nn.Module, object]], training: bool | None
) -> Iterator[tuple[str, str, object]]:
    """The plain attributes that were read. Raises Untraceable where one has another value, which may change unseen."""
    paths = {id(part): path for path, part in module.named_modules()}
    for (identity, name), (part, value) in reads.items():
        if identity not in paths:
            raise Untraceable(f"its forward uses a {type(part).__name__} that is none of its children")
        of_class = name not in vars(part)
        if isinstance(value, (nn.Module, types.MethodType)) or (of_class and isinstance(value, Callable)):
            continue  # children are called as they then are, methods are of the class
        if type(value) in (list, dict) and is_constant(tuple(value.values() if type(value) is dict else value)):
            yield paths[identity], name, value.copy()
        elif isinstance(value, (types.FunctionType, types.BuiltinFunctionType)) or is_constant(value):
            yield paths[identity], name, value
        else:
            raise Untraceable(f"its forward reads the attribute {name}, a {type(value).__name__}")
