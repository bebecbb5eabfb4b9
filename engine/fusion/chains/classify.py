"""What a module or a call of a graph is to a chain: a convolution, a padding, a resize, an activation, or nothing."""

import inspect
import operator
import types
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.fusion.chains.convolutions import PAD_MODULES, conv_geometry, pad_geometry, pair
from engine.fusion.lookups import replaced
from engine.kernels.resize_conv_act.geometry import Geometry

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
# layers and functions that make a result element by element, in its input's order of memory
ELEMENTWISE = {*ACTIVATION_FUNCTIONS, *ACTIVATION_MODULES, *OTHER_ACTIVATIONS, nn.Identity} - {F.glu, nn.GLU}
NORMALISATIONS = {
    *(nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm, nn.LocalResponseNorm),
    *(F.batch_norm, F.instance_norm, F.group_norm, F.local_response_norm),
}
# of graphs of torch.compile, where a layer's forward is a call of these; the layer's class
NORM_FUNCTIONS = {F.batch_norm: "BatchNorm2d", F.instance_norm: "InstanceNorm2d"}
SUMS = (operator.add, operator.iadd, torch.add)
IADD = "iadd_"  # what proxies.py calls `x += y` in a graph
CONV_MODULES = (nn.Conv2d, nn.ConvTranspose2d)
TRANSPOSED = (F.conv_transpose2d,)
CONVOLUTIONS = (F.conv2d, torch.conv2d, *TRANSPOSED)
PADS = (F.pad, torch._C._nn.pad)  # the second is what F.pad is within graphs of torch.compile
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EVEN = slice(None, None, 2)


@dataclass(frozen=True)
class Step:
    """What a module or a node of a graph is to a chain.

    kind:     "conv", "pad", "resize", "activation" or "normalisation"
    option:   "up", "nearest /2" or "slice"; the name of the activation; that of the normalisation
    reason:   why the operator cannot take it; "" where it can
    slope:    of a LeakyReLU
    geometry: of a convolution; of a padding that of a convolution with this padding
    """

    kind: str
    option: str = ""
    reason: str = ""
    slope: float = 0.0
    geometry: Geometry | None = None


def classify_module(module: nn.Module) -> Step | None:
    """The step a module is; None for one that is no part of any chain."""
    step = _classify_by_class(module)
    if step and not step.reason and (reason := replaced(module)):
        return Step(step.kind, step.option, reason)
    return step


def _classify_by_class(module: nn.Module) -> Step | None:
    kind = type(module)
    if isinstance(module, CONV_MODULES):
        return _conv_module(module)
    if kind in PAD_MODULES:
        return _pad(module.padding, PAD_MODULES[kind], getattr(module, "value", None))
    if kind in (nn.Upsample, nn.UpsamplingNearest2d):
        return _resize(module.size, module.scale_factor, module.mode, module.align_corners)
    if kind in ACTIVATION_MODULES:
        slope = getattr(module, "negative_slope", 0.0)
        return _activation(ACTIVATION_MODULES[kind], getattr(module, "alpha", 1.0), slope)
    if kind in OTHER_ACTIVATIONS:
        return Step("activation", kind.__name__, f"activation {kind.__name__} is not supported")
    if kind in NORMALISATIONS:
        return Step("normalisation", kind.__name__)
    if isinstance(module, (nn.Upsample, *ACTIVATION_MODULES)):
        return Step("resize" if isinstance(module, nn.Upsample) else "activation", "", f"subclass {kind.__name__}")
    if kind.__name__ in ("Conv2d", "ConvTranspose2d"):
        return Step("conv", "", f"{kind.__module__} is not torch.nn: quantised or of another library")
    return None


def _conv_module(conv: nn.Conv2d | nn.ConvTranspose2d) -> Step:
    if type(conv) not in CONV_MODULES:
        plain = "Conv2d" if isinstance(conv, nn.Conv2d) else "ConvTranspose2d"
        parametrised = hasattr(conv, "parametrizations")
        name = "its weight is parametrised" if parametrised else f"{type(conv).__name__} is not a plain {plain}"
        return Step("conv", "", name)
    # torch.nn.utils.weight_norm and spectral_norm keep the class and compute the weight in a hook
    if hasattr(conv, "weight_g") or hasattr(conv, "weight_orig"):
        return Step("conv", "", "its weight is parametrised")
    options = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    return _conv(conv.weight, conv.bias, *options, conv.transposed, conv.output_padding)


def _conv(weight: object, bias: object, *options: object) -> Step:
    """The step of a convolution. options: as of `conv_geometry`"""
    geometry, reason = conv_geometry(*options)
    reason = _refusal_of_tensors(weight, bias) or reason
    return Step("conv", "", reason, geometry=None if reason else geometry)


def _pad(sides: object, mode: str, value: object) -> Step:
    geometry, reason = pad_geometry(sides, mode, value)
    return Step("pad", "", reason, geometry=geometry)


def _refusal_of_tensors(weight: object, bias: object) -> str:
    if not isinstance(weight, Tensor) or weight.dtype not in DTYPES:
        return f"dtype {getattr(weight, 'dtype', None)} is not supported"
    if bias is not None and bias.dtype != weight.dtype:
        return "weight and bias have different dtypes"
    return ""


def _resize(
    size: object, scale: object, mode: str, align: object, recompute: object = None, antialias: object = False
) -> Step:
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


_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding")
# names of the arguments of functions that are written in C++ and have no signature to ask
_ARGUMENTS = {
    **dict.fromkeys((F.conv2d, torch.conv2d), (*_CONV_ARGUMENTS, "dilation", "groups")),
    **dict.fromkeys(TRANSPOSED, (*_CONV_ARGUMENTS, "output_padding", "groups", "dilation")),
    torch._C._nn.pad: ("input", "pad", "mode", "value"),
    F.leaky_relu_: ("input", "negative_slope"),
    F.elu_: ("input", "alpha", "scale", "input_scale"),
}


def arguments_of(node: fx.Node) -> dict[str, object]:
    """The arguments of a node that calls a function, by name; of an unknown function only the first one has a name."""
    if inspect.isfunction(node.target):
        names = tuple(inspect.signature(node.target).parameters)
    else:
        names = _ARGUMENTS.get(node.target, ("input",))
    return dict(zip(names, node.args, strict=False)) | node.kwargs


Owner = nn.Module | None  # of the graph's own tensors and modules; None: tensors are inputs of the graph, with examples


def classify_node(node: fx.Node, owner: Owner) -> Step | None:
    """The step a node of a graph is; None for one that is no part of any chain."""
    if node.op == "call_module":
        step = classify_module(owner.get_submodule(node.target))
        if step and step.kind == "conv" and not step.reason and len(node.args) + len(node.kwargs) != 1:
            return Step("conv", "", "it is called with further arguments")
        return step
    if node.op == "call_method":
        own = isinstance(getattr(Tensor, node.target, None), types.MethodDescriptorType)  # else it is replaced
        return _activation(ACTIVATION_METHODS[node.target]) if own and node.target in ACTIVATION_METHODS else None
    return _classify_function(node, owner) if node.op == "call_function" else None


def _classify_function(node: fx.Node, owner: Owner) -> Step | None:
    function, options = node.target, arguments_of(node)
    if function in CONVOLUTIONS:
        return _classify_conv_function(node, owner, options)
    if function in PADS:
        return _pad(options["pad"], options.get("mode", "constant"), options.get("value"))
    if function in (F.interpolate, F.upsample, F.upsample_nearest):
        names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
        return _resize(*(({"mode": "nearest"} | options).get(name) for name in names))
    if function is operator.getitem:
        halves = node.args[1] in ((slice(None), slice(None), EVEN, EVEN), (..., EVEN, EVEN))
        return Step("resize", "slice") if halves else None
    if function in ACTIVATION_FUNCTIONS:
        scales = options.get("scale", 1) != 1 or options.get("input_scale", 1) != 1
        alpha = "and scales" if scales else options.get("alpha", 1.0)
        return _activation(ACTIVATION_FUNCTIONS[function], alpha, options.get("negative_slope", 0.01))
    if function in OTHER_ACTIVATIONS:
        return Step("activation", function.__name__, f"activation {function.__name__} is not supported")
    return Step("normalisation", function.__name__) if function in NORMALISATIONS else None


def _classify_conv_function(node: fx.Node, owner: Owner, options: dict[str, object]) -> Step:
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0} | options
    weight, bias = (_tensor(t, owner) for t in conv_tensors(node))
    if weight is None or (bias is None and conv_tensors(node)[1] is not None):
        return Step("conv", "", "its weight is computed in forward")
    if weight.dim() != 4:
        return Step("conv", "", "its weight has not four dimensions")
    chosen = [options[name] for name in ("stride", "padding", "dilation", "groups")]
    further = "zeros", node.target in TRANSPOSED, options["output_padding"]
    return _conv(weight, bias, tuple(weight.shape[2:]), *chosen, *further)


def is_elementwise(node: fx.Node, owner: Owner) -> bool:
    """Whether a node makes its result of its first input element by element, in that input's order of memory."""
    if node.op == "call_module":
        module = owner.get_submodule(node.target)
        # a dropout draws in the order of memory; this one drops nothing
        keeps_all = isinstance(module, nn.modules.dropout._DropoutNd) and module.p == 0
        return (keeps_all or type(module) in ELEMENTWISE) and not replaced(module)
    names = ACTIVATION_METHODS if node.op == "call_method" else ELEMENTWISE
    return node.op in ("call_method", "call_function") and node.target in names


def own_statistics(node: fx.Node) -> dict[str, object] | None:
    """The arguments of a NORM_FUNCTIONS call that normalises by the statistics of its input; None of another node.

    Keys: weight, bias, running_mean, running_var, momentum, eps
    """
    if node.op != "call_function" or node.target not in NORM_FUNCTIONS:
        return None
    options = {"training": False, "use_input_stats": True, "momentum": 0.1, "eps": 1e-5} | arguments_of(node)
    measured = options["training" if node.target is F.batch_norm else "use_input_stats"]
    numbers = all(isinstance(options[name], (int, float)) for name in ("momentum", "eps"))
    if measured is not True or not numbers:
        return None
    names = ("weight", "bias", "running_mean", "running_var", "momentum", "eps")
    return {name: options.get(name) for name in names}


def sum_operands(node: fx.Node) -> tuple[object, object, bool] | None:
    """What a node adds, and whether it writes the sum into the first; None for a node that adds nothing else."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    own = node.op == "call_function" and (node.target in SUMS or name == IADD)
    if node.op == "call_method" and name in ("add", "add_"):
        own = isinstance(getattr(Tensor, name, None), types.MethodDescriptorType)  # else it is replaced
    if not own or len(node.args) != 2 or node.kwargs:
        return None
    return *node.args, name.endswith("_") or name == "iadd"


def conv_tensors(conv: fx.Node) -> list[object]:
    """Weight and bias of a functional convolution, as nodes of the graph or None."""
    options = arguments_of(conv)
    return [options.get("weight"), options.get("bias")]


def weight_of(conv: fx.Node, owner: Owner) -> Tensor | None:
    """The weight of a convolution (an example of it); None where it is computed in the graph."""
    if conv.op == "call_module":
        return owner.get_submodule(conv.target).weight
    return _tensor(conv_tensors(conv)[0], owner)


def _tensor(node: object, owner: Owner) -> Tensor | None:
    """The tensor, or an example of it, behind a node that reads a parameter, a buffer or an input of the graph."""
    if not isinstance(node, fx.Node):
        return None
    if owner is None:
        return node.meta.get("example_value") if node.op in ("placeholder", "get_attr") else None
    return operator.attrgetter(node.target)(owner) if node.op == "get_attr" else None
