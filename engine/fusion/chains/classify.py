"""What a module or a call in a traced graph is to a chain: a convolution, a resize, an activation, or nothing."""

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

ACTIVATION_FUNCTIONS = {
    F.elu: "elu",
    F.elu_: "elu",
    F.relu: "relu",
    F.relu_: "relu",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
    F.tanh: "tanh",
    F.sigmoid: "sigmoid",
    F.silu: "silu",
    **{getattr(torch, name + end): name for name in ("relu", "tanh", "sigmoid") for end in ("", "_")},
}
ACTIVATION_METHODS = {name + end: name for name in ("relu", "tanh", "sigmoid") for end in ("", "_")}
ACTIVATION_MODULES = {
    nn.ELU: "elu",
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
}
OTHER_ACTIVATIONS = {
    *(F.gelu, F.selu, F.celu, F.prelu, F.relu6, F.softplus, F.mish, F.hardswish, F.hardtanh, F.glu),
    *(nn.GELU, nn.SELU, nn.CELU, nn.PReLU, nn.ReLU6, nn.Softplus, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.GLU),
}
NORMALISATIONS = {
    *(nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm, nn.LocalResponseNorm),
    *(F.batch_norm, F.instance_norm, F.group_norm, F.local_response_norm),
}
CONVOLUTIONS = (F.conv2d, torch.conv2d)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EVEN = slice(None, None, 2)


@dataclass(frozen=True)
class Step:
    """What a node of the graph is to a chain. reason: why the operator cannot take it; "" where it can."""

    kind: str  # "conv", "resize", "activation", "normalisation"
    option: str = ""  # "1" or "2": the stride; "up", "nearest /2", "slice"; the activation; the normalisation
    reason: str = ""
    slope: float = 0.0


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
    elif kind in NORMALISATIONS:
        return Step("normalisation", kind.__name__)
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
    options = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    return _why_not_tensors(conv.weight, conv.bias) or _why_not_options(*options)


def _why_not_tensors(weight: object, bias: object) -> str:
    if not isinstance(weight, Tensor) or weight.dtype not in DTYPES:
        return f"dtype {getattr(weight, 'dtype', None)} is not supported"
    if bias is not None and bias.dtype != weight.dtype:
        return "weight and bias have different dtypes"
    return ""


def _why_not_options(
    kernel_size: object, stride: object, padding: object, dilation: object, groups: object, padding_mode: str
) -> str:
    stride, dilation = pair(stride), pair(dilation)
    if kernel_size != (3, 3):
        return f"kernel size {kernel_size[0]}x{kernel_size[1]}"
    if groups != 1:
        return f"groups {groups}"
    if dilation != (1, 1):
        return f"dilation {dilation[0]}"
    if padding_mode != "zeros":
        return f"padding mode {padding_mode}"
    if stride not in ((1, 1), (2, 2)):
        return f"stride {stride[0]}" if stride[0] == stride[1] else f"stride {stride}"
    if padding != "same" and pair(padding) != (1, 1):
        return f"padding {padding if isinstance(padding, str) else pair(padding)[0]}"
    return ""


def pair(value: object) -> object:
    """(rows, columns) of an option that may be one number for both."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


def _resize(size: object, scale: object, mode: str, align: object, recompute: object, antialias: object) -> Step:
    reason, option = "", ""
    factor = pair(scale)
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


def given(node: fx.Node) -> dict[str, object]:
    """The arguments of a call of a function by name, as far as its signature is known."""
    if isinstance(node.target, Callable) and inspect.isfunction(node.target):
        names = list(inspect.signature(node.target).parameters)
    else:
        names = _BUILT_IN.get(node.target, ("input",))
    return dict(zip(names, node.args, strict=False)) | node.kwargs


_OF_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_BUILT_IN = dict.fromkeys(CONVOLUTIONS, _OF_CONV) | {F.leaky_relu_: ("input", "negative_slope")}
_BUILT_IN |= {F.elu_: ("input", "alpha", "scale", "input_scale")}

Owner = nn.Module | None  # of the graph's own tensors and modules; None: tensors are inputs of the graph, with examples


def step_of_node(node: fx.Node, owner: Owner) -> Step | None:
    """The step a node of a graph is; None for one that is no part of any chain."""
    if node.op == "call_module":
        return step_of_module(owner.get_submodule(node.target))
    if node.op == "call_method":
        return _activation(ACTIVATION_METHODS[node.target]) if node.target in ACTIVATION_METHODS else None
    if node.op != "call_function":
        return None
    function, options = node.target, given(node)
    if function in CONVOLUTIONS:
        return _step_of_conv_function(node, owner, options)
    if function in (F.interpolate, F.upsample, F.upsample_nearest):
        names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
        return _resize(*(({"mode": "nearest"} | options).get(name) for name in names))
    if function is operator.getitem:
        halves = node.args[1] in ((slice(None), slice(None), EVEN, EVEN), (..., EVEN, EVEN))
        return Step("resize", "slice") if halves else None
    if function in ACTIVATION_FUNCTIONS:
        alpha = 1.0 if options.get("scale", 1) == options.get("input_scale", 1) == 1 else "and scales"
        alpha = options.get("alpha", 1.0) if alpha == 1.0 else alpha
        return _activation(ACTIVATION_FUNCTIONS[function], alpha, options.get("negative_slope", 0.01))
    if function in OTHER_ACTIVATIONS:
        return Step("activation", function.__name__, f"activation {function.__name__} is not supported")
    return Step("normalisation", function.__name__) if function in NORMALISATIONS else None


def conv_tensors(conv: fx.Node) -> list[object]:
    """Weight and bias of a functional convolution, as nodes of the graph or None."""
    options = given(conv)
    return [options.get("weight"), options.get("bias")]


def weight_of(conv: fx.Node, owner: Owner) -> Tensor | None:
    """The weight of a convolution (an example of it); None where it is computed in the graph."""
    if conv.op == "call_module":
        return owner.get_submodule(conv.target).weight
    return _tensor(conv_tensors(conv)[0], owner)


def _tensor(node: object, owner: Owner) -> Tensor | None:
    if not isinstance(node, fx.Node):
        return None
    if owner is None:
        return node.meta.get("example_value") if node.op in ("placeholder", "get_attr") else None
    return operator.attrgetter(node.target)(owner) if node.op == "get_attr" else None


def _step_of_conv_function(node: fx.Node, owner: Owner, options: dict[str, object]) -> Step:
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    stride = str(pair(options["stride"])[0])
    weight, bias = (_tensor(t, owner) for t in conv_tensors(node))
    if weight is None or (bias is None and conv_tensors(node)[1] is not None):
        return Step("conv", stride, "its weight is computed in forward")
    if weight.dim() != 4:
        return Step("conv", stride, "its weight has not four dimensions")
    chosen = [options[name] for name in ("stride", "padding", "dilation", "groups")]
    reason = _why_not_tensors(weight, bias) or _why_not_options(tuple(weight.shape[2:]), *chosen, "zeros")
    return Step("conv", stride, reason)
