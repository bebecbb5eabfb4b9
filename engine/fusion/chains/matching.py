"""Finds, in a traced graph, the chains that the operator resize_conv_act computes in one pass."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx

from engine.fusion.chains.classify import Owner, Step, step_of_node, weight_of
from engine.fusion.chains.mutation import AltersInput, altered, in_place
from engine.fusion.chains.savings import why_no_gain

NEVER: AltersInput = lambda name: False  # noqa: E731


@dataclass
class Chain:
    """Nodes that one call replaces, in the order they run in.

    resize:     "none", "up", or how the result is halved: "stride 2", "nearest /2", "slice"
    normalised: the normalisation that keeps the chain from an activation; "" where there is none
    """

    conv: fx.Node
    nodes: list[fx.Node]
    resize: str = "none"
    activation: str = "none"
    slope: float = 0.0
    normalised: str = ""

    @property
    def pattern(self) -> str:
        parts = ["nearest x2"] if self.resize == "up" else []
        parts.append("conv 3x3 stride 2" if self.resize == "stride 2" else "conv 3x3")
        parts += [self.activation] if self.activation != "none" else []
        parts += ["nearest /2"] if self.resize in ("nearest /2", "slice") else []
        return " + ".join(parts)

    @property
    def alone(self) -> bool:
        """Whether it is but a convolution of the same size."""
        return self.resize == self.activation == "none"


@dataclass
class Found:
    """The chains of one graph, and what looked like one: (convolution, pattern, reason)."""

    chains: list[Chain] = field(default_factory=list)
    skipped: list[tuple[fx.Node, str, str]] = field(default_factory=list)


def find(graph: fx.Graph, owner: Owner, alters_input: AltersInput = NEVER, at_output: bool = False) -> Found:
    """The chains of a graph. alters_input, at_output: as in `in_place` and `altered`."""
    found = Found()
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        step = step_of_node(node, owner)
        if step is None or step.kind != "conv":
            continue
        chain = _chain(node, step, owner, found, taken)
        if chain is None:
            continue
        reason = _why_not(chain, owner, alters_input, at_output)
        if reason.startswith("nothing to gain") and found.skipped and found.skipped[-1][0] is node:
            continue  # what keeps it from being a longer chain is said already
        if reason:
            found.skipped.append((node, chain.pattern, reason))
        else:
            found.chains.append(chain)
            taken.update(chain.nodes)
    _keep_shared_together(graph, found)
    return found


def source_of(node: fx.Node) -> fx.Node:
    """The node whose tensor a call takes first; the node itself where that is none."""
    given = node.args[0] if node.args else node.kwargs.get("input")
    return given if isinstance(given, fx.Node) else node


def _why_not(chain: Chain, owner: Owner, alters_input: AltersInput, at_output: bool) -> str:
    # the operator keeps the result for the backward pass where the activation's derivative is taken from it
    kept = chain.activation not in ("none", "silu")
    if kept and altered(chain.nodes[-1], owner, alters_input, at_output):
        return "its result is changed in place afterwards"
    users = source_of(chain.nodes[0]).users
    if any(in_place(user, alters_input) for user in users if user not in chain.nodes):
        return "its input is changed in place"
    reason = why_no_gain(weight_of(chain.conv, owner), chain.resize, chain.activation)
    between = f" ({chain.normalised} lies between it and what follows)" if chain.normalised else ""
    return reason and reason + between


def _chain(conv: fx.Node, step: Step, owner: Owner, found: Found, taken: set[fx.Node]) -> Chain | None:
    """The longest chain around a convolution; what had to be left out of it is entered in found.skipped."""
    before = source_of(conv)
    up = None if before in taken else step_of_node(before, owner)
    up = up if up is not None and up.kind == "resize" and up.option in ("up", "") else None
    after = list(_after(conv, owner))
    if step.reason:
        # a 3x3 convolution could be replaced alone
        if up or after or not step.reason.startswith("kernel size"):
            parts = [*(["upsample"] if up else []), "conv", *(s.option for _, s in after[:1] if s.option)]
            found.skipped.append((conv, " + ".join(parts), step.reason))
        return None
    strided = step.option == "2"
    chain = Chain(conv, [conv], "stride 2" if strided else "none")
    if up:
        reason = up.reason or ("stride 2 after it" if strided else "")
        reason = reason or ("the enlarged tensor is used elsewhere" if len(before.users) > 1 else "")
        if reason:
            found.skipped.append((conv, "upsample + conv 3x3", reason))
        else:
            chain.resize, chain.nodes = "up", [before, conv]
    _extend(chain, after, found)
    steps = (step_of_node(user, owner) for user in conv.users)
    chain.normalised = next((s.option for s in steps if s and s.kind == "normalisation"), "")
    return chain


def _after(conv: fx.Node, owner: Owner) -> Iterator[tuple[fx.Node, Step]]:
    """The steps that could follow a convolution: an activation and a halving, in either order."""
    node, wanted = conv, {"activation", "resize"}
    while wanted:
        users = ((user, step_of_node(user, owner)) for user in node.users)
        fitting = [(u, s) for u, s in users if s and s.kind in wanted and (s.kind != "resize" or s.option in HALVINGS)]
        if not fitting:
            return
        yield fitting[0]
        node = fitting[0][0]
        wanted.remove(fitting[0][1].kind)


HALVINGS = ("nearest /2", "slice")


def _extend(chain: Chain, after: list[tuple[fx.Node, Step]], found: Found) -> None:
    for node, step in after:
        reason = step.reason
        if step.kind == "resize" and chain.resize != "none":
            # x2 before and /2 after, or two halvings: the operator does one of them; the other stays
            return
        if not reason and len(chain.nodes[-1].users) > 1:
            reason = "the result before it is used elsewhere"
        if reason:
            what = "nearest /2" if step.kind == "resize" else step.option or "activation"
            found.skipped.append((chain.conv, f"{chain.pattern} + {what}", reason))
            return
        chain.nodes.append(node)
        if step.kind == "resize":
            chain.resize = step.option
        else:
            chain.activation, chain.slope = step.option, step.slope


def _keep_shared_together(graph: fx.Graph, found: Found) -> None:
    """A convolution called several times is replaced in all of its calls or in none."""
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    of_chains = [chain.conv.target for chain in found.chains]
    for chain in list(found.chains):
        conv = chain.conv
        if conv.op == "call_module" and calls[conv.target] != of_chains.count(conv.target):
            found.chains.remove(chain)
            found.skipped.append((conv, chain.pattern, "the module is shared and another call of it cannot be fused"))
