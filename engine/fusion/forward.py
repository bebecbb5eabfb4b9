"""The fused forward: what one chain runs, and a module's class exchanged for one with that forward."""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module

from engine import ops
from engine.fusion.chains.classify import DTYPES, conv_tensors, hooked, step_of_module
from engine.fusion.chains.matching import Chain, source_of
from engine.fusion.chains.savings import too_small
from engine.fusion.tracing.module_state import ABSENT
from engine.fusion.tracing.tracer import Traced
from engine.kernels.resize_conv_act.reference import ACTIVATIONS

# of torch: hooks on the calls of every module
GLOBAL_HOOKS = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)


def run_chain(
    x: Tensor, weight: Tensor, bias: Tensor | None, planar: bool | None, resize: str, activation: str, slope: float
) -> Tensor:
    """One chain by the operator, or by torch where the operator does not take the tensors.

    x (B, C, H, W); weight (Cout, C, 3, 3); bias (Cout,) or None
    planar: whether torch's result would be contiguous: so is this one then; None: the result stays channels_last
    resize: of Chain

    A convolution alone runs as written where its maps are too small to gain.
    """
    alone = resize == activation == "none"
    if not _suits(x, weight, bias, resize) or (alone and too_small(x.shape, weight)):
        return _as_written(x, weight, bias, resize, activation, slope)
    kept = resize if resize in ("none", "up") else "down"
    y = ops.resize_conv_act(x, weight, bias, resize=kept, activation=activation, negative_slope=slope)
    return y.contiguous() if planar and not _channels_last(weight) else y


def is_planar(x: Tensor) -> bool:
    """Whether torch would make a contiguous result of x."""
    return not (x.dim() == 4 and _channels_last(x))


def _channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None, resize: str) -> bool:
    if x.dim() != 4 or x.shape[1] != weight.shape[1] or 0 in x.shape[1:] or x.device != weight.device:
        return False
    if resize == "nearest /2" and (x.shape[2] % 2 or x.shape[3] % 2):
        return False  # torch drops the last row and column, the operator keeps them
    if x.device.type not in ("cpu", "cuda") or x.dtype not in DTYPES:
        return False
    if torch.is_autocast_enabled(x.device.type):
        taken = (torch.float32, torch.get_autocast_dtype(x.device.type))
        return weight.dtype in taken and (bias is None or bias.dtype in taken)
    return weight.dtype == x.dtype and (bias is None or bias.dtype == x.dtype)


def _as_written(x: Tensor, weight: Tensor, bias: Tensor | None, resize: str, activation: str, slope: float) -> Tensor:
    if resize == "up":
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    y = F.conv2d(x, weight, bias, stride=2 if resize == "stride 2" else 1, padding=1)
    y = ACTIVATIONS[activation](y, slope)
    if resize == "nearest /2":
        return F.interpolate(y, scale_factor=0.5, mode="nearest")
    return y[..., ::2, ::2] if resize == "slice" else y


class Plan:
    """What the fused forward of one module class and graph is, and on which conditions it holds.

    parts:  (path, type, step) of the modules whose own calls it replaces
    layout: (path, children, tensors) of the module and of the containers whose children it calls
    values, globals: as in Traced
    """

    def __init__(self, traced: Traced, chains: list[Chain], module: nn.Module):
        self.inputs, self.order, self.defaults = traced.inputs, traced.order, traced.defaults
        replaced = {n.target for chain in chains for n in chain.nodes if n.op == "call_module"} | traced.inlined
        found = [(path, module.get_submodule(path)) for path in sorted(replaced)]
        self.parts = [(_atoms(path), type(part), step_of_module(part)) for path, part in found]
        containers = [(path, _at(module, path)) for path in _containers(module, traced.inlined)]
        self.layout = [(path, _children(part), _tensors(part)) for path, part in containers]
        self.values = [(_atoms(path), name, value) for path, name, value in traced.values]
        self.globals = traced.globals
        self.conditions, self.answers = _compiled(traced.conditions), tuple(traced.answers)
        rewrite(traced.graph, chains)
        self.run = _compiled(traced.graph)

    def tensors(self, args: tuple, kwargs: dict[str, object]) -> list[Tensor] | None:
        """The graph's inputs of a call; None where it is a call of another kind than was traced."""
        if len(args) > len(self.order):
            return None
        given = dict(zip(self.order, args, strict=False))
        if given.keys() & kwargs.keys():
            return None
        given.update(kwargs)
        for name, value in given.items():
            if name not in self.inputs and (name not in self.defaults or value is not self.defaults[name]):
                return None
        found = [given.get(name) for name in self.inputs]
        if not all(isinstance(value, Tensor) for value in found):
            return None
        if self.answers and tuple(map(bool, self.conditions(None, *found))) != self.answers:
            return None
        return found

    def holds(self, module: nn.Module) -> bool:
        """Whether the module is still as it was traced, and nobody listens to the calls that fusing leaves out."""
        if any(GLOBAL_HOOKS):
            return False
        for path, kind, step in self.parts:
            part = _at(module, path)
            if type(part) is not kind or hooked(part) or step_of_module(part) != step:
                return False
        for path, children, tensors in self.layout:
            part = _at(module, path)
            if _tensors(part) != tensors or part._modules.keys() != children.keys():
                return False
            # libraries that wrap a child do so by a class derived from its own
            if not all(isinstance(part._modules[name], kind) for name, kind in children.items()):
                return False
        if any(space.get(name) != value for space, name, value in self.globals):
            return False
        return all(getattr(_at(module, path), name, ABSENT) == value for path, name, value in self.values)


def _at(module: nn.Module, path: tuple[str, ...]) -> nn.Module:
    for name in path:
        module = getattr(module, name)
    return module


def _atoms(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


def _children(module: nn.Module) -> dict[str, type]:
    """Classes of the children by name, without what fusing made of them."""
    return {name: _original(type(child)) for name, child in module._modules.items()}


def _tensors(module: nn.Module) -> list[tuple[str, bool]]:
    """Names of the parameters and buffers, and which of them are None."""
    return [(name, value is None) for group in (module._parameters, module._buffers) for name, value in group.items()]


def _containers(module: nn.Module, inlined: set[str]) -> list[tuple[str, ...]]:
    """Paths of the module itself, of the Sequentials inlined in it, and of its lists and dicts of modules."""
    found, waiting = [], [("", module)]
    while waiting:
        path, part = waiting.pop()
        found.append(_atoms(path))
        for name, child in part.named_children():
            below = f"{path}.{name}" if path else name
            if below in inlined or type(child) in (nn.ModuleList, nn.ModuleDict):
                waiting.append((below, child))
    return found


def rewrite(graph: fx.Graph, chains: list[Chain]) -> None:
    """Puts one call for each chain; the first of consecutive chains says how the last lays its result out."""
    planar: dict[fx.Node, fx.Node] = {}  # by the call of a chain: of its series
    firsts = {chain.nodes[0] for chain in chains}
    for chain in chains:
        first, last = chain.nodes[0], chain.nodes[-1]
        source = source_of(first)
        with graph.inserting_before(first):
            tensors = _conv_tensors(graph, chain.conv)
            of_series = planar.get(source) or graph.call_function(is_planar, (source,))
            inside = all(user in firsts for user in last.users)
            options = (None if inside else of_series, chain.resize, chain.activation, chain.slope)
            call = graph.call_function(run_chain, (source, *tensors, *options))
        call.meta = dict(last.meta)
        planar[call] = of_series
        firsts.discard(first)
        last.replace_all_uses_with(call)
        for node in reversed(chain.nodes):
            graph.erase_node(node)


def _conv_tensors(graph: fx.Graph, conv: fx.Node) -> list[fx.Node | None]:
    """Nodes of weight and bias; a module's bias may turn out None as the code runs."""
    if conv.op == "call_module":
        return [graph.create_node("get_attr", f"{conv.target}.{name}") for name in ("weight", "bias")]
    # what the graph is given is there already, what it reads may be read later only
    tensors = conv_tensors(conv)
    return [graph.create_node("get_attr", t.target) if t is not None and t.op == "get_attr" else t for t in tensors]


def _compiled(graph: fx.Graph) -> Callable:
    code = graph.python_code("self")
    space = dict(code.globals)
    exec(compile(code.src, "<fused forward>", "exec"), space)
    return space["forward"]


def exchange(module: nn.Module, plans: list[Plan]) -> None:
    """Gives this one instance a subclass of its class whose forward runs the first plan that holds, or its own.

    Its own it also runs while it is exported or traced: what comes of it needs no Kiln.
    """
    original = type(module)

    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        if not (torch.compiler.is_exporting() or torch.jit.is_tracing()):
            for plan in plans:
                if (tensors := plan.tensors(args, kwargs)) is not None and plan.holds(self):
                    return plan.run(self, *tensors)
        return original.forward(self, *args, **kwargs)

    space = {"forward": forward, "__deepcopy__": _deepcopy, "__reduce_ex__": _reduce, "_fused_from": original}
    space |= {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
    module.__class__ = type(original.__name__, (original,), space)


def is_fused(module: nn.Module) -> bool:
    """Whether the module runs a fused forward."""
    return hasattr(type(module), "_fused_from")


def restore(module: nn.Module) -> None:
    """Undoes `exchange`."""
    module.__class__ = _original(type(module))


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """The model runs as it was within the block."""
    classes = {module: type(module) for module in model.modules() if is_fused(module)}
    for module in classes:
        restore(module)
    try:
        yield
    finally:
        for module, kind in classes.items():
            module.__class__ = kind


def _original(kind: type) -> type:
    """The class without its fused forward, also where another library has derived one from that since."""
    if "_fused_from" in vars(kind):
        return kind._fused_from
    bases = tuple(map(_original, kind.__bases__))
    if bases == kind.__bases__:
        return kind
    space = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind.__name__, bases, space)


def _deepcopy(self: nn.Module, memo: dict[int, object]) -> nn.Module:
    """A copy as its own class makes it, fused like this one: the plan names modules by path, not by identity."""
    fused = type(self)
    restore(self)
    try:
        made = copy.deepcopy(self, memo)
    finally:
        self.__class__ = fused
    made.__class__ = fused
    return made


def _reduce(self: nn.Module, protocol: int) -> object:
    """A pickled module is one of its own class: it can be read without Kiln, and fused again."""
    fused = type(self)
    restore(self)
    try:
        # later protocols insist on the class that the pickler sees, which is the fused one
        return self.__reduce_ex__(min(protocol, 1))
    finally:
        self.__class__ = fused
