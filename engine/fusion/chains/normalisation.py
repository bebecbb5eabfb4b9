"""Runs a normalisation and what follows it by the operator norm_act, or as written where that is faster."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine import ops
from engine.fusion.chains.classify import DTYPES
from engine.fusion.lookups import PLAIN_TENSORS, TRACED_TENSORS
from engine.kernels._layout import contiguous
from engine.kernels.resize_conv_act.reference import ACTIVATIONS

NEVER = 1 << 62
# The fewest numbers, of all maps, from which on the operator is as fast as torch's layers on a CPU: alone, and with an
# activation or a sum after it. By whose statistics it normalises, whether the maps are contiguous, and whether a
# gradient is recorded. Torch normalises channels_last batches, and by stored statistics, in one fast pass; for instance
# normalisation it copies. Forward and backward, a call of the operator takes 0.1 ms longer.
LEAST_NUMBERS: dict[tuple[str, bool, bool], tuple[int, int]] = {
    ("stored", True, False): (NEVER, 1 << 18),
    ("stored", False, False): (NEVER, 1 << 18),
    ("stored", True, True): (NEVER, NEVER),
    ("stored", False, True): (NEVER, NEVER),
    ("batch", True, False): (1 << 14, 1 << 14),
    ("batch", False, False): (1 << 19, 1 << 18),
    ("batch", True, True): (1 << 17, 1 << 16),
    ("batch", False, True): (NEVER, NEVER),
    ("group", True, False): (1 << 18, 1 << 18),
    ("group", False, False): (NEVER, NEVER),
    ("group", True, True): (NEVER, 1 << 20),
    ("group", False, True): (1 << 18, 1 << 18),
    ("instance", True, False): (1 << 12, 1 << 12),
    ("instance", False, False): (1 << 12, 1 << 12),
    ("instance", True, True): (1 << 17, 1 << 12),
    ("instance", False, True): (1 << 15, 1 << 12),
}
IN_PLACE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": lambda y, slope: torch.relu_(y),
    "leaky_relu": torch.nn.functional.leaky_relu_,
    "elu": lambda y, slope: torch.nn.functional.elu_(y),
    "silu": lambda y, slope: torch.nn.functional.silu(y, inplace=True),
    "tanh": lambda y, slope: torch.tanh_(y),
    "sigmoid": lambda y, slope: torch.sigmoid_(y),
}


class Residual(NamedTuple):
    """A tensor that is added to the result of a normalisation or a convolution. first, after, in_place: as of Sum"""

    tensor: Tensor
    first: bool
    after: bool
    in_place: bool

    def kept(self, copy: bool) -> "Residual":
        """What an operator may keep for the backward pass: with a copy of the tensor where others may write into it."""
        return self._replace(tensor=self.tensor.clone()) if copy and torch.is_grad_enabled() else self


def run_norm(
    x: Tensor,
    norm: nn.Module,
    planar: bool | None,
    activation: str,
    slope: float,
    copy_input: bool,
    added: tuple | None = None,
    copy_residual: bool = False,
) -> Tensor:
    """activation(norm(x) + residual), or activation(norm(x)) + residual, by norm_act, or as written where as fast.

    x:          (B, C, H, W)
    norm:       BatchNorm2d, InstanceNorm2d or GroupNorm; its mode, parameters and statistics are those at the call
    planar:     whether torch would make a contiguous result; None: the next call is a chain as well
    activation, slope: as of NormChain
    added:      the fields of Residual; None: nothing is added
    copy_input, copy_residual: whether others may write into x, or into the residual, after the call, though torch would
                keep a copy of x, or nothing
    """
    residual = None if added is None else Residual(*added)
    measured = norm.training or not _has_statistics(norm)
    by_operator = _operator_takes(x, norm) and _fits(x, residual)
    if by_operator and torch.compiler.is_compiling():
        # as in run_norm_function; a momentum of None is another number at each call
        by_operator = measured and not isinstance(norm, nn.GroupNorm) and norm.momentum is not None
    elif by_operator:
        by_operator = _pays(x, norm, measured, activation != "none" or residual is not None)
    if not by_operator:
        y = finish(norm(x), activation, slope, residual)
    else:
        if copy_input and torch.is_grad_enabled() and not x.is_contiguous():
            x = x.clone()
        residual = residual and residual.kept(copy_residual)
        options = {"eps": norm.eps, **_options(norm, measured)}
        y = _by_operator(x, norm.weight, norm.bias, planar, activation, slope, residual, options)
    return contiguous(y) if planar and y.dim() == 4 else y


def run_norm_function(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    instance: bool,
    planar: bool | None,
    activation: str,
    slope: float,
    added: tuple | None = None,
) -> Tensor:
    """What `run_norm` computes, of F.batch_norm or, instance, F.instance_norm by the statistics of x, in compiled code.

    Inductor goes over memory more often, and one graph serves all sizes: the operator takes whatever it can.
    """
    residual = None if added is None else Residual(*added)
    tensors = [t for t in (x, weight, bias, running_mean, running_var, residual and residual.tensor) if t is not None]
    plain = all(type(t) in TRACED_TENSORS and t.dtype == x.dtype and t.device == x.device for t in tensors)
    fits = x.dim() == 4 and x.dtype in DTYPES and x.device.type in ("cpu", "cuda") and eps > 0
    fits = fits and (residual is None or residual.tensor.shape == x.shape)
    if not plain or not fits or torch.is_autocast_enabled(x.device.type):
        normalise = torch.nn.functional.instance_norm if instance else torch.nn.functional.batch_norm
        y = finish(
            normalise(x, running_mean, running_var, weight, bias, True, momentum, eps), activation, slope, residual
        )
    else:
        options = {"kind": "instance" if instance else "batch", "momentum": momentum, "eps": eps}
        options |= {"running_mean": running_mean, "running_var": running_var}
        y = _by_operator(x, weight, bias, planar, activation, slope, residual, options)
    return contiguous(y) if planar and y.dim() == 4 else y


def _by_operator(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    planar: bool | None,
    activation: str,
    slope: float,
    residual: Residual | None,
    options: dict[str, Any],
) -> Tensor:
    """The operator's result, in channels_last where a residual that comes first decides so. options: of norm_act"""
    if residual is not None:
        options = options | {"residual": residual.tensor, "residual_place": "after" if residual.after else "before"}
    y = ops.norm_act(x, weight, bias, activation=activation, negative_slope=slope, **options)
    if planar is False and residual is not None and residual.first:
        return y.contiguous(memory_format=torch.channels_last)
    return y


def finish(y: Tensor, activation: str, slope: float, residual: Residual | None) -> Tensor:
    """The activation and the residual sum as written, after a result of one's own.

    Where nothing is recorded they take its place, as the layers as written often do.
    """
    if residual is None:
        return _activated(y, activation, slope)
    if residual.after:
        y = _activated(y, activation, slope)
    alone = not residual.after and type(residual.tensor) in PLAIN_TENSORS and residual.tensor.dtype == y.dtype
    if residual.in_place or (alone and not residual.first and residual.tensor.shape == y.shape):
        y = y.add_(residual.tensor)
    else:
        y = residual.tensor + y if residual.first else y + residual.tensor
    return y if residual.after else _activated(y, activation, slope)


def _activated(y: Tensor, activation: str, slope: float) -> Tensor:
    if activation == "none":
        return y
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or activation not in IN_PLACE:
        return ACTIVATIONS[activation](y, slope)
    return IN_PLACE[activation](y, slope)


def _fits(x: Tensor, residual: Residual | None) -> bool:
    """Whether the operator takes a residual of this shape, dtype and kind beside x."""
    if residual is None:
        return True
    r = residual.tensor
    return type(r) in PLAIN_TENSORS and r.shape == x.shape and r.dtype == x.dtype and r.device == x.device


def _has_statistics(norm: nn.Module) -> bool:
    return getattr(norm, "running_mean", None) is not None or getattr(norm, "running_var", None) is not None


def _operator_takes(x: Tensor, norm: nn.Module) -> bool:
    """Whether the operator takes these tensors; where it does not, torch does or says what is wrong."""
    dtype, device = x.dtype, x.device.type
    if type(x) not in PLAIN_TENSORS or x.dim() != 4 or dtype not in DTYPES or device not in ("cpu", "cuda"):
        return False
    for tensor in norm._parameters.values():
        if tensor is not None and (type(tensor) not in PLAIN_TENSORS or tensor.dtype != dtype):
            return False
    for name, tensor in norm._buffers.items():
        if tensor is None or name == "num_batches_tracked":
            continue
        if type(tensor) not in PLAIN_TENSORS or tensor.dtype != dtype or tensor.requires_grad:
            return False
    channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    if x.shape[1] != channels or not x.numel() or x.shape[2] * x.shape[3] < 2:
        return False
    return norm.eps > 0 and not torch.is_autocast_enabled(device)


def _pays(x: Tensor, norm: nn.Module, measured: bool, followed: bool) -> bool:
    """Whether the operator is faster than torch's layers for maps of this size and order of memory.

    measured: whether the statistics are those of x
    followed: whether an activation or a sum is part of the chain
    """
    if x.device.type != "cpu":
        return measured or followed
    kind = "group" if isinstance(norm, nn.GroupNorm) else "instance" if isinstance(norm, nn.InstanceNorm2d) else "batch"
    of_call = kind if measured else "stored", x.is_contiguous(), is_recorded(x, norm.weight)
    return x.numel() >= LEAST_NUMBERS[of_call][followed]


def is_recorded(x: Tensor, weight: Tensor | None) -> bool:
    """Whether a layer's call records gradients of its input or its weight."""
    return torch.is_grad_enabled() and (x.requires_grad or (weight is not None and weight.requires_grad))


def _options(norm: nn.Module, measured: bool) -> dict[str, object]:
    """Options of norm_act; counts a batch where torch's layer does."""
    if isinstance(norm, nn.GroupNorm):
        return {"kind": "group", "groups": norm.num_groups}
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if isinstance(norm, nn.InstanceNorm2d):
        # torch moves the statistics of a layer in training, whatever track_running_stats says
        return {"kind": "instance", "training": measured, "momentum": momentum, **_statistics(norm)}
    tracks = norm.training and norm.track_running_stats
    if tracks and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    kept = _statistics(norm) if tracks or not measured else {}
    return {"kind": "batch", "training": measured, "momentum": momentum, **kept}


def _statistics(norm: nn.Module) -> dict[str, Tensor | None]:
    return {"running_mean": norm.running_mean, "running_var": norm.running_var}
