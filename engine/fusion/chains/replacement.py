"""Puts one call in place of each chain of a graph: `rewrite` the graph, `run_chain` is what the call runs."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from engine import ops
from engine.fusion.chains.classify import DTYPES, Owner, conv_tensors
from engine.fusion.chains.matching import NEVER, Chain, source_of
from engine.fusion.chains.mutation import comes_from_outside, is_written_later
from engine.fusion.chains.savings import too_small
from engine.fusion.lookups import PLAIN_TENSORS
from engine.kernels.resize_conv_act.reference import ACTIVATIONS

TENSORS = (*PLAIN_TENSORS, FakeTensor, FunctionalTensor)  # the last two are what compilers trace with


def run_chain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    planar: bool | None,
    resize: str,
    activation: str,
    slope: float,
    copy_input: bool,
    copy_result: bool,
) -> Tensor:
    """Runs one chain by the operator, or by torch where the operator does not take the tensors.

    x:      (B, C, H, W)
    weight: (Cout, C, 3, 3)
    bias:   (Cout,) or None
    planar: whether torch would make a contiguous result, so that this one must be contiguous too; None: the next call
            is a chain as well, and takes the operator's channels_last result
    resize, activation, slope: as of Chain
    copy_input, copy_result: whether others may write into x, or into the result, after the call, though the operator
            keeps it for the backward pass: then it keeps another tensor than they have

    A convolution alone runs as written where its maps are too small to gain; compiled code does not ask, for one graph
    serves all sizes.
    """
    compiling = torch.compiler.is_compiling()
    small = resize == activation == "none" and not compiling and too_small(x.shape, weight)
    if small or not _operator_takes(x, weight, bias, resize):
        return _as_written(x, weight, bias, resize, activation, slope)
    direction = resize if resize in ("none", "up") else "down"
    if copy_input and weight.requires_grad and torch.is_grad_enabled():
        x = x.clone()
    y = ops.resize_conv_act(x, weight, bias, resize=direction, activation=activation, negative_slope=slope)
    if resize == "nearest /2" and (compiling or x.shape[2] % 2 or x.shape[3] % 2):
        y = y[
            :, :, : x.shape[2] // 2, : x.shape[3] // 2
        ]  # torch drops the last row and column, the operator keeps them
    laid_out = y.contiguous() if planar and not _channels_last(weight) else y
    return y.clone() if copy_result and laid_out is y and y.requires_grad else laid_out


def is_planar(x: Tensor) -> bool:
    """Whether torch would make a contiguous result of x."""
    return not (x.dim() == 4 and _channels_last(x))


def _channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _operator_takes(x: Tensor, weight: Tensor, bias: Tensor | None, resize: str) -> bool:
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if not all(type(tensor) in TENSORS for tensor in tensors):
        return False
    if x.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3) or 0 in x.shape[1:] or x.device != weight.device:
        return False
    if resize == "nearest /2" and (x.shape[2] == 1 or x.shape[3] == 1):
        return False  # torch refuses to halve a side of one
    if x.device.type not in ("cpu", "cuda") or x.dtype not in DTYPES:
        return False
    if torch.is_autocast_enabled(x.device.type):
        dtypes = (torch.float32, torch.get_autocast_dtype(x.device.type))
        return weight.dtype in dtypes and (bias is None or bias.dtype in dtypes)
    return weight.dtype == x.dtype and (bias is None or bias.dtype == x.dtype)


def _as_written(x: Tensor, weight: Tensor, bias: Tensor | None, resize: str, activation: str, slope: float) -> Tensor:
    if resize == "up":
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    y = F.conv2d(x, weight, bias, stride=2 if resize == "stride 2" else 1, padding=1)
    y = ACTIVATIONS[activation](y, slope)
    if resize == "nearest /2":
        return F.interpolate(y, scale_factor=0.5, mode="nearest")
    return y[..., ::2, ::2] if resize == "slice" else y


def rewrite(graph: fx.Graph, chains: list[Chain], owner: Owner = None, exposed: bool = False) -> None:
    """Puts one call in place of each chain.

    exposed: whether the code that runs the graph may write, later on, into its inputs and outputs

    Chains that follow one another pass on the operator's channels_last result; the input of the first decides which
    layout the result of the last has.
    """
    planar: dict[fx.Node, fx.Node] = {}  # by the call of a chain: is_planar of the input of the first in its series
    firsts = {chain.nodes[0] for chain in chains}
    for chain in chains:
        first, last = chain.nodes[0], chain.nodes[-1]
        source = source_of(first)
        with graph.inserting_before(first):
            tensors = _tensors_for_call(graph, chain.conv)
            of_series = planar.get(source) or graph.call_function(is_planar, (source,))
            chains_follow = all(user in firsts for user in last.users)
            options = (None if chains_follow else of_series, chain.resize, chain.activation, chain.slope)
            # torch keeps what nearest x2 makes, the operator its input
            copy_input = exposed and chain.resize == "up" and comes_from_outside(source, owner)
            copy_result = exposed and chain.keeps_more and is_written_later(last, owner, NEVER, True)
            call = graph.call_function(run_chain, (source, *tensors, *options, copy_input, copy_result))
        call.meta = dict(last.meta)
        planar[call] = of_series
        firsts.discard(first)
        last.replace_all_uses_with(call)
        for node in reversed(chain.nodes):
            graph.erase_node(node)


def _tensors_for_call(graph: fx.Graph, conv: fx.Node) -> list[fx.Node | None]:
    """Nodes of weight and bias; the node of a module's bias may give None when the graph runs."""
    if conv.op == "call_module":
        return [graph.create_node("get_attr", f"{conv.target}.{name}") for name in ("weight", "bias")]
    # an input of the graph comes before every call; a tensor of a module may be read after the start of the chain only
    tensors = conv_tensors(conv)
    return [graph.create_node("get_attr", t.target) if t is not None and t.op == "get_attr" else t for t in tensors]
