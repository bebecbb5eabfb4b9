"""`fuse` and `unfuse`: every module of a model that calls chains gets a forward that runs each by the operator."""

from collections.abc import Iterator

from torch import fx, nn

from engine.fusion.chains.classify import classify_module, conv_tensors, weight_of
from engine.fusion.chains.matching import NO_GAIN, Chain, Matches, NormChain, conv_of, find_chains
from engine.fusion.chains.mutation import WritesInput, comes_from_outside, is_written_later
from engine.fusion.chains.replacement import following
from engine.fusion.chains.savings import Savings, expected_saving, is_slower
from engine.fusion.check import check
from engine.fusion.forward import Plan, exchange, is_fused, restore
from engine.fusion.report import Entry, FuseReport
from engine.fusion.tracing.bytecode import is_torch, may_write
from engine.fusion.tracing.tracer import Traced, Untraceable, trace
from engine.kernels.resize_conv_act.geometry import Geometry


def fuse(model: nn.Module, *, example_inputs: object = None, strict: bool = False) -> FuseReport:
    """Lets a model compute its chains of layers in one operator each.

    A chain is a convolution with what lies around it (a padding or nearest x2 before it, an activation and nearest /2
    after it), or a normalisation with its activation, or both: a batch normalisation in evaluation is folded into the
    convolution before it.

    In place. The modules stay where they are with their parameters, so optimisers, checkpoints, EMA copies and hooks
    stay valid; what changes is the forward of the modules that call the chains. Each call of it first looks whether the
    module is as it was (no new hooks, options, methods or parametrisations), and runs the module's own forward if not.
    What could change a result is left alone and reported. Fusing a fused model starts afresh.

    example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments for the model. With it the outputs are
                    compared with those before (allowed: at most twice eager's error against float64, and the operator's
                    floor), the backward pass is tried, the products saved are counted, and what loses on maps of
                    this size is left. Where outputs differ, everything is restored and reported as left.
    strict:         whether to restore everything and raise ValueError if anything that looked like a chain was left,
                    except where there is nothing to gain.

    While a fused model is exported (torch.export, ONNX) or traced, it runs its own forward. A pickled model
    (torch.save(model)) comes back as it was before fusing.
    Raises ValueError where the model cannot run on example_inputs, and as `strict` says.
    """
    unfuse(model)
    fuser = _Fuser(model, set())
    report = fuser.report
    if example_inputs is not None and report.replaced:
        report = _checked(model, example_inputs, fuser)
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


def _checked(model: nn.Module, example_inputs: object, fuser: "_Fuser") -> FuseReport:
    """The report after the model ran on its example inputs; the model is fused again without what they show not to pay.

    fuser: of the model as it is fused now
    """
    savings = Savings(model, fuser.convolutions)
    wrong, errors = check(model, example_inputs, savings, len(fuser.report.replaced))
    slow = set() if wrong else _too_slow(fuser, savings)
    if slow:
        unfuse(model)
        fuser = _Fuser(model, slow)
        if not fuser.report.replaced:
            return fuser.report
        savings = Savings(model, fuser.convolutions)
        wrong, errors = check(model, example_inputs, savings, len(fuser.report.replaced))
    report = fuser.report
    report.error = errors
    if wrong:
        unfuse(model)
        for entry in report.replaced:
            report.leave(entry._replace(reason=f"{wrong}: restored"))
        report.replaced = []
    else:
        report.count(savings)
    return report


def _too_slow(fuser: "_Fuser", savings: Savings) -> set[str]:
    """Paths of convolutions without resize that were called, and lose on the maps of every call, in training too."""

    def loses(path: str, shape: tuple[int, ...]) -> bool:
        chain = savings.weights[path], savings.chains[path][0], fuser.sized[path]
        return all(is_slower(shape, *chain, training) for training in (False, True))

    called = {path for path in fuser.sized if savings.shapes[path]}
    return {path for path in called if all(loses(path, shape) for shape in savings.shapes[path])}


class _Fuser:
    """One pass over a model, from the outside inwards, that fuses it and writes the report.

    slow: paths of convolutions without resize that are known to lose on their maps

    convolutions: the Geometry and the resize of each replaced convolution by its path; sized: of those without resize
    how many layers after them they take over, a normalisation that is folded among them
    """

    def __init__(self, model: nn.Module, slow: set[str]):
        self.report, self.slow = FuseReport(), slow
        self.convolutions: dict[str, tuple[Geometry, str]] = {}
        self.sized: dict[str, int] = {}
        self.traces: dict[int, Traced | Untraceable] = {}  # by the identity of the module, like the two below
        self.done: set[int] = set()  # Sequentials whose children a fused forward calls itself
        self.written: set[int] = set()  # modules whose results are written to by those that call them
        self.exposed = {id(model)}  # modules whose inputs and results code that has no graph may write to
        for path, module in list(model.named_modules()):
            if _has_own_forward(module) and id(module) not in self.done:
                self._module(path, module)

    def _module(self, path: str, module: nn.Module) -> None:
        """Fuses one module, or enters why it is left."""
        traced = self._trace(module)
        if isinstance(traced, Untraceable):
            self._leave(path, module, str(traced))
            return
        matches = self._matches(path, module, traced)
        crossing = _crossing(matches, traced, module)
        if crossing != traced.inlined:
            traced = trace(module, crossing)
            matches = self._matches(path, module, traced)
        self.done |= {id(module.get_submodule(name)) for name in traced.inlined}
        self._mark_written(module, traced)
        self._mark_exposed(module, traced)
        for conv, pattern, reason in matches.skipped:
            self.report.leave(Entry(_joined(path, conv), pattern, reason))
        if matches.chains:
            self.report.replaced += [self._replaced(path, module, chain) for chain in matches.chains]
            plan = Plan(traced, matches.chains, module, id(module) in self.exposed)
            exchange(module, [plan, *self._of_other_calls(path, module, traced)])

    def _replaced(self, path: str, module: nn.Module, chain: Chain | NormChain) -> Entry:
        """Enters a chain that is replaced; returns its line of the report."""
        conv = conv_of(chain)
        if conv is None:
            parts = ["statistics", "result", *["sum"] * bool(chain.sum), *["activation"] * (chain.activation != "none")]
            return Entry(
                _joined(path, chain.head), chain.pattern, f"{', '.join(parts[:-1])} and {parts[-1]} in one operator"
            )
        saving = expected_saving(weight_of(conv.head, module), conv.geometry, conv.resize)
        joined = _joined(path, conv.head)
        self.convolutions[joined] = conv.geometry, conv.resize
        if isinstance(chain, NormChain):
            saving += "; folded in evaluation" if chain.conv_pays else ", in evaluation: folded"
        elif chain.normalised:
            saving += f"; {chain.normalised} after it stays"
        if conv.resize == "none":
            self.sized[joined] = conv.operations if conv is chain else 1 + chain.folded_operations
        return Entry(joined, chain.pattern, saving)

    def _of_other_calls(self, path: str, module: nn.Module, traced: Traced) -> Iterator[Plan]:
        """Plans for other calls than the traced one.

        These are calls in the other mode (training, evaluation), where the forward asks for the mode, and calls with
        None for all arguments after the first.
        """
        modes = (module.training, not module.training) if traced.asks_training else (module.training,)
        for training in modes:
            for first_alone in (False, True) if len(traced.inputs) > 1 else (False,):
                if training == module.training and not first_alone:
                    continue
                try:
                    other = trace(module, traced.inlined, training, first_alone)
                except Untraceable:
                    continue
                if chains := self._matches(path, module, other).chains:
                    yield Plan(other, chains, module, id(module) in self.exposed)

    def _trace(self, module: nn.Module) -> Traced | Untraceable:
        """The trace of a module with all Sequentials inlined, made once; or why there is none."""
        if id(module) not in self.traces:
            try:
                self.traces[id(module)] = trace(module, None)
            except Untraceable as why:
                self.traces[id(module)] = why
        return self.traces[id(module)]

    def _matches(self, path: str, module: nn.Module, traced: Traced) -> Matches:
        """The chains of a traced module, without those that are known to lose."""
        matches = find_chains(traced.graph, module, self._child_writes(module), id(module) in self.written)
        for chain in list(matches.chains):
            conv = conv_of(chain)
            if conv and _joined(path, conv.head) in self.slow:
                matches.leave_conv(chain, f"{NO_GAIN}: slower on maps of this size")
        return matches

    def _child_writes(self, module: nn.Module) -> WritesInput:
        return lambda name: self._writes_input(module.get_submodule(name))

    def _writes_input(self, module: nn.Module) -> bool:
        """Whether calling a module may write into its input."""
        if not _has_own_forward(module):
            return getattr(module, "inplace", False) is True
        traced = self._trace(module)
        if isinstance(traced, Untraceable):
            return may_write(module) or any(getattr(part, "inplace", False) is True for part in module.modules())
        inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
        return any(is_written_later(node, module, self._child_writes(module)) for node in inputs)

    def _mark_written(self, module: nn.Module, traced: Traced) -> None:
        """Enters into self.written the children whose results the module writes to."""
        writes, output_is_written = self._child_writes(module), id(module) in self.written
        for node in traced.graph.nodes:
            if node.op == "call_module" and is_written_later(node, module, writes, output_is_written):
                self.written.add(id(module.get_submodule(node.target)))

    def _mark_exposed(self, module: nn.Module, traced: Traced) -> None:
        """Enters into self.exposed the children whose inputs or results leave the module, or whose inputs it writes to.

        Where it writes to results, that is entered in self.written.
        """
        writes = self._child_writes(module)
        for node in traced.graph.nodes:
            if node.op == "call_module":
                written = any(is_written_later(source, module, writes) for source in node.all_input_nodes)
                leaves = is_written_later(node, module, writes, True)
                leaves = leaves or any(comes_from_outside(source, module) for source in node.all_input_nodes)
                if written or (leaves and id(module) in self.exposed):
                    self.exposed.add(id(module.get_submodule(node.target)))

    def _leave(self, path: str, module: nn.Module, why: str) -> None:
        """Enters a module whose forward stays.

        Without a graph it is unknown which of its children's results it writes to: all or none are taken to be written.
        """
        children = list(_called_children(module))
        self.exposed |= set(map(id, children))
        if any(step and step.kind == "conv" and not step.reason for step in map(classify_module, children)):
            self.report.leave(Entry(path, "forward", why))
        if id(module) in self.written or may_write(module) or any(map(self._writes_input, children)):
            self.written |= set(map(id, children))


def _has_own_forward(module: nn.Module) -> bool:
    """Whether the module is a Sequential or has a forward that is not torch's: only these call chains."""
    kind = type(module)
    return (kind is nn.Sequential or not is_torch(kind)) and kind.forward is not nn.Module.forward


def _called_children(module: nn.Module) -> Iterator[nn.Module]:
    """The children of a module, and in place of a list or dict of modules what it holds."""
    for child in module.children():
        if type(child) in (nn.ModuleList, nn.ModuleDict):
            yield from _called_children(child)
        else:
            yield child


def _crossing(matches: Matches, traced: Traced, module: nn.Module) -> set[str]:
    """The inlined Sequentials that share a chain, or chains that follow one another, with what is outside them.

    The others are fused on their own.
    """
    crossing: set[str] = set()
    firsts = {chain.nodes[0] for chain in matches.chains}
    for chain in matches.chains:
        next_ones = filter(None, following(chain.nodes[-1], firsts, module))
        owners = {_owner(node, traced.inlined) for node in (*chain.nodes, *next_ones)}
        if len(owners) > 1:
            crossing |= {name for name in traced.inlined for owner in owners if f"{owner}.".startswith(f"{name}.")}
    return crossing


def _owner(node: fx.Node, inlined: set[str]) -> str:
    """The innermost inlined Sequential that a node comes from; "" where it comes from the module itself."""
    if node.op != "call_module":
        return ""
    return max((name for name in inlined if node.target.startswith(f"{name}.")), key=len, default="")


def _joined(path: str, conv: fx.Node) -> str:
    """The path from the model of a convolution: of its module, or of the weight that its function is given."""
    if conv.op == "call_module":
        name = conv.target
    else:
        weight = conv_tensors(conv)[0]
        name = weight.target if isinstance(weight, fx.Node) and weight.op == "get_attr" else conv.name
    return f"{path}.{name}" if path else name
