"""Folds a batch normalisation in evaluation into the convolution before it: its scale and shift are the operator's.

gamma (conv(x) + b - mean) / sqrt(var + eps) + beta is s conv(x) + (b - mean) s + beta of each channel, where
s = gamma / sqrt(var + eps). Scale and shift are made at every call of what the tensors hold then, so no change of them
is missed; the weight of the convolution stays as it is.
"""

import torch
from torch import Tensor, nn

from engine.fusion.lookups import PLAIN_TENSORS


def can_fold(weight: Tensor, norm: nn.BatchNorm2d, transposed: bool) -> bool:
    """Whether the normalisation is a scale and a shift of each channel now, and none but exact gradients are wanted.

    The gradient of gamma would be a difference of large sums, one over the weight and one of the mean: it loses digits
    that the normalisation as written keeps. So nothing is folded where it is wanted.
    """
    statistics = norm.running_mean, norm.running_var
    if norm.training or None in (statistics[0], statistics[1]):
        return False
    given = [tensor for tensor in (*statistics, norm.weight, norm.bias) if tensor is not None]
    channels = weight.shape[1 if transposed else 0]
    fit = all(
        type(t) in PLAIN_TENSORS and t.shape == (channels,) and t.dtype in (weight.dtype, torch.float32) for t in given
    )
    if not fit or any(t.device != weight.device or t.requires_grad for t in statistics):
        return False
    return not (torch.is_grad_enabled() and norm.weight is not None and norm.weight.requires_grad)


def fold(bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift, (Cout,) float32, of a convolution that are its bias, (Cout,) or None, and the normalisation."""
    scale = norm.running_var.float().add(norm.eps).rsqrt_()
    if norm.weight is not None:
        scale.mul_(norm.weight)
    mean = norm.running_mean.float()
    less = mean if bias is None else mean - bias
    if norm.bias is None:
        return scale, (less * scale).neg_()
    return scale, torch.addcmul(norm.bias.float(), less, scale, value=-1)
