"""engine.fuse(model): any torch model's upsample, convolution and activation chains through the fused operator."""

import sys
import types
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import fx, nn

from engine.fusion.chains import Found, Step, altered, conv_tensors, find, step_of_module
from engine.fusion.check import Savings, check
from engine.fusion.forward import Plan, exchange, is_fused, restore
from engine.fusion.trace import Traced, Untraceable, trace
from engine.fusion.watch import writes_in_place

FITTING = (Step("conv", "1"), Step("conv", "2"))


class Entry(NamedTuple):
    """One line of a report: the convolution's (or module's) path, the chain, and what it saves or why it stays."""

    path: str
    pattern: str
    reason: str


class FuseReport:
    """What `fuse` replaced and what it left: two lists of (module path, pattern, reason).

    error: the norm-wise relative error (of the fused outputs, of eager's, what is allowed); None without example_inputs
    """

    def __init__(self) -> None:
        self.replaced: list[Entry] = []
        self.skipped: list[Entry] = []
        self.error: tuple[float, float, float] | None = None

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} chains fused, {len(self.skipped)} left as they were"]
        for title, entries in (("fused", self.replaced), ("left", self.skipped)):
            width, wide = (max((len(entry[i]) for entry in entries), default=0) for i in (0, 1))
            lines += [f"  {title:5}  {e.path:{width}}  {e.pattern:{wide}}  {e.reason}".rstrip() for e in entries]
        if self.error:
            lines.append("  outputs: error {:.1e}, eager {:.1e}, allowed {:.1e}".format(*self.error))
        elif self.replaced:
            lines.append("  give example_inputs to compare the outputs and count the products saved")
        return "\n".join(lines)

    __repr__ = __str__


def fuse(model: nn.Module, *, example_inputs: object = None, strict: bool = False) -> FuseReport:
    """Lets a model compute its chains of nearest x2, 3x3 convolution, activation and nearest /2 in one operator each.

    In place. The modules stay where they are with their parameters, so optimisers, checkpoints, EMA copies and hooks
    stay valid; what changes is the forward of the modules that call the chains. Each call of it looks first whether the
    module is as it was (no new hooks, options or parametrisations), and else runs the module's own forward. What
    could change a result is left alone and reported. Fusing a fused model starts afresh.

    example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments for the model. With it the outputs are
                    compared with those before (at most twice eager's error against float64 and a floor, as of the
                    operator), the backward pass is tried, and the products saved are counted. Where they differ,
                    everything is restored and reported as left.
    strict:         nothing that looked like a chain may be left: then everything is restored and ValueError raised.

    A pickled model (torch.save(model)) comes back as it was before fusing.
    Raises ValueError where the model cannot run on example_inputs, and as `strict` says.
    """
    unfuse(model)
    report = FuseReport()
    _Fusing(model, report).run()
    if example_inputs is not None and report.replaced:
        _check(model, example_inputs, report)
    if strict and report.skipped:
        unfuse(model)
        raise ValueError(f"fuse: left in strict mode: {'; '.join(': '.join(entry) for entry in report.skipped)}")
    return report


def unfuse(model: nn.Module) -> nn.Module:
    """Gives every module that `fuse` changed its own forward again; returns the model."""
    for module in model.modules():
        if is_fused(module):
            restore(module)
    return model


def _check(model: nn.Module, example_inputs: object, report: FuseReport) -> None:
    fused = {path: module for path, module in model.named_modules() if is_fused(module)}
    classes = {path: type(module) for path, module in fused.items()}
    unfuse(model)

    def fuse_again() -> None:
        for path, module in fused.items():
            module.__class__ = classes[path]

    savings = Savings(model, [entry.path for entry in report.replaced])
    wrong, report.error = check(model, example_inputs, fuse_again, savings)
    if wrong:
        unfuse(model)
        report.skipped += [entry._replace(reason=f"{wrong}: restored") for entry in report.replaced]
        report.replaced = []
    else:
        report.replaced = [entry._replace(reason=savings.text(entry.path)) for entry in report.replaced]


class _Fusing:
    """One pass over a model, from the outside inwards."""

    def __init__(self, model: nn.Module, report: FuseReport):
        self.model, self.report = model, report
        self.traces: dict[int, Traced | Untraceable] = {}
        self.done: set[int] = set()  # Sequentials whose children a fused forward calls itself
        self.altered: set[int] = set()  # modules whose results are written to by those that call them

    def run(self) -> None:
        for path, module in list(self.model.named_modules()):
            if _has_own_forward(module) and id(module) not in self.done:
                self._module(path, module)

    def _module(self, path: str, module: nn.Module) -> None:
        traced = self._trace(module)
        if isinstance(traced, Untraceable):
            self._leave(path, module, str(traced))
            return
        found = self._find(module, traced)
        crossing = _crossing(found, traced)
        if crossing != traced.inlined:
            traced = trace(module, crossing)
            found = self._find(module, traced)
        self.done |= {id(module.get_submodule(name)) for name in traced.inlined}
        self._mark_altered(module, traced)
        for conv, pattern, reason in found.skipped:
            self.report.skipped.append(Entry(_joined(path, conv), pattern, reason))
        if found.chains:
            for chain in found.chains:
                self.report.replaced.append(Entry(_joined(path, chain.conv), chain.pattern, ""))
            exchange(module, Plan(traced, found.chains, module))

    def _trace(self, module: nn.Module) -> Traced | Untraceable:
        if id(module) not in self.traces:
            try:
                self.traces[id(module)] = trace(module, None)
            except Untraceable as why:
                self.traces[id(module)] = why
        return self.traces[id(module)]

    def _find(self, module: nn.Module, traced: Traced) -> Found:
        return find(traced.graph, module, self._altering(module), id(module) in self.altered)

    def _altering(self, module: nn.Module) -> Callable[[str], bool]:
        return lambda name: self._alters_input(module.get_submodule(name))

    def _alters_input(self, module: nn.Module) -> bool:
        """Whether calling a module may write into its input."""
        if not _has_own_forward(module):
            return getattr(module, "inplace", False) is True
        traced = self._trace(module)
        if isinstance(traced, Untraceable):
            return writes_in_place(module) or any(getattr(part, "inplace", False) is True for part in module.modules())
        inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
        return any(altered(node, module, self._altering(module)) for node in inputs)

    def _mark_altered(self, module: nn.Module, traced: Traced) -> None:
        for node in traced.graph.nodes:
            if node.op == "call_module" and altered(node, module, self._altering(module), id(module) in self.altered):
                self.altered.add(id(module.get_submodule(node.target)))

    def _leave(self, path: str, module: nn.Module, why: str) -> None:
        """Enters a module whose forward stays; what it does to its children's results can only be guessed."""
        children = list(_called_children(module))
        if any(step_of_module(child) in FITTING for child in children):
            self.report.skipped.append(Entry(path, "forward", why))
        if id(module) in self.altered or writes_in_place(module) or any(map(self._alters_input, children)):
            self.altered |= set(map(id, children))


def _has_own_forward(module: nn.Module) -> bool:
    kind = type(module)
    own = kind is nn.Sequential or not kind.__module__.startswith("torch.")
    return own and kind.forward is not nn.Module.forward


def _called_children(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) in (nn.ModuleList, nn.ModuleDict):
            yield from _called_children(child)
        else:
            yield child


def _crossing(found: Found, traced: Traced) -> set[str]:
    """The inlined Sequentials that share a chain with what is outside them; the others are fused on their own."""
    needed: set[str] = set()
    for chain in found.chains:
        owners = {_owner(node, traced.inlined) for node in chain.nodes}
        if len(owners) > 1:
            needed |= {name for name in traced.inlined for owner in owners if f"{owner}.".startswith(f"{name}.")}
    return needed


def _owner(node: fx.Node, inlined: set[str]) -> str:
    if node.op != "call_module":
        return ""
    return max((name for name in inlined if node.target.startswith(f"{name}.")), key=len, default="")


def _joined(path: str, conv: fx.Node) -> str:
    """The convolution's path from the model: of the module, or of the weight that a function is given."""
    if conv.op == "call_module":
        name = conv.target
    else:
        weight = conv_tensors(conv)[0]
        name = weight.target if isinstance(weight, fx.Node) and weight.op == "get_attr" else conv.name
    return f"{path}.{name}" if path else name


class _Callable(types.ModuleType):
    """This module is what `engine.fuse` is after any import of it; so it can be called."""

    def __call__(self, model: nn.Module, *, example_inputs: object = None, strict: bool = False) -> FuseReport:
        return fuse(model, example_inputs=example_inputs, strict=strict)


_Callable.__call__.__doc__ = fuse.__doc__
sys.modules[__name__].__class__ = _Callable
