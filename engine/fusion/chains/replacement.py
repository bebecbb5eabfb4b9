"""Puts one call in place of each chain of a graph: `rewrite` the graph, `run_chain` is what the call runs."""

from collections.abc import Collection, Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine import ops
from engine.fusion.chains.classify import DTYPES, Owner, conv_tensors, is_elementwise, own_statistics
from engine.fusion.chains.folding import can_fold, fold
from engine.fusion.chains.matching import KEEP_INPUT, NEVER, Chain, NormChain, conv_of, source_of
from engine.fusion.chains.mutation import comes_from_outside, is_written_later
from engine.fusion.chains.normalisation import Residual, finish, is_recorded, run_norm, run_norm_function
from engine.fusion.chains.savings import is_slower
from engine.fusion.lookups import PLAIN_TENSORS, TRACED_TENSORS
from engine.kernels._layout import contiguous
from engine.kernels.resize_conv_act.geometry import MOST_TAPS, Geometry, output_sides
from engine.kernels.resize_conv_act.reference import ACTIVATIONS, convolve


def run_chain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    planar: bool | None,
    resize: str,
    geometry: tuple,
    activation: str,
    slope: float,
    copy_input: bool,
    copy_result: bool,
    added: tuple | None = None,
    copy_residual: bool = False,
) -> Tensor:
    """Runs one chain by the operator, or by torch where the operator does not take the tensors.

    x:      (B, C, H, W)
    weight: (Cout, C, K, K), transposed (C, Cout, K, K)
    bias:   (Cout,) or None
    planar: whether torch would make a contiguous result, so that this one must be contiguous too; None: the next call
            is a chain as well, and takes the operator's channels_last result
    resize, geometry, activation, slope: as of Chain
    copy_input, copy_result: whether others may write into x, or into the result, after the call, though the operator
            keeps it for the backward pass: then it keeps another tensor than they have
    added, copy_residual: as of `run_norm`; the sum comes before the activation

    It runs as written where maps of this size would lose; compiled code does not ask, for one graph serves all sizes.
    """
    where = Geometry(*geometry)
    as_written = not _operator_takes(x, weight, bias, resize, where)
    as_written = as_written or _is_slower(x, weight, resize, where, (activation != "none") + (added is not None))
    residual = None if added is None else Residual(*added)
    if residual is None or not residual.first:
        planar = planar and not _channels_last(weight)
    if as_written:
        y = _as_written(x, weight, bias, resize, where, activation, slope, residual)
        return contiguous(y) if planar and y.dim() == 4 else y
    if copy_input and weight.requires_grad and torch.is_grad_enabled():
        x = x.clone()
    residual = residual and residual.kept(copy_residual)
    y = _by_operator(x, weight, bias, resize, where, activation, slope, residual)
    laid_out = contiguous(y) if planar else y
    return y.clone() if copy_result and laid_out is y and y.requires_grad else laid_out


def _by_operator(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    resize: str,
    where: Geometry,
    activation: str,
    slope: float,
    residual: Residual | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """The operator's result; a sum comes before the activation. A residual that does not fit is added to the result."""
    apart = residual is not None and not _takes_residual(x, weight, resize, where, residual.tensor)
    y = ops.resize_conv_act(
        x,
        weight,
        bias,
        scale=scale,
        resize=resize if resize in ("none", "up") else "down",
        stride=where.stride,
        padding=where.padding,
        padding_mode=where.padding_mode,
        transposed=where.transposed,
        output_padding=where.output_padding,
        activation="none" if apart else activation,
        negative_slope=slope,
        residual=None if residual is None or apart else residual.tensor,
    )
    if apart:
        return finish(y, activation, slope, residual)
    if resize == "nearest /2":
        height, width = output_sides(x.shape, weight.shape[-1], where)
        if torch.compiler.is_compiling() or height % 2 or width % 2:
            y = y[:, :, : height // 2, : width // 2]  # torch drops the last row and column, the operator keeps them
    return y


def _takes_residual(x: Tensor, weight: Tensor, resize: str, where: Geometry, residual: Tensor) -> bool:
    """Whether the operator adds this residual, which must be like its result."""
    if torch.is_autocast_enabled(x.device.type) or type(residual) not in TRACED_TENSORS or residual.dim() != 4:
        return False
    result = _result_once if _has_plain_sizes(x) else _result
    same = residual.dtype == x.dtype and residual.device == x.device
    return same and residual.shape == result(x.shape, weight.shape, resize, where)


def _result(x: tuple[int, ...], weight: tuple[int, ...], resize: str, where: Geometry) -> tuple[int, ...]:
    """The shape of the operator's result, from the shapes of its input and weight."""
    return x[0], weight[where.transposed], *output_sides(x, weight[-1], where._replace(resize=resize))


_result_once = lru_cache(maxsize=1024)(_result)


def run_conv_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: nn.BatchNorm2d,
    planar: bool | None,
    resize: str,
    geometry: tuple,
    conv_pays: bool,
    activation: str,
    slope: float,
    copy_input: bool,
    added: tuple | None = None,
    copy_residual: bool = False,
) -> Tensor:
    """activation(norm(convolution)): one convolution in evaluation, else the convolution and then `run_norm`.

    x, weight, bias, planar, resize, geometry, activation, slope, copy_input: as of `run_chain`
    norm:      the normalisation; its mode, parameters and statistics are those at the call
    conv_pays: whether the operator takes the convolution where nothing is folded
    added, copy_residual: as of `run_norm`

    Nothing is folded where maps of this size would lose. Compiled code folds what the operator takes anyway.
    """
    where = Geometry(*geometry)
    residual = None if added is None else Residual(*added)
    if residual is None or not residual.first:
        planar = planar and not _channels_last(weight)
    operations = 1 + (activation != "none") + (residual is not None and not residual.after)
    folds = _folds(x, weight, bias, norm, resize, where, operations)
    if folds and (conv_pays or not torch.compiler.is_compiling()):
        if copy_input and weight.requires_grad and torch.is_grad_enabled():
            x = x.clone()
        residual = residual and residual.kept(copy_residual)
        scale, shift = fold(bias, norm)
        # as written such an activation keeps its input for the backward pass, and the operator would keep its result
        apart = activation in KEEP_INPUT and torch.is_grad_enabled()
        before = None if residual is None or residual.after else residual
        y = _by_operator(x, weight, shift, resize, where, "none" if apart else activation, slope, before, scale)
        if apart or residual is not before:
            y = finish(y, activation if apart else "none", slope, None if residual is before else residual)
        return contiguous(y) if planar else y
    if conv_pays:
        y = run_chain(x, weight, bias, None, resize, geometry, "none", 0.0, copy_input, False)
    else:
        x = x.clone() if copy_input and weight.requires_grad and torch.is_grad_enabled() else x
        y = _as_written(x, weight, bias, resize, where, "none", 0.0)
    return run_norm(y, norm, planar, activation, slope, False, added, copy_residual)


def _folds(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: nn.BatchNorm2d,
    resize: str,
    where: Geometry,
    operations: int,
) -> bool:
    """Whether a normalisation can be folded into the convolution before it, in this call, and gains by it.

    operations: layers after the convolution that it takes over
    """
    if not can_fold(weight, norm, where.transposed) or not _operator_takes(x, weight, bias, resize, where):
        return False
    return not (torch.is_autocast_enabled(x.device.type) or _is_slower(x, weight, resize, where, operations))


def _is_slower(x: Tensor, weight: Tensor, resize: str, where: Geometry, operations: int) -> bool:
    """Whether a chain is predicted to lose by being fused, in this call. operations: as of `_folds`"""
    if resize != "none" or not _has_plain_sizes(x):
        return False
    return is_slower(x.shape, weight, where, operations, is_recorded(x, weight))


def is_planar(x: Tensor) -> bool:
    """Whether torch would make a contiguous result of x."""
    return not (x.dim() == 4 and _channels_last(x))


def _channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _operator_takes(x: Tensor, weight: Tensor, bias: Tensor | None, resize: str, where: Geometry) -> bool:
    for tensor in (x, weight, bias):
        if tensor is not None and type(tensor) not in TRACED_TENSORS:
            return False
    device, dtype = x.device, x.dtype
    if device != weight.device or device.type not in ("cpu", "cuda") or dtype not in DTYPES:
        return False
    fit = _fit_once if _has_plain_sizes(x) else _fit
    if not fit(x.shape, weight.shape, resize, where):
        return False
    if torch.is_autocast_enabled(device.type):
        dtypes = (torch.float32, torch.get_autocast_dtype(device.type))
        return weight.dtype in dtypes and (bias is None or bias.dtype in dtypes)
    return weight.dtype == dtype and (bias is None or bias.dtype == dtype)


def _fit(x: tuple[int, ...], weight: tuple[int, ...], resize: str, where: Geometry) -> bool:
    """Whether the operator takes tensors of these shapes; where it does not, torch says what is wrong."""
    if len(x) != 4 or len(weight) != 4 or 0 in x[1:] or 0 in weight or weight[1 - where.transposed] != x[1]:
        return False
    kernel = weight[-1]
    if weight[-2] != kernel or kernel > MOST_TAPS or (resize == "up" and kernel != 3):
        return False
    height, width = x[2:]
    most = {"reflect": min(height, width) - 1, "circular": min(height, width)}.get(where.padding_mode)
    if most is not None and where.padding > most:
        return False
    # torch refuses to halve a side of one
    least = 2 if resize == "nearest /2" else 1
    return min(output_sides(x, kernel, where)) >= least


def _has_plain_sizes(x: Tensor) -> bool:
    """Whether what the sizes of x lead to may be remembered: those of a compiler's tensors stand for others too."""
    return type(x) in PLAIN_TENSORS and not torch.compiler.is_compiling()


_fit_once = lru_cache(maxsize=1024)(_fit)


def _as_written(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    resize: str,
    where: Geometry,
    activation: str,
    slope: float,
    residual: Residual | None = None,
) -> Tensor:
    if resize == "up":
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    if where.transposed:
        y = F.conv_transpose2d(x, weight, bias, where.stride, where.padding, where.output_padding)
    else:
        options = {"stride": where.stride, "padding": where.padding, "padding_mode": where.padding_mode}
        y = convolve(x, weight, bias, **options)
    y = ACTIVATIONS[activation](y, slope) if residual is None else finish(y, activation, slope, residual)
    if resize == "nearest /2":
        return F.interpolate(y, scale_factor=0.5, mode="nearest")
    return y[..., ::2, ::2] if resize == "slice" else y


def stays_planar(planar: bool, weight: Tensor) -> bool:
    """Whether torch would make a contiguous result with this weight, where it would of the input."""
    return planar and not _channels_last(weight)


def rewrite(graph: fx.Graph, chains: list[Chain | NormChain], owner: Owner = None, exposed: bool = False) -> None:
    """Puts one call in place of each chain.

    exposed: whether the code that runs the graph may write, later on, into its inputs and outputs

    Chains that follow one another, with nothing but elementwise layers between them, pass on the operator's
    channels_last result; the input of the first decides which layout the result of the last has.
    """
    planar: dict[fx.Node, fx.Node | bool] = {}  # by the call of a chain: whether torch would make a contiguous result
    firsts = {chain.nodes[0] for chain in chains}
    calls: dict[fx.Node, fx.Node] = {}  # by the node whose result a chain had
    for chain in chains:
        first, last = chain.nodes[0], chain.nodes[-1]
        source = source_of(first)
        # a residual may be computed after the convolution and the normalisation
        added = chain.sum
        if added:
            added = chain.sum = added._replace(residual=calls.get(added.residual, added.residual))
        with graph.inserting_before(last if added else first):
            made_by = source
            while made_by not in planar and is_elementwise(made_by, owner):
                made_by = source_of(made_by)
            of_series = planar[made_by] if made_by in planar else graph.call_function(is_planar, (source,))
            followed = [first is not None for first in following(last, firsts, owner)]
            if added and added.first:
                of_series = graph.call_function(is_planar, (added.residual,))
            asked = None if all(followed) else of_series
            if isinstance(chain, NormChain) and chain.conv is None:
                call, of_result = _norm_call(graph, chain, owner, exposed, asked, of_series)
            else:
                call, of_result = _conv_call(graph, chain, owner, exposed, asked, of_series, any(followed))
        call.meta = dict(last.meta)
        calls[last] = call
        planar[call] = of_result
        firsts.discard(first)
        last.replace_all_uses_with(call)
        for node in reversed(chain.nodes):
            graph.erase_node(node)


def following(node: fx.Node, firsts: Collection[fx.Node], owner: Owner) -> Iterator[fx.Node | None]:
    """For each use of a node, past elementwise layers, the chain's first node that uses it; None for another use.

    firsts: the first nodes of all chains
    """
    for user in node.users:
        if user not in firsts and is_elementwise(user, owner):
            yield from following(user, firsts, owner)
        else:
            yield user if user in firsts else None


Asked = fx.Node | bool | None


def _conv_call(
    graph: fx.Graph,
    chain: Chain | NormChain,
    owner: Owner,
    exposed: bool,
    asked: Asked,
    of_series: Asked,
    followed: bool,
) -> tuple[fx.Node, Asked]:
    """The call in place of a chain with a convolution, and what tells whether torch would make a contiguous result."""
    conv, source, last = conv_of(chain), source_of(chain.nodes[0]), chain.nodes[-1]
    tensors, where = _tensors_for_call(graph, conv.head), (conv.resize, tuple(conv.geometry))
    # torch keeps the enlarged or padded tensor, the operator its input
    copy_input = exposed and conv.keeps_input and comes_from_outside(source, owner)
    if isinstance(chain, NormChain):
        norm = graph.create_node("get_attr", chain.head.target)
        options = norm, asked, *where, chain.conv_pays, chain.activation, chain.slope, copy_input
        run = run_conv_norm
    else:
        copy_result = exposed and chain.keeps_more and is_written_later(last, owner, NEVER, True)
        options, run = (asked, *where, chain.activation, chain.slope, copy_input, copy_result), run_chain
    call = graph.call_function(run, (source, *tensors, *options, *_residual(chain, owner, exposed)))
    if chain.sum and chain.sum.first:
        return call, of_series
    return call, graph.call_function(stays_planar, (of_series, tensors[0])) if followed else of_series


def _norm_call(
    graph: fx.Graph, chain: NormChain, owner: Owner, exposed: bool, asked: Asked, of_series: Asked
) -> tuple[fx.Node, Asked]:
    """The call in place of a chain without convolution, and what tells whether torch would make a contiguous result."""
    source, instance = source_of(chain.head), chain.name == "InstanceNorm2d"
    if instance and not (chain.sum and chain.sum.first):  # torch's makes a contiguous result of any input
        asked, of_series = asked if asked is None else True, True
    if chain.head.op == "call_function":
        tensors = *own_statistics(chain.head).values(), instance
        options = asked, chain.activation, chain.slope, *_residual(chain, owner, exposed)[:1]
        return graph.call_function(run_norm_function, (source, *tensors, *options)), of_series
    norm = graph.create_node("get_attr", chain.head.target)
    copy_input = exposed and instance and comes_from_outside(source, owner)
    options = asked, chain.activation, chain.slope, copy_input, *_residual(chain, owner, exposed)
    return graph.call_function(run_norm, (source, norm, *options)), of_series


def _residual(chain: Chain | NormChain, owner: Owner, exposed: bool) -> tuple:
    """The arguments added and copy_residual of `run_norm`: none where nothing is added."""
    if chain.sum is None:
        return ()
    return tuple(chain.sum), exposed and comes_from_outside(chain.sum.residual, owner)


def _tensors_for_call(graph: fx.Graph, conv: fx.Node) -> list[fx.Node | None]:
    """Nodes of weight and bias; the node of a module's bias may give None when the graph runs."""
    if conv.op == "call_module":
        return [graph.create_node("get_attr", f"{conv.target}.{name}") for name in ("weight", "bias")]
    # an input of the graph comes before every call; a tensor of a module may be read after the start of the chain only
    tensors = conv_tensors(conv)
    return [graph.create_node("get_attr", t.target) if t is not None and t.op == "get_attr" else t for t in tensors]
