"""Which calls of a traced graph write into their inputs, and which tensors of it are written to later."""

import inspect
from collections.abc import Callable

from torch import fx, nn

from engine.fusion.chains.classify import Owner, arguments_of

WritesInput = Callable[[str], bool]  # whether calling the child module of that name may write into its input

VIEWS = {
    *("view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "expand", "narrow", "contiguous"),
    *("chunk", "split", "unbind", "getitem", "detach", "to", "unflatten", "view_as", "select", "dropout", "float"),
}
VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d)
OPERATORS_IN_PLACE = {
    *("iadd", "iand", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow", "irshift", "isub", "itruediv"),
    *("ixor", "setitem"),
}


def writes_in_place(node: fx.Node, writes_input: WritesInput, read: fx.Node) -> bool:
    """Whether a node writes into this one of its inputs. read: the input"""
    if node.op == "call_module":
        return writes_input(node.target)
    if "out" not in node.kwargs and node.args and isinstance(node.args[0], fx.Node) and node.args[0] is not read:
        return False  # what writes in place writes into its first input, and reads the others
    name = _name(node)
    underscored = name.endswith("_") and not name.endswith("__")
    of_operator = getattr(node.target, "__module__", "") == "_operator" and name in OPERATORS_IN_PLACE
    options = arguments_of(node) if inspect.isfunction(node.target) else node.kwargs
    return underscored or of_operator or options.get("inplace") is True or "out" in options


def is_written_later(node: fx.Node, owner: Owner, writes_input: WritesInput, output_is_written: bool = False) -> bool:
    """Whether the tensor of a node, or a view of it, is written to after the node.

    output_is_written: whether the caller of the graph writes into what the graph returns
    """

    def leads_to_write(user: fx.Node) -> bool:
        if user.op == "output":
            return output_is_written
        if writes_in_place(user, writes_input, node):
            return True
        return _is_view(user, owner) and is_written_later(user, owner, writes_input, output_is_written)

    return any(map(leads_to_write, node.users))


def comes_from_outside(node: fx.Node, owner: Owner) -> bool:
    """Whether the tensor of a node, or what it is a view of, is an input of the graph."""
    while _is_view(node, owner) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node.op == "placeholder"


def _is_view(node: fx.Node, owner: Owner) -> bool:
    """Whether the result of a node may share memory with its input."""
    if node.op == "call_module":
        return isinstance(owner.get_submodule(node.target), VIEW_MODULES)
    return _name(node) in VIEWS


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
