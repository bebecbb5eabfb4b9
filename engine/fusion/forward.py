"""The fused forward of a module: a Plan says what it runs and when it may; `exchange` gives it to one instance."""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from engine.fusion.chains.matching import Chain
from engine.fusion.chains.replacement import rewrite
from engine.fusion.lookups import (
    ABSENT,
    GLOBAL_HOOKS,
    PLAIN_TENSORS,
    Called,
    Layer,
    Lookups,
    methods_run,
    only_autograd_listens,
    reads_of_class,
)
from engine.fusion.tracing.tracer import Traced
from engine.kernels._dispatch import transformed


class Plan:
    """What the fused forward of one traced module runs, and the conditions under which it may.

    run:     the graph with one call for each chain, as a function of the module and the graph's inputs
    parts:   (path, Layer) of the modules whose own calls it replaces
    layout:  (path, children, tensors) of the module and of the containers whose children it calls
    lookups: the methods and functions that the module's own forward would run
    inputs, order, defaults, values, conditions, answers: as of Traced

    exposed: as of `rewrite`
    """

    def __init__(self, traced: Traced, chains: list[Chain], module: nn.Module, exposed: bool):
        self.inputs, self.order, self.defaults = traced.inputs, traced.order, traced.defaults
        paths = {n.target for chain in chains for n in chain.nodes if n.op == "call_module"} | traced.inlined
        replaced = [(path, module.get_submodule(path)) for path in sorted(paths)]
        self.parts = [(_atoms(path), Layer(part)) for path, part in replaced]
        containers = [(path, _at(module, path)) for path in _containers(module, traced.inlined)]
        self.layout = [(path, _children(part), _tensors(part)) for path, part in containers]
        self.values = [(_atoms(path), name, value) for path, name, value in traced.values]
        called = {kind: Called.of(kind) for kind in {type(part) for _, part in replaced}}
        of_tensors = sorted({node.target for node in traced.graph.nodes if node.op == "call_method"})
        methods = {kind: of_kind.methods for kind, of_kind in called.items()} | methods_run(type(module))
        methods |= {Tensor: of_tensors}
        lookups = Lookups(methods, [*traced.globals, *(read for kind in called for read in reads_of_class(kind))])
        # Dynamo takes the answer that it gets while it compiles
        self.lookups_hold = torch.compiler.assume_constant_result(lambda: lookups.are_as_they_were())
        self.conditions, self.answers = _compiled(traced.conditions), tuple(traced.answers)
        rewrite(traced.graph, chains, module, exposed)
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
        tensors = [given.get(name) for name in self.inputs]
        if not all(type(value) in PLAIN_TENSORS for value in tensors):
            return None
        if self.answers and tuple(map(bool, self.conditions(None, *tensors))) != self.answers:
            return None
        return tensors

    def holds(self, module: nn.Module) -> bool:
        """Whether the module is still as it was traced, and nobody listens to the calls that fusing leaves out."""
        if any(GLOBAL_HOOKS) or not self.lookups_hold():
            return False
        for path, layer in self.parts:
            if not layer.is_as_it_was(_at(module, path)):
                return False
        for path, children, tensors in self.layout:
            part = _at(module, path)
            if part is None or _tensors(part) != tensors or list(part._modules) != list(children):
                return False
            for name, (kind, inplace) in children.items():
                child = part._modules[name]
                # a library that wraps a child, as fully_shard does, gives it a class derived from its own
                if not isinstance(child, kind) or _inplace(child) is not inplace:
                    return False
        return all(_is_still(getattr(_at(module, path), name, ABSENT), value) for path, name, value in self.values)


def _is_still(now: object, value: object) -> bool:
    """Whether an attribute has the value that it had; of a method, whether it is the same function."""
    now = getattr(now, "__func__", now)
    return type(now) is type(value) and now == value


def _at(module: nn.Module, path: tuple[str, ...]) -> nn.Module | None:
    """The module at a path; None where there is none."""
    for name in path:
        if module is None:
            return None
        module = module._modules.get(name)
    return module


def _atoms(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


def _children(module: nn.Module) -> dict[str, tuple[type, object]]:
    """(class, inplace) of each child by name; the class of a fused child is its own class."""
    return {name: (_original(type(child)), _inplace(child)) for name, child in module._modules.items()}


def _inplace(module: nn.Module | None) -> object:
    """The option of this name; getattr of a module takes ten times as long where there is none."""
    if module is None:
        return False
    own = module.__dict__
    return own["inplace"] if "inplace" in own else getattr(type(module), "inplace", False)


def _tensors(module: nn.Module) -> list[tuple[str, bool]]:
    """(name, whether it is None) of the parameters and buffers."""
    return [(name, value is None) for group in (module._parameters, module._buffers) for name, value in group.items()]


def _containers(module: nn.Module, inlined: set[str]) -> list[tuple[str, ...]]:
    """Paths of the module itself, of the Sequentials inlined in it, and of its lists and dicts of modules."""
    paths, waiting = [], [("", module)]
    while waiting:
        path, part = waiting.pop()
        paths.append(_atoms(path))
        for name, child in part.named_children():
            below = f"{path}.{name}" if path else name
            if below in inlined or type(child) in (nn.ModuleList, nn.ModuleDict):
                waiting.append((below, child))
    return paths


def _compiled(graph: fx.Graph) -> Callable:
    code = graph.python_code("self")
    space = dict(code.globals)
    exec(compile(code.src, "<fused forward>", "exec"), space)
    return space["forward"]


def exchange(module: nn.Module, plans: list[Plan]) -> None:
    """Gives this one instance a subclass of its class, whose forward runs the first plan that holds.

    Where none holds, under modes and transforms (torch.func, forward-mode differentiation), and while the module is
    exported or traced, it runs the module's own forward: what is exported needs no Kiln.
    """
    original = type(module)

    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        alone = not transformed() if torch.compiler.is_dynamo_compiling() else only_autograd_listens()
        if alone and not (_exporting() or torch.jit.is_tracing()):
            for plan in plans:
                if (tensors := plan.tensors(args, kwargs)) is not None and plan.holds(self):
                    return plan.run(self, *tensors)
        return original.forward(self, *args, **kwargs)

    space = {"forward": forward, "__deepcopy__": _deepcopy, "__reduce_ex__": _reduce, "_fused_from": original}
    space |= {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
    module.__class__ = type(original.__name__, (original,), space)


def _exporting() -> bool:
    """Whether torch.export traces, through Dynamo or without it: the flag behind torch.compiler.is_exporting().

    Dynamo of PyTorch 2.11 takes that function itself for True within torch.compile too.
    """
    return torch.compiler._is_exporting_flag


def is_fused(module: nn.Module) -> bool:
    """Whether the module runs a fused forward."""
    return hasattr(type(module), "_fused_from")


def restore(module: nn.Module) -> None:
    """Undoes `exchange`."""
    module.__class__ = _original(type(module))


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Within the block the model runs as it did before it was fused."""
    classes = {module: type(module) for module in model.modules() if is_fused(module)}
    for module in classes:
        restore(module)
    try:
        yield
    finally:
        for module, kind in classes.items():
            module.__class__ = kind


def _original(kind: type) -> type:
    """The class without its fused forward, also where another library has since derived a class from the fused one."""
    if "_fused_from" in vars(kind):
        return kind._fused_from
    bases = tuple(map(_original, kind.__bases__))
    if bases == kind.__bases__:
        return kind
    space = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind.__name__, bases, space)


@contextmanager
def _of_own_class(module: nn.Module) -> Iterator[type]:
    """Within the block the module is of its own class; yields the fused one."""
    fused = type(module)
    restore(module)
    try:
        yield fused
    finally:
        module.__class__ = fused


def _deepcopy(self: nn.Module, memo: dict[int, object]) -> nn.Module:
    """A copy as its own class makes it, fused like this one: the plans name modules by path, not by identity."""
    with _of_own_class(self) as fused:
        made = copy.deepcopy(self, memo)
    made.__class__ = fused
    return made


def _reduce(self: nn.Module, protocol: int) -> object:
    """A pickled module is one of its own class: it can be read without Kiln, and fused again."""
    with _of_own_class(self):
        # later protocols insist on the class that the pickler sees, which is the fused one
        return self.__reduce_ex__(min(protocol, 1))
