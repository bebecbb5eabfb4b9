"""Traces the forward of a module into a graph, or says why its graph would not stand for it.

A trace follows one path through the Python code. So only code is traced whose path hangs on nothing but plain
attributes and the inputs' shapes and dtypes, which are noted and compared at every call of the fused forward.
"""

import inspect
import operator
import types
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from engine.fusion.watch import Refused, Watch, is_foreign

PLAIN = (bool, int, float, str, type(None), torch.dtype, types.FunctionType, types.BuiltinFunctionType)
# what of a tensor is known from the outside: a branch may hang on it, and is compared at every call
METADATA = {
    *("shape", "dtype", "device", "ndim", "is_cuda", "size", "dim", "numel", "nelement", "ndimension", "is_contiguous"),
    *("is_floating_point", "is_complex", "stride"),
}
ATTEMPTS = 8  # at a path through such branches


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
    conditions, answers: a graph of what branches on the inputs' shapes and dtypes asked, and the answers taken
    """

    graph: fx.Graph
    inputs: list[str]
    order: list[str]
    defaults: dict[str, object]
    inlined: set[str]
    values: list[tuple[str, str, object]]
    conditions: fx.Graph
    answers: list[bool]


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
    """Child modules stay calls, but for the plain Sequentials named in `inlined` (None: all without hooks).

    decisions: answers to the first questions about the inputs' shapes and dtypes; to all others it is no
    """

    proxy_buffer_attributes = True

    def __init__(self, inlined: set[str] | None, decisions: list[bool]):
        super().__init__()
        self.asked, self.inlined = inlined, set()
        self.decisions, self.taken = decisions, []
        self.switches = _switches()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        if _switches() != self.switches:
            raise Untraceable("its forward switches gradients or autocast")
        return _Proxy(node, self)

    def to_bool(self, proxy: fx.Proxy) -> bool:
        if not _is_metadata(proxy.node):
            return super().to_bool(proxy)
        given = self.decisions[len(self.taken) :]
        self.taken.append((proxy.node, given[0] if given else False))
        return self.taken[-1][1]

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        leaf = type(module) is not nn.Sequential or (self.asked is not None and name not in self.asked)
        leaf = leaf or bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        if not leaf:
            self.inlined.add(name)
        return leaf


def _switches() -> tuple[bool, ...]:
    autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def trace(module: nn.Module, inlined: set[str] | None) -> Traced:
    """The graph of a module's forward for tensors as required arguments. Raises Untraceable.

    inlined: the Sequential children that become part of the graph, by name; None: all that can.
    """
    kind = type(module)
    if "forward" in vars(module) or kind.__call__ is not nn.Module.__call__:
        raise Untraceable("its forward is replaced on the instance" if "forward" in vars(module) else "own __call__")
    if not isinstance(kind.forward, types.FunctionType) or hasattr(kind.forward, "__wrapped__"):
        raise Untraceable("its forward is decorated or not written in Python")
    inputs, order, defaults = _arguments(kind.forward)
    before, watch = _state(module), Watch()
    module.__class__ = _with_inputs_alone(kind, inputs)
    try:
        with watch:
            tracer, graph = _first_path(module, inlined)
        if not watch.complete:
            # Python 3.13 reports the instructions of code from the second time on that it was asked to
            watch = Watch()
            with watch:
                tracer, graph = _first_path(module, inlined)
    except Untraceable:
        raise
    except (Exception, Refused) as error:
        # whatever the code raises when it meets a stand-in: it cannot be traced
        raise Untraceable(watch.why or f"its forward cannot be traced ({type(error).__name__})") from error
    finally:
        module.__class__ = kind
        changed = _restore(module, before)
    if watch.why or changed:
        raise Untraceable(watch.why or "its forward makes tensors or changes the module's state")
    if not watch.complete:
        raise Untraceable("this Python does not let its forward be watched")
    conditions = _split_off(graph, tracer.taken)
    values = list(_values_read(module, watch.names))
    return Traced(graph, inputs, order, defaults, tracer.inlined, values, conditions, [a for _, a in tracer.taken])


def _first_path(module: nn.Module, inlined: set[str] | None) -> tuple[_Tracer, fx.Graph]:
    """The first path that can be traced, branches on the inputs' shapes and dtypes not taken where that goes."""
    decisions: list[bool] = []
    for _ in range(ATTEMPTS):
        tracer = _Tracer(inlined, decisions)
        try:
            return tracer, tracer.trace(module)
        except Untraceable:
            raise
        except Exception:
            # an assertion that does not hold, say: the last branch that was not taken is
            decisions = [answer for _, answer in tracer.taken]
            while decisions and decisions[-1]:
                decisions.pop()
            if not decisions:
                raise
            decisions[-1] = True
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


def _values_read(module: nn.Module, names: set[str]) -> Iterator[tuple[str, str, object]]:
    """The plain attributes of these names. Raises Untraceable where one has another value, which may change unseen."""
    for path, part in module.named_modules():
        if path and type(part).__module__.startswith("torch."):
            continue
        for name in sorted(names & vars(part).keys()):
            value = vars(part)[name]
            if not _plain(value) and not (isinstance(value, (list, tuple)) and all(map(_plain, value))):
                raise Untraceable(f"its forward reads the attribute {name}, a {type(value).__name__}")
            yield path, name, list(value) if isinstance(value, list) else value


def _plain(value: object) -> bool:
    return isinstance(value, PLAIN) and not (isinstance(value, types.FunctionType) and is_foreign(value))
