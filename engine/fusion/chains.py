"""Finds, in the traced forward of a module, the chains that the operator resize_conv_act computes in one pass."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn

ACTIVATION_FUNCTIONS = {
    F.elu: "elu",
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.leaky_relu: "leaky_relu",
    torch.tanh: "tanh",
    torch.tanh_: "tanh",
    F.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    F.sigmoid: "sigmoid",
}
ACTIVATION_METHODS = {name + end: name for name in ("relu", "tanh", "sigmoid") for end in ("", "_")}
ACTIVATION_MODULES = {
    nn.ELU: "elu",
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}
OTHER_ACTIVATIONS = {
    *(F.silu, F.gelu, F.selu, F.celu, F.prelu, F.relu6, F.softplus, F.mish, F.hardswish, F.hardtanh, F.glu),
    *(nn.SiLU, nn.GELU, nn.SELU, nn.CELU, nn.PReLU, nn.ReLU6, nn.Softplus, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.GLU),
}
CONVOLUTIONS = (F.conv2d, torch.conv2d)
VIEWS = {
    *("view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "expand", "narrow", "contiguous"),
    *("chunk", "split", "unbind", "getitem", "detach", "to", "unflatten", "view_as", "select", "dropout", "float"),
}
VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d)
EVEN = slice(None, None, 2)


@dataclass(frozen=True)
class Step:
    """What a node of the graph is to a chain. reason: why the operator cannot take it; "" where it can."""

    kind: str  # "conv", "resize", "activation"
    option: str = ""  # "1" or "2": the stride; "up", "nearest /2", "slice"; the activation
    reason: str = ""
    slope: float = 0.0


@dataclass
class Chain:
    """Nodes that one call replaces, in the order they run in."""

    conv: fx.Node
    nodes: list[fx.Node]
    resize: str = "none"  # "none", "up", or how the result is halved: "stride 2", "nearest /2", "slice"
    activation: str = "none"
    slope: float = 0.0

    @property
    def pattern(self) -> str:
        parts = ["nearest x2"] if self.resize == "up" else []
        parts.append("conv 3x3 stride 2" if self.resize == "stride 2" else "conv 3x3")
        parts += [self.activation] if self.activation != "none" else []
        parts += ["nearest /2"] if self.resize in ("nearest /2", "slice") else []
        return " + ".join(parts)


@dataclass
class Found:
    """The chains of one graph, and what looked like one: (convolution, pattern, reason)."""

    chains: list[Chain] = field(default_factory=list)
    skipped: list[tuple[fx.Node, str, str]] = field(default_factory=list)


def hooked(module: nn.Module) -> bool:
    """Whether something listens to the calls of this module."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def step_of_module(module: nn.Module) -> Step | None:
    """The step a module is; None for one that is no part of any chain."""
    kind = type(module)
    if isinstance(module, nn.Conv2d):
        step = Step("conv", str(module.stride[0]), _why_not_conv(module))
    elif kind in (nn.Upsample, nn.UpsamplingNearest2d):
        step = _resize(module.size, module.scale_factor, module.mode, module.align_corners, None, False)
    elif kind in ACTIVATION_MODULES:
        slope = getattr(module, "negative_slope", 0.0)
        step = _activation(ACTIVATION_MODULES[kind], getattr(module, "alpha", 1.0), slope)
    elif kind in OTHER_ACTIVATIONS:
        step = Step("activation", kind.__name__, f"activation {kind.__name__} is not supported")
    elif isinstance(module, (nn.Upsample, *ACTIVATION_MODULES)):
        step = Step("resize" if isinstance(module, nn.Upsample) else "activation", "", f"subclass {kind.__name__}")
    elif kind.__name__ == "Conv2d":
        step = Step("conv", "1", f"{kind.__module__} is not torch.nn: quantised or of another library")
    else:
        return None
    if hooked(module) and not step.reason:
        return Step(step.kind, step.option, f"{kind.__name__} has hooks")
    return step


def _why_not_conv(conv: nn.Conv2d) -> str:
    if type(conv) is not nn.Conv2d:
        parametrised = hasattr(conv, "parametrizations")
        return "its weight is parametrised" if parametrised else f"{type(conv).__name__} is not a plain Conv2d"
    if hasattr(conv, "weight_g") or hasattr(conv, "weight_orig"):
        return "its weight is parametrised"
    dtypes = {p.dtype for p in (conv.weight, conv.bias) if p is not None}
    if len(dtypes) > 1:
        return "weight and bias have different dtypes"
    if not isinstance(conv.weight, torch.Tensor) or conv.weight.dtype not in (
        *(torch.float32, torch.bfloat16, torch.float16),
    ):
        return f"dtype {conv.weight.dtype} is not supported"
    return _why_not_options(
        conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    )  # fmt: skip


def _why_not_options(
    kernel_size: object, stride: object, padding: object, dilation: object, groups: object, padding_mode: str
) -> str:
    stride, dilation = _pair(stride), _pair(dilation)
    if kernel_size is not None and kernel_size != (3, 3):
        return f"kernel size {kernel_size[0]}x{kernel_size[1]}"
    if groups != 1:
        return f"groups {groups}"
    if dilation != (1, 1):
        return f"dilation {dilation[0]}"
    if padding_mode != "zeros":
        return f"padding mode {padding_mode}"
    if stride not in ((1, 1), (2, 2)):
        return f"stride {stride[0]}" if stride[0] == stride[1] else f"stride {stride}"
    if padding != "same" and _pair(padding) != (1, 1):
        return f"padding {padding if isinstance(padding, str) else _pair(padding)[0]}"
    return ""


def _pair(value: object) -> object:
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


def _resize(size: object, scale: object, mode: str, align: object, recompute: object, antialias: object) -> Step | None:
    reason, option = "", ""
    factor = _pair(scale)
    if size is not None:
        reason = "resized to a given size"
    elif factor == (2, 2):
        option = "up"
    elif factor == (0.5, 0.5):
        option = "nearest /2"
    else:
        reason = f"scale factor {factor[0]}" if factor[0] == factor[1] else f"scale factor {factor}"
    if mode != "nearest":
        reason = f"mode {mode}"
    elif align is not None:
        reason = "align_corners is given"
    elif recompute or antialias:
        reason = "recompute_scale_factor or antialias is given"
    return Step("resize", option, reason)


def _activation(name: str, alpha: object = 1.0, slope: object = 0.0) -> Step:
    if name == "elu" and alpha != 1:
        return Step("activation", name, f"ELU with alpha {alpha}")
    if name == "leaky_relu" and not (isinstance(slope, (int, float)) and slope >= 0):
        return Step("activation", name, f"LeakyReLU with slope {slope}")
    return Step("activation", name, "", float(slope) if name == "leaky_relu" else 0.0)


def step_of_node(node: fx.Node, root: nn.Module) -> Step | None:
    """The step a node of root's graph is; None for one that is no part of any chain."""
    if node.op == "call_module":
        return step_of_module(root.get_submodule(node.target))
    if node.op == "call_method":
        return _activation(ACTIVATION_METHODS[node.target]) if node.target in ACTIVATION_METHODS else None
    if node.op != "call_function":
        return None
    return _step_of_function(node, root)


def _step_of_function(node: fx.Node, root: nn.Module) -> Step | None:
    function, given = node.target, node.kwargs
    if function in CONVOLUTIONS:
        return _step_of_conv_function(node, root)
    if function in (F.interpolate, F.upsample):
        names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
        options = {"mode": "nearest"} | dict(zip(names, node.args[1:], strict=False)) | given
        return _resize(*(options.get(name) for name in names))
    if function is F.upsample_nearest:
        return _resize(given.get("size"), given.get("scale_factor"), "nearest", None, None, False)
    if function is operator.getitem:
        halves = node.args[1] in ((slice(None), slice(None), EVEN, EVEN), (..., EVEN, EVEN))
        return Step("resize", "slice") if halves else None
    if function in ACTIVATION_FUNCTIONS:
        name = ACTIVATION_FUNCTIONS[function]
        option = node.args[1] if len(node.args) > 1 else None
        alpha = given.get("alpha", option if name == "elu" and option is not None else 1.0)
        return _activation(name, alpha, given.get("negative_slope", 0.01 if option is None else option))
    if function in OTHER_ACTIVATIONS:
        return Step("activation", function.__name__, f"activation {function.__name__} is not supported")
    return None


def conv_tensors(node: fx.Node) -> list[object]:
    """Weight and bias of a functional convolution, as nodes of the graph or None."""
    given = dict(zip(("weight", "bias"), node.args[1:3], strict=False)) | node.kwargs
    return [given.get("weight"), given.get("bias")]


def _step_of_conv_function(node: fx.Node, root: nn.Module) -> Step:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | dict(zip(names, node.args, strict=False))
    options |= node.kwargs
    stride = str(_pair(options["stride"])[0])
    tensors = [t for t in conv_tensors(node) if t is not None]
    if any(not isinstance(t, fx.Node) or t.op != "get_attr" for t in tensors):
        return Step("conv", stride, "its weight is computed in forward")
    weight, *bias = [operator.attrgetter(t.target)(root) for t in tensors]
    if weight.dim() != 4:
        return Step("conv", stride, "its weight has not four dimensions")
    if bias and bias[0].dtype != weight.dtype:
        return Step("conv", stride, "weight and bias have different dtypes")
    chosen = [options[name] for name in ("stride", "padding", "dilation", "groups")]
    return Step("conv", stride, _why_not_options(tuple(weight.shape[2:]), *chosen, "zeros"))


def in_place(node: fx.Node, alters_input: Callable[[str], bool]) -> bool:
    """Whether a node writes into one of its inputs. alters_input: the same of the child module of that name."""
    if node.op == "call_module":
        return alters_input(node.target)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    underscored = name.endswith("_") and not name.endswith("__")
    of_operator = getattr(node.target, "__module__", "") == "_operator" and name in _OPERATORS_IN_PLACE
    return underscored or of_operator or node.kwargs.get("inplace") is True or "out" in node.kwargs


_OPERATORS_IN_PLACE = {
    *("iadd", "iand", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow", "irshift", "isub", "itruediv"),
    *("ixor", "setitem"),
}


def altered(node: fx.Node, root: nn.Module, alters_input: Callable[[str], bool], at_output: bool = False) -> bool:
    """Whether the tensor of a node, or a view of it, is written to later. at_output: so is what the graph returns."""
    for user in node.users:
        if user.op == "output":
            if at_output:
                return True
        elif in_place(user, alters_input) or (_views(user, root) and altered(user, root, alters_input, at_output)):
            return True
    return False


def _views(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(root.get_submodule(node.target), VIEW_MODULES)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in VIEWS


def find(graph: fx.Graph, root: nn.Module, alters_input: Callable[[str], bool], at_output: bool) -> Found:
    """The chains of root's graph. alters_input, at_output: as in `in_place` and `altered`."""
    found = Found()
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        step = step_of_node(node, root)
        if step is None or step.kind != "conv":
            continue
        chain = _chain(node, step, root, found, taken)
        if chain is None:
            continue
        if altered(chain.nodes[-1], root, alters_input, at_output):
            found.skipped.append((node, chain.pattern, "its result is changed in place afterwards"))
        elif any(in_place(user, alters_input) for user in _source(chain.nodes[0]).users if user not in chain.nodes):
            found.skipped.append((node, chain.pattern, "its input is changed in place"))
        else:
            found.chains.append(chain)
            taken.update(chain.nodes)
    _keep_shared_together(graph, found)
    return found


def _source(node: fx.Node) -> fx.Node:
    given = node.args[0] if node.args else node.kwargs.get("input")
    return given if isinstance(given, fx.Node) else node


def _chain(conv: fx.Node, step: Step, root: nn.Module, found: Found, taken: set[fx.Node]) -> Chain | None:
    """The longest chain around a convolution; what had to be left out of it is entered in found.skipped."""
    before = _source(conv)
    up = None if before in taken else step_of_node(before, root)
    up = up if up is not None and up.kind == "resize" and up.option in ("up", "") else None
    after = list(_after(conv, root))
    strided = step.option == "2"
    if not (up or after or strided):
        return None
    if step.reason:
        pattern = " + ".join([*(["upsample"] if up else []), "conv", *(s.option for _, s in after[:1] if s.option)])
        found.skipped.append((conv, pattern, step.reason))
        return None
    chain = Chain(conv, [conv], "stride 2" if strided else "none")
    if up:
        reason = up.reason or ("stride 2 after it" if strided else "")
        reason = reason or ("the enlarged tensor is used elsewhere" if len(before.users) > 1 else "")
        if reason:
            found.skipped.append((conv, "upsample + conv 3x3", reason))
        else:
            chain.resize, chain.nodes = "up", [before, conv]
    _extend(chain, after, found)
    return chain if len(chain.nodes) > 1 or strided else None


def _after(conv: fx.Node, root: nn.Module) -> Iterator[tuple[fx.Node, Step]]:
    """The steps that could follow a convolution: an activation and a halving, in either order."""
    node, wanted = conv, {"activation", "resize"}
    while wanted:
        users = ((user, step_of_node(user, root)) for user in node.users)
        fitting = [(u, s) for u, s in users if s and s.kind in wanted and (s.kind != "resize" or s.option in _HALVINGS)]
        if not fitting:
            return
        yield fitting[0]
        node = fitting[0][0]
        wanted.remove(fitting[0][1].kind)


_HALVINGS = ("nearest /2", "slice")


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
