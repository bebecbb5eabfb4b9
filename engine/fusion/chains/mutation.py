"""Which calls of a traced graph write into their inputs, and which tensors of it are written to later."""

import inspect
from collections.abc import Callable

from torch import fx, nn

from engine.fusion.chains.classify import Owner, given

AltersInput = Callable[[str], bool]  # whether calling the child module of that name may write into its input

VIEWS = {
    *("view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "expand", "narrow", "contiguous"),
    *("chunk", "split", "unbind", "getitem", "detach", "to", "unflatten", "view_as", "select", "dropout", "float"),
}
VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d)
OPERATORS_IN_PLACE = {
    *("iadd", "iand", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow", "irshift", "isub", "itruediv"),
    *("ixor", "setitem"),
}


def in_place(node: fx.Node, alters_input: AltersInput) -> bool:
    """Whether a node writes into one of its inputs."""
    if node.op == "call_module":
        return alters_input(node.target)
    name = _name(node)
    underscored = name.endswith("_") and not name.endswith("__")
    of_operator = getattr(node.target, "__module__", "") == "_operator" and name in OPERATORS_IN_PLACE
    options = given(node) if inspect.isfunction(node.target) else node.kwargs
    return underscored or of_operator or options.get("inplace") is True or "out" in options


def altered(node: fx.Node, owner: Owner, alters_input: AltersInput, at_output: bool = False) -> bool:
    """Whether the tensor of a node, or a view of it, is written to later. at_output: so is what the graph returns."""
    for user in node.users:
        if user.op == "output":
            if at_output:
                return True
        elif in_place(user, alters_input) or (_views(user, owner) and altered(user, owner, alters_input, at_output)):
            return True
    return False


def _views(node: fx.Node, owner: Owner) -> bool:
    if node.op == "call_module":
        return isinstance(owner.get_submodule(node.target), VIEW_MODULES)
    return _name(node) in VIEWS


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
