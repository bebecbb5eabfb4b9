"""Finds, in a traced graph, the chains that the operators resize_conv_act and norm_act compute in fewer passes."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import fx

from engine.fusion.chains.classify import (
    NORM_FUNCTIONS,
    Owner,
    Step,
    classify_node,
    own_statistics,
    sum_operands,
    weight_of,
)
from engine.fusion.chains.convolutions import UP, conv_name, padded
from engine.fusion.chains.mutation import WritesInput, is_written_later, writes_in_place
from engine.fusion.chains.savings import why_no_gain, why_not_folded
from engine.kernels.resize_conv_act.geometry import Geometry

NEVER: WritesInput = lambda name: False  # noqa: E731
# batch and group normalisation are replaced together with an activation, instance normalisation also alone
REPLACED_NORMS = ("BatchNorm2d", "InstanceNorm2d", "GroupNorm")
FOLDED_NORM = "BatchNorm2d"  # what a convolution's weight and bias can hold in evaluation
HALVINGS = ("nearest /2", "slice")
NO_GAIN = "nothing to gain"  # how a reason begins that says that a chain could be replaced but would not be faster
# what torch keeps of an activation for its backward pass; the operator keeps the result of all but silu
KEEP_INPUT, KEEP_RESULT = ("elu", "leaky_relu"), ("relu", "tanh", "sigmoid")


class Sum(NamedTuple):
    """A residual sum after a convolution or a normalisation.

    residual: the other tensor
    first:    whether that is the first of both, whose order of memory the sum has
    after:    whether it is added after the activation
    in_place: whether the sum as written takes the place of what it is added to, with its dtype
    """

    residual: fx.Node
    first: bool
    after: bool
    in_place: bool


@dataclass
class Chain:
    """A convolution and nodes around it that one call replaces, in the order they run in.

    head:       the convolution
    kernel, geometry: of the convolution, with the padding before it
    resize:     "none", "up", or how the result is halved: "nearest /2", "slice"
    halved_last: whether it ends with nearest /2, whose result is a tensor of its own
    sum:        the residual sum before its activation; None where there is none
    sum_left:   why the residual sum after it is left; "" where it is taken, or there is none
    normalised: the normalisation that keeps the chain from an activation; "" where there is none
    """

    head: fx.Node
    nodes: list[fx.Node]
    kernel: int
    geometry: Geometry
    resize: str = "none"
    activation: str = "none"
    slope: float = 0.0
    halved_last: bool = False
    sum: Sum | None = None
    sum_left: str = ""
    normalised: str = ""

    @property
    def keeps_more(self) -> bool:
        """Whether the operator keeps its result for the backward pass, and the modules as written keep theirs not."""
        return self.activation in KEEP_INPUT or (self.activation in KEEP_RESULT and self.halved_last)

    @property
    def keeps_input(self) -> bool:
        """Whether the operator keeps its input for the backward pass, and the modules as written keep a copy of it.

        Torch's reflected and replicated borders keep their input too.
        """
        mode = self.geometry.padding_mode
        return mode == "circular" or (mode == "zeros" and self.nodes[0] is not self.head)

    @property
    def pattern(self) -> str:
        """The chain in the words of a report."""
        parts = ["nearest x2"] if self.resize == "up" else []
        parts.append(self.name)
        parts += ["residual"] if self.sum else []
        parts += [self.activation] if self.activation != "none" else []
        parts += ["nearest /2"] if self.resize in HALVINGS else []
        return " + ".join(parts)

    @property
    def name(self) -> str:
        """Its convolution in the words of a report."""
        return conv_name(self.kernel, self.geometry)

    @property
    def operations(self) -> int:
        """How many layers after the convolution it has, but for a halving."""
        return (self.sum is not None) + (self.activation != "none")


@dataclass
class NormChain:
    """A normalisation and what lies around it, which one call of norm_act replaces.

    head: the normalisation
    conv: the convolution before it, which it is folded into in evaluation, as a chain without activation; or None
    conv_pays: whether the operator takes the convolution alone too, where nothing is folded
    sum: the residual sum in it; None where there is none
    sum_left: why the residual sum after it is left; "" where it is taken, or there is none
    """

    head: fx.Node
    nodes: list[fx.Node]
    name: str
    activation: str = "none"
    slope: float = 0.0
    conv: Chain | None = None
    conv_pays: bool = False
    sum: Sum | None = None
    sum_left: str = ""

    @property
    def pattern(self) -> str:
        """The chain in the words of a report."""
        parts = [self.conv.pattern] if self.conv else []
        parts.append(self.name)
        parts += ["residual"] if self.sum and not self.sum.after else []
        parts += [self.activation] if self.activation != "none" else []
        parts += ["residual"] if self.sum and self.sum.after else []
        return " + ".join(parts)

    @property
    def alone(self) -> bool:
        """Whether, without its convolution, it is left to torch."""
        return self.activation == "none" and self.sum is None and self.name != "InstanceNorm2d"

    @property
    def folded_operations(self) -> int:
        """How many layers after the normalisation the convolution takes over too, where it is folded into it."""
        return (self.activation != "none") + (self.sum is not None and not self.sum.after)

    def without_conv(self) -> "NormChain | None":
        """The chain without its convolution; None where nothing is left to gain."""
        nodes = [node for node in self.nodes if node not in self.conv.nodes]
        return None if self.alone else replace(self, nodes=nodes, conv=None, conv_pays=False)


def conv_of(chain: Chain | NormChain) -> Chain | None:
    """The convolution in a chain; None where there is none."""
    return chain if isinstance(chain, Chain) else chain.conv


@dataclass
class Matches:
    """The chains of one graph, and what looked like one and is left: (convolution, pattern, reason)."""

    chains: list[Chain | NormChain] = field(default_factory=list)
    skipped: list[tuple[fx.Node, str, str]] = field(default_factory=list)

    def leave_conv(self, chain: Chain | NormChain, reason: str) -> None:
        """Enters why the convolution of a chain is left; of a chain with a normalisation that may stay."""
        index, rest = self.chains.index(chain), None if isinstance(chain, Chain) else chain.without_conv()
        self.chains[index : index + 1] = [rest] if rest else []
        self.skipped.append((conv_of(chain).head, chain.pattern, reason))


def find_chains(
    graph: fx.Graph, owner: Owner, writes_input: WritesInput = NEVER, output_is_written: bool = False
) -> Matches:
    """The chains of a graph. writes_input, output_is_written: as of `is_written_later`."""
    matches = Matches()
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        step = classify_node(node, owner)
        if step and step.kind == "normalisation" and node not in taken:
            norm = _norm_chain(node, step, owner, writes_input, taken)
            if norm and norm.sum_left:
                matches.skipped.append((node, f"{norm.pattern} + residual", norm.sum_left))
            if norm and not norm.alone:
                matches.chains.append(norm)
                taken.update(norm.nodes)
        if step is None or step.kind != "conv":
            continue
        chain = _longest_chain(node, step, owner, matches, writes_input, taken)
        if chain is None:
            continue
        reason = _refusal(chain, owner, writes_input, output_is_written)
        if chain.normalised == FOLDED_NORM and (not reason or reason.startswith(NO_GAIN)):
            norm = _norm_around(chain, owner, writes_input, taken)
            if norm and not (
                unfolded := why_not_folded(weight_of(node, owner), chain.geometry, chain.resize, norm.folded_operations)
            ):
                norm.conv_pays = not reason
                if norm.sum_left:
                    matches.skipped.append((norm.head, f"{norm.name} + residual", norm.sum_left))
                matches.chains.append(norm)
                taken.update(norm.nodes)
                continue
            reason = f"{reason}; {unfolded}" if reason and norm else reason
        if chain.sum_left:
            matches.skipped.append((node, f"{chain.pattern} + residual", chain.sum_left))
        if reason.startswith(NO_GAIN) and matches.skipped and matches.skipped[-1][0] is node:
            continue  # the last entry says already what keeps this convolution from a longer chain
        if reason:
            matches.skipped.append((node, chain.pattern, reason))
        else:
            matches.chains.append(chain)
            taken.update(chain.nodes)
    _keep_shared_together(graph, matches)
    norms = {chain.head for chain in matches.chains if isinstance(chain, NormChain)}
    for chain in matches.chains:
        if isinstance(chain, Chain) and norms.intersection(chain.nodes[-1].users):
            chain.normalised = ""
    return matches


def _norm_around(conv: Chain, owner: Owner, writes_input: WritesInput, taken: set[fx.Node]) -> NormChain | None:
    """The chain of a convolution and the normalisation that alone reads its result; None where there is none."""
    users = list(conv.head.users)
    bare = not conv.operations and conv.resize not in HALVINGS
    step = classify_node(users[0], owner) if len(users) == 1 and bare else None
    fits = step and step.kind == "normalisation"
    norm = _norm_chain(users[0], step, owner, writes_input, taken) if fits else None
    if norm and norm.sum and is_written_later(source_of(conv.nodes[0]), owner, writes_input):
        return None  # the convolution would be computed where the sum stands, after the write
    return norm and replace(norm, nodes=[*conv.nodes, *norm.nodes], conv=conv)


def _norm_chain(
    node: fx.Node, step: Step, owner: Owner, writes_input: WritesInput, taken: set[fx.Node]
) -> NormChain | None:
    """The chain of a normalisation, also one that is left where it is alone; None where the operator has it not."""
    source = source_of(node)
    if node.op == "call_module":
        known = not step.reason and step.option in REPLACED_NORMS and len(node.args) == 1
    else:
        known = owner is None and own_statistics(node) is not None
    if not known:
        return None
    if any(writes_in_place(user, writes_input, source) for user in source.users):
        return None
    chain = NormChain(node, [node], NORM_FUNCTIONS.get(node.target, step.option))
    _take_activation(chain, owner)
    _take_sum(chain, owner, writes_input, taken)
    if chain.sum and not chain.sum.after:
        _take_activation(chain, owner)
    return chain


def _take_activation(chain: Chain | NormChain, owner: Owner) -> None:
    """Takes into the chain the activation that alone reads its result."""
    users = list(chain.nodes[-1].users)
    step = classify_node(users[0], owner) if len(users) == 1 else None
    if step is not None and step.kind == "activation" and not step.reason:
        chain.nodes.append(users[0])
        chain.activation, chain.slope = step.option, step.slope


def _take_sum(chain: Chain | NormChain, owner: Owner, writes_input: WritesInput, taken: set[fx.Node]) -> None:
    """Takes into the chain the residual sum that alone reads its result.

    The chain is computed where the sum stands, and its tensors are kept for the backward pass. So none of them may be
    written to later, and a normalisation may not be called again in between.
    """
    last = chain.nodes[-1]
    users = list(last.users)
    operands = sum_operands(users[0]) if len(users) == 1 and users[0] not in taken else None
    if operands is None:
        return
    one, other, in_place = operands
    residual = other if one is last else one
    if not isinstance(residual, fx.Node) or residual is last:
        return
    if isinstance(chain, Chain) and _kernel(residual, owner) > chain.kernel:
        return  # of two convolutions that are added the one with more products takes the sum: a shortcut has few
    between = itertools.takewhile(lambda node: node is not users[0], _nodes_after(chain.head))
    if in_place and one is not last:
        chain.sum_left = "it is added in place to the residual"
    elif is_written_later(residual, owner, writes_input):
        chain.sum_left = "the residual is changed in place"
    elif is_written_later(source_of(chain.nodes[0]), owner, writes_input):
        chain.sum_left = "its input is changed in place"
    elif isinstance(chain, NormChain) and any(_shares_statistics(node, chain.head) for node in between):
        chain.sum_left = "the normalisation is called again before the sum"
    if chain.sum_left:
        return
    chain.nodes.append(users[0])
    chain.sum = Sum(residual, one is residual, chain.activation != "none", in_place)


def _kernel(node: fx.Node, owner: Owner) -> int:
    """Taps along one axis of a convolution that is read once and that the operator has; 0 for any other node."""
    step = classify_node(node, owner) if len(node.users) == 1 else None
    return weight_of(node, owner).shape[-1] if step and step.geometry and step.kind == "conv" else 0


def _shares_statistics(node: fx.Node, norm: fx.Node) -> bool:
    """Whether a call may read or move the statistics that a normalisation keeps."""
    if norm.op == "call_module":
        return node.op == norm.op and node.target == norm.target
    kept = own_statistics(norm)["running_mean"]
    return kept is not None and kept in node.all_input_nodes


def _nodes_after(node: fx.Node) -> Iterator[fx.Node]:
    while (node := node.next).op != "root":
        yield node


def source_of(node: fx.Node) -> fx.Node:
    """The node whose tensor a call takes first; the node itself where its first argument is none."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if isinstance(first, fx.Node) else node


def _refusal(chain: Chain, owner: Owner, writes_input: WritesInput, output_is_written: bool) -> str:
    """Why a chain is left as it is; "" where it is replaced."""
    # the operator keeps its result for the backward pass where the activation's derivative is computed from the result
    keeps_result = chain.activation in KEEP_INPUT + KEEP_RESULT
    if keeps_result and is_written_later(chain.nodes[-1], owner, writes_input, output_is_written):
        return "its result is changed in place afterwards"
    source = source_of(chain.nodes[0])
    if any(writes_in_place(user, writes_input, source) for user in source.users if user not in chain.nodes):
        return "its input is changed in place"
    reason = why_no_gain(weight_of(chain.head, owner), chain.geometry, chain.resize, chain.operations)
    between = f" ({chain.normalised} lies between it and what follows)" if chain.normalised else ""
    return reason and reason + between


def _longest_chain(
    conv: fx.Node, step: Step, owner: Owner, matches: Matches, writes_input: WritesInput, taken: set[fx.Node]
) -> Chain | None:
    """The longest chain around a convolution; what had to be left out of it is entered in matches.skipped.

    taken: the nodes of earlier chains, which are no part of this one
    """
    before, after = source_of(conv), list(_steps_after(conv, owner))
    if step.geometry is None:
        up = _step_before(before, owner, taken, "resize")
        # a convolution that is refused is told even alone, for it could have been replaced alone; but not for its size
        if up or after or not step.reason.startswith("kernel size"):
            parts = [*(["upsample"] if up else []), "conv", *(s.option for _, s in after[:1] if s.option)]
            matches.skipped.append((conv, " + ".join(parts), step.reason))
        return None
    kernel = weight_of(conv, owner).shape[-1]
    chain = Chain(conv, [conv], kernel, step.geometry)
    if pad := _step_before(before, owner, taken, "pad"):
        _take_pad(chain, before, pad, matches)
    before = source_of(chain.nodes[0])
    if up := _step_before(before, owner, taken, "resize"):
        _take_up(chain, before, up, matches)
    _extend(chain, after, matches)
    if not chain.operations and chain.resize not in HALVINGS:
        _take_sum(chain, owner, writes_input, taken)
        if chain.sum:
            _take_activation(chain, owner)
    following = (classify_node(user, owner) for user in conv.users)
    chain.normalised = next((s.option for s in following if s and s.kind == "normalisation"), "")
    return chain


def _step_before(node: fx.Node, owner: Owner, taken: set[fx.Node], kind: str) -> Step | None:
    """The step of a node that gives a convolution its input, if it is of this kind; of resizes one that enlarges."""
    step = None if node in taken else classify_node(node, owner)
    fits = step is not None and step.kind == kind and (kind != "resize" or step.option in ("up", ""))
    return step if fits else None


def _take_pad(chain: Chain, node: fx.Node, step: Step, matches: Matches) -> None:
    """Takes into the chain the padding before its convolution, or enters why it stays."""
    geometry, reason = (None, step.reason) if step.reason else padded(step.geometry, chain.geometry)
    reason = reason or ("the padded tensor is used elsewhere" if len(node.users) > 1 else "")
    if reason:
        matches.skipped.append((chain.head, f"pad + {chain.name}", reason))
    else:
        chain.geometry, chain.nodes = geometry, [node, *chain.nodes]


def _take_up(chain: Chain, node: fx.Node, step: Step, matches: Matches) -> None:
    """Takes into the chain the resize before its convolution, or enters why it stays."""
    reason = step.reason
    if not reason and (chain.kernel, chain.geometry) != (3, UP):
        strided = chain.geometry.stride != 1 and not chain.geometry.transposed
        reason = "stride 2 after it" if strided else "nearest x2 is fused with a 3x3 convolution of padding 1 alone"
    reason = reason or ("the enlarged tensor is used elsewhere" if len(node.users) > 1 else "")
    if reason:
        matches.skipped.append((chain.head, f"upsample + {chain.name}", reason))
    else:
        chain.resize, chain.nodes = "up", [node, *chain.nodes]


def _steps_after(conv: fx.Node, owner: Owner) -> Iterator[tuple[fx.Node, Step]]:
    """The steps that could follow a convolution: an activation and a halving, in either order."""
    node, wanted = conv, {"activation", "resize"}
    while wanted:
        users = ((user, classify_node(user, owner)) for user in node.users)
        fitting = [(u, s) for u, s in users if s and s.kind in wanted and (s.kind != "resize" or s.option in HALVINGS)]
        if not fitting:
            return
        yield fitting[0]
        node = fitting[0][0]
        wanted.remove(fitting[0][1].kind)


def _extend(chain: Chain, after: list[tuple[fx.Node, Step]], matches: Matches) -> None:
    """Takes into the chain the steps after its convolution, until one that does not fit."""
    for node, step in after:
        if step.kind == "resize" and (
            chain.resize != "none" or chain.geometry.stride != 1 or chain.geometry.transposed
        ):
            # the operator does one of x2 before and /2 after, and one of two halvings; the other stays
            return
        reason = step.reason
        if not reason and len(chain.nodes[-1].users) > 1:
            reason = "the result before it is used elsewhere"
        if reason:
            what = "nearest /2" if step.kind == "resize" else step.option or "activation"
            matches.skipped.append((chain.head, f"{chain.pattern} + {what}", reason))
            return
        chain.nodes.append(node)
        chain.halved_last = step.option == "nearest /2"
        if step.kind == "resize":
            chain.resize = step.option
        else:
            chain.activation, chain.slope = step.option, step.slope


def _keep_shared_together(graph: fx.Graph, matches: Matches) -> None:
    """A convolution called several times is replaced in all of its calls or in none."""
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    calls_replaced = Counter(conv.head.target for conv in map(conv_of, matches.chains) if conv)
    for chain in list(matches.chains):
        conv = conv_of(chain)
        if conv and conv.head.op == "call_module" and calls[conv.head.target] != calls_replaced[conv.head.target]:
            matches.leave_conv(chain, "the module is shared and another call of it cannot be fused")
