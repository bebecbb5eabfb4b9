"""The fused forward: what one chain runs, and a module's class exchanged for one with that forward."""

import copy
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module

from engine import ops
from engine.fusion.chains import Chain, conv_tensors, hooked, step_of_module
from engine.fusion.trace import Traced
from engine.kernels.resize_conv_act.reference import ACTIVATIONS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# of torch: hooks on the calls of every module
GLOBAL_HOOKS = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)


def run_chain(
    x: Tensor, weight: Tensor, bias: Tensor | None, planar: bool | None, resize: str, activation: str, slope: float
) -> Tensor:
    """One chain by the operator, or by torch where the operator does not take the tensors.

    x (B, C, H, W); weight (Cout, C, 3, 3); bias (Cout,) or None
    planar: whether torch's result would be contiguous: so is this one then; None: the result stays channels_last
    resize: of Chain
    """
    if not _suits(x, weight, bias, resize):
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
    layout: (path, structure) of the module and of the containers whose children it calls
    values: as in Traced
    """

    def __init__(self, traced: Traced, chains: list[Chain], module: nn.Module):
        self.inputs, self.order, self.defaults = traced.inputs, traced.order, traced.defaults
        replaced = {n.target for chain in chains for n in chain.nodes if n.op == "call_module"} | traced.inlined
        found = [(path, module.get_submodule(path)) for path in sorted(replaced)]
        self.parts = [(_atoms(path), type(part), step_of_module(part)) for path, part in found]
        self.layout = [(path, _structure(_at(module, path))) for path in _containers(module, traced.inlined)]
        self.values = [(_atoms(path), name, value) for path, name, value in traced.values]
        self.conditions, self.answers = _compiled(traced.conditions), tuple(traced.answers)
        self.run = _compiled(_rewritten(traced.graph, chains))

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
        for path, structure in self.layout:
            if _structure(_at(module, path)) != structure:
                return False
        return all(getattr(_at(module, path), name) == value for path, name, value in self.values)


def _at(module: nn.Module, path: tuple[str, ...]) -> nn.Module:
    for name in path:
        module = getattr(module, name)
    return module


def _atoms(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


def _structure(module: nn.Module) -> list[tuple[str, bool]]:
    """Which children, parameters and buffers there are, and which of them are None."""
    members = (module._modules, module._parameters, module._buffers)
    return [(name, value is None) for group in members for name, value in group.items()]


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


def _rewritten(graph: fx.Graph, chains: list[Chain]) -> fx.Graph:
    """The graph with one call for each chain; the first of consecutive chains says how the last lays its result out."""
    planar: dict[fx.Node, fx.Node] = {}  # by the call of a chain: of its series
    firsts = {chain.nodes[0] for chain in chains}
    for chain in chains:
        first, last = chain.nodes[0], chain.nodes[-1]
        source = first.args[0] if first.args else first.kwargs["input"]
        with graph.inserting_before(first):
            tensors = _conv_tensors(graph, chain.conv)
            of_series = planar.get(source) or graph.call_function(is_planar, (source,))
            inside = all(user in firsts for user in last.users)
            options = (None if inside else of_series, chain.resize, chain.activation, chain.slope)
            call = graph.call_function(run_chain, (source, *tensors, *options))
        planar[call] = of_series
        firsts.discard(first)
        last.replace_all_uses_with(call)
        for node in reversed(chain.nodes):
            graph.erase_node(node)
    return graph


def _conv_tensors(graph: fx.Graph, conv: fx.Node) -> list[fx.Node | None]:
    """Nodes of weight and bias; a module's bias may turn out None as the code runs."""
    if conv.op == "call_module":
        names = [f"{conv.target}.weight", f"{conv.target}.bias"]
    else:
        names = [None if node is None else node.target for node in conv_tensors(conv)]
    return [None if name is None else graph.create_node("get_attr", name) for name in names]


def _compiled(graph: fx.Graph) -> Callable:
    code = graph.python_code("self")
    space = dict(code.globals)
    exec(compile(code.src, "<fused forward>", "exec"), space)
    return space["forward"]


def exchange(module: nn.Module, plan: Plan) -> None:
    """Gives this one instance a subclass of its class whose forward runs the plan, wherever the plan holds."""
    original = type(module)

    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        tensors = plan.tensors(args, kwargs)
        if tensors is None or not plan.holds(self):
            return original.forward(self, *args, **kwargs)
        return plan.run(self, *tensors)

    space = {"forward": forward, "__deepcopy__": _deepcopy, "__reduce_ex__": _reduce, "_fused_from": original}
    space |= {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
    module.__class__ = type(original.__name__, (original,), space)


def is_fused(module: nn.Module) -> bool:
    """Whether the module runs a fused forward."""
    return "_fused_from" in vars(type(module))


def restore(module: nn.Module) -> None:
    """Undoes `exchange`."""
    module.__class__ = type(module)._fused_from


def _deepcopy(self: nn.Module, memo: dict[int, object]) -> nn.Module:
    """A copy as its own class makes it, fused like this one: the plan names modules by path, not by identity."""
    fused = type(self)
    self.__class__ = fused._fused_from
    try:
        made = copy.deepcopy(self, memo)
    finally:
        self.__class__ = fused
    made.__class__ = fused
    return made


def _reduce(self: nn.Module, protocol: int) -> object:
    """A pickled module is one of its own class: it can be read without Kiln, and fused again."""
    fused = type(self)
    self.__class__ = fused._fused_from
    try:
        # later protocols insist on the class that the pickler sees, which is the fused one
        return self.__reduce_ex__(min(protocol, 1))
    finally:
        self.__class__ = fused
