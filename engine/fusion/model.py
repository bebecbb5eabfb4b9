"""fuse and unfuse: every module of a model that calls chains gets a forward that computes them by the operator."""

from collections.abc import Iterator

from torch import fx, nn

from engine.fusion.chains.classify import Step, conv_tensors, step_of_module, weight_of
from engine.fusion.chains.matching import Found, find
from engine.fusion.chains.mutation import AltersInput, altered
from engine.fusion.chains.savings import Savings, expected, too_small
from engine.fusion.check import check
from engine.fusion.forward import Plan, exchange, is_fused, restore
from engine.fusion.report import Entry, FuseReport
from engine.fusion.tracing.bytecode import is_torch, may_write
from engine.fusion.tracing.tracer import Traced, Untraceable, trace

FITTING = (Step("conv", "1"), Step("conv", "2"))


def fuse(model: nn.Module, *, example_inputs: object = None, strict: bool = False) -> FuseReport:
    """Lets a model compute its chains of nearest x2, 3x3 convolution, activation and nearest /2 in one operator each.

    In place. The modules stay where they are with their parameters, so optimisers, checkpoints, EMA copies and hooks
    stay valid; what changes is the forward of the modules that call the chains. Each call of it looks first whether the
    module is as it was (no new hooks, options or parametrisations), and else runs the module's own forward. What
    could change a result is left alone and reported. Fusing a fused model starts afresh.

    example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments for the model. With it the outputs are
                    compared with those before (at most twice eager's error against float64 and a floor, as of the
                    operator), the backward pass is tried, the products saved are counted, and what is too small to gain
                    is left. Where outputs differ, everything is restored and reported as left.
    strict:         nothing that looked like a chain may be left, but where there is nothing to gain: then everything is
                    restored and ValueError raised.

    While a fused model is exported (torch.export, ONNX) or traced, it runs its own forward. A pickled model
    (torch.save(model)) comes back as it was before fusing.
    Raises ValueError where the model cannot run on example_inputs, and as `strict` says.
    """
    unfuse(model)
    report = _Fusing(model, set()).report
    if example_inputs is not None and report.replaced:
        report = _checked(model, example_inputs, report)
    if strict and report.refused:
        unfuse(model)
        raise ValueError(f"fuse: left in strict mode: {'; '.join(': '.join(entry) for entry in report.refused)}")
    return report


def unfuse(model: nn.Module) -> nn.Module:
    """Gives every module that `fuse` changed its own forward again; returns the model."""
    for module in model.modules():
        if is_fused(module):
            restore(module)
    return model


def _checked(model: nn.Module, example_inputs: object, report: FuseReport) -> FuseReport:
    """The report after the model ran on its example inputs; fused again without what they show not to pay."""

    savings = Savings(model, [entry.path for entry in report.replaced])
    wrong, error = check(model, example_inputs, savings)
    alone = {entry.path for entry in report.replaced if entry.pattern == "conv 3x3" and savings.shapes[entry.path]}
    small = {path for path in alone if all(too_small(s, savings.weights[path]) for s in savings.shapes[path])}
    if small and not wrong:
        unfuse(model)
        report = _Fusing(model, small).report
        if not report.replaced:
            return report
        savings = Savings(model, [entry.path for entry in report.replaced])
        wrong, error = check(model, example_inputs, savings)
    report.error = error
    if wrong:
        unfuse(model)
        for entry in report.replaced:
            report.leave(entry._replace(reason=f"{wrong}: restored"))
        report.replaced = []
    else:
        report.count(savings)
    return report


class _Fusing:
    """One pass over a model, from the outside inwards. small: paths of convolutions whose maps are too small."""

    def __init__(self, model: nn.Module, small: set[str]):
        self.report, self.small = FuseReport(), small
        self.traces: dict[int, Traced | Untraceable] = {}
        self.done: set[int] = set()  # Sequentials whose children a fused forward calls itself
        self.altered: set[int] = set()  # modules whose results are written to by those that call them
        for path, module in list(model.named_modules()):
            if _has_own_forward(module) and id(module) not in self.done:
                self._module(path, module)

    def _module(self, path: str, module: nn.Module) -> None:
        traced = self._trace(module)
        if isinstance(traced, Untraceable):
            self._leave(path, module, str(traced))
            return
        found = self._find(path, module, traced)
        crossing = _crossing(found, traced)
        if crossing != traced.inlined:
            traced = trace(module, crossing)
            found = self._find(path, module, traced)
        self.done |= {id(module.get_submodule(name)) for name in traced.inlined}
        self._mark_altered(module, traced)
        for conv, pattern, reason in found.skipped:
            self.report.leave(Entry(_joined(path, conv), pattern, reason))
        if found.chains:
            for chain in found.chains:
                saving = expected(weight_of(chain.conv, module), chain.resize)
                saving += f"; {chain.normalised} after it stays" if chain.normalised else ""
                self.report.replaced.append(Entry(_joined(path, chain.conv), chain.pattern, saving))
            exchange(module, [Plan(traced, found.chains, module), *self._of_other_calls(path, module, traced)])

    def _of_other_calls(self, path: str, module: nn.Module, traced: Traced) -> Iterator[Plan]:
        """Plans for evaluation of a module that is in training, or the other way round, where its forward asks, and for
        calls with None for all but the first argument."""
        modes = (module.training, not module.training) if traced.asks_training else (module.training,)
        for training in modes:
            for first_alone in (False, True) if len(traced.inputs) > 1 else (False,):
                if training == module.training and not first_alone:
                    continue
                try:
                    other = trace(module, traced.inlined, training, first_alone)
                except Untraceable:
                    continue
                if chains := self._find(path, module, other).chains:
                    yield Plan(other, chains, module)

    def _trace(self, module: nn.Module) -> Traced | Untraceable:
        if id(module) not in self.traces:
            try:
                self.traces[id(module)] = trace(module, None)
            except Untraceable as why:
                self.traces[id(module)] = why
        return self.traces[id(module)]

    def _find(self, path: str, module: nn.Module, traced: Traced) -> Found:
        found = find(traced.graph, module, self._altering(module), id(module) in self.altered)
        for chain in list(found.chains):
            if _joined(path, chain.conv) in self.small and chain.alone:
                found.chains.remove(chain)
                found.skipped.append((chain.conv, chain.pattern, "nothing to gain: its maps are small"))
        return found

    def _altering(self, module: nn.Module) -> AltersInput:
        return lambda name: self._alters_input(module.get_submodule(name))

    def _alters_input(self, module: nn.Module) -> bool:
        """Whether calling a module may write into its input."""
        if not _has_own_forward(module):
            return getattr(module, "inplace", False) is True
        traced = self._trace(module)
        if isinstance(traced, Untraceable):
            return may_write(module) or any(getattr(part, "inplace", False) is True for part in module.modules())
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
            self.report.leave(Entry(path, "forward", why))
        if id(module) in self.altered or may_write(module) or any(map(self._alters_input, children)):
            self.altered |= set(map(id, children))


def _has_own_forward(module: nn.Module) -> bool:
    kind = type(module)
    return (kind is nn.Sequential or not is_torch(kind)) and kind.forward is not nn.Module.forward


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
