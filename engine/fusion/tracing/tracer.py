"""Traces the forward of a module into a graph, or says why its graph would not stand for it.

A trace follows one path through the Python code. So a forward is traced only where its path depends on nothing but
plain attributes, globals, and the shapes and dtypes of its inputs. All of these are recorded, and compared at every
call of the fused forward. What the code decides by objects outside the module is taken as it was during the trace.

`trace` does, in this order: look at the bytecode of the forward (bytecode.py), run the forward on proxies (proxies.py)
while reads of attributes are recorded and changes undone (module_state.py), look at the bytecode of the functions that
the proxies passed through, split the conditions of branches off the graph.
"""

import inspect
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import fx, nn

from engine.fusion.lookups import GLOBAL_HOOKS, Globals, Read, global_reads, only_autograd_listens, replaced
from engine.fusion.tracing.bytecode import (
    is_constant,
    is_torch,
    modules_read,
    reachable_functions,
    refusal,
)
from engine.fusion.tracing.module_state import AttributeReads, random_numbers_kept, restore_state, state_of
from engine.fusion.tracing.proxies import TensorProxy

# what is known of a tensor without its values: a branch may depend on it, and it is compared at every call
METADATA = {
    *("shape", "dtype", "device", "ndim", "is_cuda", "size", "dim", "numel", "nelement", "ndimension", "is_contiguous"),
    *("is_floating_point", "is_complex", "stride"),
}
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
ATTEMPTS = 8  # paths that are tried through branches on such conditions
# torch's own code that may lie between a forward and the operations it calls; all other code of torch may do unseen
# things
PASSABLE = ("torch.fx", "torch.nn", "torch.functional", "torch.overrides", "torch._jit_internal", "torch._tensor")


class Untraceable(Exception):
    """Why a graph would not stand for a forward."""


@dataclass
class Traced:
    """A forward as a graph, and what must be as it was at a later call of it.

    inputs:     names of the arguments that have no default: the graph's inputs, tensors
    order:      names of all arguments that can be given by position
    defaults:   the other arguments with the values they have in the graph
    inlined:    names of the Sequential children whose children the graph calls itself
    values:     (module path, attribute, value) of the plain attributes that were read
    globals:    (their dict, name, value) of the globals that were read, and of what was read of modules among them
    conditions: a graph of what the branches on the inputs' shapes and dtypes asked
    answers:    the answer that the trace took for each condition
    """

    graph: fx.Graph
    inputs: list[str]
    order: list[str]
    defaults: dict[str, object]
    inlined: set[str]
    values: list[tuple[str, str, object]]
    globals: list[Read]
    conditions: fx.Graph
    answers: list[bool]

    @property
    def asks_training(self) -> bool:
        return any(name == "training" for _, name, _ in self.values)


class _Tracer(fx.Tracer):
    """Runs a forward once. Child modules stay calls, except the Sequentials that are to be inlined.

    asked:     names of the Sequentials to inline
    decisions: answers to the first conditions on the inputs' shapes and dtypes; all later ones are answered with no

    After the trace: inlined are the names of the Sequentials that were, taken the (node, answer) of each condition,
    codes the code with its globals of each function that tensors passed through, why the reason for a refusal.
    """

    proxy_buffer_attributes = True

    def __init__(self, asked: set[str], decisions: list[bool]):
        super().__init__()
        self.asked, self.inlined = asked, set()
        self.decisions, self.taken = decisions, []
        self.switches, self.why = _switches(), ""
        self.codes: dict[types.CodeType, Globals] = {}
        self.thread = threading.get_ident()

    def refuse(self, why: str) -> None:
        """Ends the trace, also where the code that is traced catches the exception."""
        self.why = self.why or why
        raise Untraceable(f"its forward {self.why}")

    def create_node(self, kind: str, *args: object, **kwargs: object) -> fx.Node:
        if _switches() != self.switches:
            self.refuse("switches gradients or autocast")
        if kind not in ("placeholder", "output"):
            self._record_callers(sys._getframe(1))
        return super().create_node(kind, *args, **kwargs)

    def _record_callers(self, frame: types.FrameType) -> None:
        """Records the code between the traced forward and the operation that this frame calls."""
        while frame.f_code.co_filename != _WRAPPER:
            name = frame.f_globals.get("__name__", "")
            if name.split(".")[0] != "torch":
                if not name.startswith("engine.fusion"):
                    self.codes[frame.f_code] = frame.f_globals
            elif not name.startswith(PASSABLE):
                self.refuse(f"goes through {name}")
            frame = frame.f_back

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return TensorProxy(node, self)

    def to_bool(self, proxy: fx.Proxy) -> bool:
        if not _is_metadata(proxy.node):
            self.refuse("branches on values of tensors")
        position = len(self.taken)
        answer = self.decisions[position] if position < len(self.decisions) else False
        self.taken.append((proxy.node, answer))
        return answer

    def iter(self, proxy: fx.Proxy) -> Iterator:
        self.refuse("iterates over a tensor or its sizes")

    # fx exchanges __call__ and __getattr__ of nn.Module while it traces: calls by other threads pass through here too

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, object]) -> object:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(module, forward, args, kwargs)

    def getattr(self, name: str, value: object, proxies: dict[str, fx.Proxy]) -> object:
        return value if threading.get_ident() != self.thread else super().getattr(name, value, proxies)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if name in self.asked:
            self.inlined.add(name)
        return name not in self.asked


def _switches() -> tuple[object, ...]:
    """What decides how torch runs an operation, beside the operation itself."""
    autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    modes = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast, *modes


def trace(
    module: nn.Module, inlined: set[str] | None, training: bool | None = None, first_alone: bool = False
) -> Traced:
    """The graph of a module's forward for tensors as required arguments. Raises Untraceable.

    inlined:     names of the Sequential children that become part of the graph; None: all that can
    training:    the module's mode while it is traced; None: as it is
    first_alone: the required arguments after the first are None
    """
    if not only_autograd_listens():
        raise Untraceable("a mode or a transform of torch is active")
    forward = _own_forward(module)
    kind = type(module)
    functions = [] if is_torch(kind) else reachable_functions(forward, kind)
    codes = {function.__code__: function.__globals__ for function in functions}
    _refuse_by_code(codes)
    inputs, order, defaults = _arguments(forward)
    adapted = _with_inputs_alone(kind, inputs, first_alone)
    if first_alone:
        defaults |= dict.fromkeys(inputs[1:])
        inputs = inputs[:1]
    # fx exchanges methods of nn.Module while it traces, so this is asked before
    able = {name for name, part in module.named_modules() if _is_plain_sequential(part)}
    watched = [*module.modules(), *(value for value in defaults.values() if isinstance(value, nn.Module))]
    watched += [value for code, space in codes.items() for value in modules_read(code, space)]
    with _left_as_it_was(module, adapted, training), AttributeReads(watched) as reads:
        tracer, graph = _first_path(module, able if inlined is None else able & inlined)
    _refuse_by_code(tracer.codes)
    for code, space in tracer.codes.items():
        for value in modules_read(code, space):
            if not reads.watches(value):
                raise _foreign(value)
    read = [read for code, space in (codes | tracer.codes).items() for read in global_reads(code, space)]
    values = list(_values(module, reads))
    conditions, answers = _split_off(graph, tracer.taken), [answer for _, answer in tracer.taken]
    return Traced(graph, inputs, order, defaults, tracer.inlined, values, read, conditions, answers)


def _is_plain_sequential(module: nn.Module) -> bool:
    """Whether a call of the module calls its children one after another, and nothing else."""
    return type(module).forward is nn.Sequential.forward and not replaced(module) and not any(GLOBAL_HOOKS)


def _own_forward(module: nn.Module) -> types.FunctionType:
    """The forward of the module's class. Raises Untraceable where a call of the module may run something else."""
    kind = type(module)
    if "forward" in vars(module):
        raise Untraceable("its forward is replaced on the instance")
    if kind.__call__ is not nn.Module.__call__:
        raise Untraceable("own __call__")
    if not isinstance(kind.forward, types.FunctionType) or hasattr(kind.forward, "__wrapped__"):
        raise Untraceable("its forward is decorated or not written in Python")
    return kind.forward


def _refuse_by_code(codes: dict[types.CodeType, Globals]) -> None:
    for code, space in codes.items():
        if reason := refusal(code, space):
            raise Untraceable(f"its forward {reason}")


def _foreign(module: nn.Module) -> Untraceable:
    return Untraceable(f"its forward uses a {type(module).__name__} that is none of its children")


@contextmanager
def _left_as_it_was(module: nn.Module, adapted: type, training: bool | None) -> Iterator[None]:
    """Gives the module another class and mode within the block, and undoes afterwards what the block changed.

    Raises Untraceable where the block changed attributes of the module or of its children, or drew random numbers.
    """
    kind, mode = type(module), module.training
    before = {part: state_of(part) for part in module.modules()}
    module.__class__ = adapted
    module.training = mode if training is None else training
    try:
        # a trace that ends in the middle may leave gradients switched off
        gradients = torch.set_grad_enabled(torch.is_grad_enabled())
        with gradients, random_numbers_kept() as drawn:
            yield
    finally:
        module.__class__, module.training = kind, mode
        changed = [part for part, state in before.items() if restore_state(part, state)]
    if changed:
        raise Untraceable("its forward makes tensors or changes the module's state")
    if drawn:
        raise Untraceable("its forward draws random numbers")


def _first_path(module: nn.Module, inlined: set[str]) -> tuple[_Tracer, fx.Graph]:
    """The first path that can be traced; branches on the inputs' shapes and dtypes are not taken where that works.

    Where a path ends in an exception (an assertion that does not hold, say), the next attempt takes the last branch
    that was not taken.
    """
    decisions: list[bool] = []
    for _ in range(ATTEMPTS):
        tracer = _Tracer(inlined, decisions)
        failure = None
        try:
            graph = tracer.trace(module)
        except Exception as error:
            failure = error
        if tracer.why:
            raise Untraceable(f"its forward {tracer.why}") from failure
        if failure is None:
            return tracer, graph
        decisions = [answer for _, answer in tracer.taken]
        while decisions and decisions[-1]:
            decisions.pop()
        if not decisions:
            raise Untraceable(f"its forward cannot be traced ({type(failure).__name__})") from failure
        decisions[-1] = True
    raise Untraceable(f"its forward cannot be traced in {ATTEMPTS} attempts")


def _is_metadata(node: fx.Node) -> bool:
    """Whether a node is computed from shapes, dtypes and the like of the inputs alone."""
    if node.op == "call_method" or node.target is getattr:
        name = node.target if node.op == "call_method" else node.args[1]
        return node.args[0].op == "placeholder" and name in METADATA
    of_operator = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
    return of_operator and all(map(_is_metadata, node.all_input_nodes))


def _split_off(graph: fx.Graph, taken: list[tuple[fx.Node, bool]]) -> fx.Graph:
    """A graph that returns the conditions of the branches; nodes that only they need leave the given graph."""
    needed, waiting = set(), [node for node, _ in taken]
    while waiting:
        node = waiting.pop()
        needed.add(node)
        waiting += node.all_input_nodes
    conditions, copies = fx.Graph(), {}
    for node in graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = conditions.node_copy(node, copies.__getitem__)
    conditions.output(tuple(copies[node] for node, _ in taken))
    for node in reversed(list(graph.nodes)):
        if node in needed and not node.users and node.op != "placeholder":
            graph.erase_node(node)
    return conditions


def _arguments(forward: types.FunctionType) -> tuple[list[str], list[str], dict[str, object]]:
    """The names of the required arguments, the names of all positional ones, and the defaults of the others."""
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


def _values(module: nn.Module, reads: AttributeReads) -> Iterator[tuple[str, str, object]]:
    """(module path, attribute, value) of the plain attributes that were read.

    Raises Untraceable where one has a value that is not plain, and so may change unseen.
    """
    paths = {id(part): path for path, part in module.named_modules()}
    for (identity, name), (part, value) in reads.reads.items():
        if identity not in paths:
            raise _foreign(part)
        of_class = name not in vars(part)
        value = getattr(value, "__func__", value)  # a method is the same where its function is
        if isinstance(value, nn.Module) or (of_class and not isinstance(value, FUNCTIONS) and callable(value)):
            continue  # children are called as they are at the time
        if type(value) in (list, dict) and is_constant(tuple(value.values() if type(value) is dict else value)):
            yield paths[identity], name, value.copy()
        elif isinstance(value, FUNCTIONS) or is_constant(value):
            yield paths[identity], name, value
        else:
            raise Untraceable(f"its forward reads the attribute {name}, a {type(value).__name__}")
