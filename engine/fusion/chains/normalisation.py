"""Runs a normalisation and the activation after it by the operator norm_act, or as written where that is faster."""

import torch
from torch import Tensor, nn

from engine import ops
from engine.fusion.chains.classify import DTYPES
from engine.fusion.lookups import PLAIN_TENSORS
from engine.kernels.resize_conv_act.reference import ACTIVATIONS

# the smallest maps, in pixels, for which the operator is as fast as torch's layers: instance normalisation, for which
# torch makes a copy; and what torch computes in one pass too
LEAST_PIXELS, LEAST_PIXELS_OF_ONE_PASS = 64, 1024


def run_norm(
    x: Tensor, norm: nn.Module, planar: bool | None, activation: str, slope: float, copy_input: bool
) -> Tensor:
    """activation(norm(x)) by norm_act, or as written where that is as fast.

    x:          (B, C, H, W)
    norm:       BatchNorm2d, InstanceNorm2d or GroupNorm; its mode, parameters and statistics are those at the call
    planar:     whether torch would make a contiguous result; None: the next call is a chain as well
    activation, slope: as of NormChain
    copy_input: whether others may write into x after the call; torch's instance normalisation keeps a copy of x
    """
    measured = norm.training or not _has_statistics(norm)
    if torch.compiler.is_compiling() or not _operator_takes(x, norm) or not _pays(x, norm, measured):
        y = ACTIVATIONS[activation](norm(x), slope)
    else:
        if copy_input and torch.is_grad_enabled() and not x.is_contiguous():
            x = x.clone()
        options = _options(norm, measured)
        y = ops.norm_act(
            x, norm.weight, norm.bias, eps=norm.eps, activation=activation, negative_slope=slope, **options
        )
    return y.contiguous() if planar and y.dim() == 4 else y


def _has_statistics(norm: nn.Module) -> bool:
    return getattr(norm, "running_mean", None) is not None or getattr(norm, "running_var", None) is not None


def _operator_takes(x: Tensor, norm: nn.Module) -> bool:
    """Whether the operator takes these tensors; where it does not, torch does or says what is wrong."""
    tensors = [
        x,
        *norm.parameters(),
        *(b for b in norm.buffers() if b is not getattr(norm, "num_batches_tracked", None)),
    ]
    if not all(type(tensor) in PLAIN_TENSORS and tensor.dtype == x.dtype for tensor in tensors):
        return False
    if x.dim() != 4 or x.dtype not in DTYPES or x.device.type not in ("cpu", "cuda"):
        return False
    channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    if x.shape[1] != channels or not x.numel() or x.shape[2] * x.shape[3] < 2:
        return False
    if torch.is_autocast_enabled(x.device.type) or not norm.eps > 0:
        return False
    return not any(buffer.requires_grad for buffer in norm.buffers())


def _pays(x: Tensor, norm: nn.Module, measured: bool) -> bool:
    """Whether the operator is faster than torch's layers for maps of this size and order of memory.

    measured: whether the statistics are those of x

    On a CPU torch normalises by given statistics in one pass, and groups of contiguous maps too.
    """
    if not measured:
        return False
    pixels, planar = x.shape[2] * x.shape[3], x.is_contiguous()
    if isinstance(norm, nn.InstanceNorm2d):
        return pixels >= LEAST_PIXELS
    if isinstance(norm, nn.GroupNorm):
        return pixels >= LEAST_PIXELS_OF_ONE_PASS and not planar
    return planar or pixels >= LEAST_PIXELS_OF_ONE_PASS


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
    kept = _statistics(norm) if tracks else {}
    return {"kind": "batch", "training": measured, "momentum": momentum, **kept}


def _statistics(norm: nn.Module) -> dict[str, Tensor | None]:
    return {"running_mean": norm.running_mean, "running_var": norm.running_var}
