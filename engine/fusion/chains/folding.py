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
    if norm.training:
        return False
    mean, var, gamma = norm.running_mean, norm.running_var, norm.weight
    if mean is None or var is None or mean.requires_grad or var.requires_grad:
        return False
    shape, dtypes, device = weight.shape[transposed : transposed + 1], (weight.dtype, torch.float32), weight.device
    for tensor in (mean, var, gamma, norm.bias):
        if tensor is not None and (
            type(tensor) not in PLAIN_TENSORS
            or tensor.shape != shape
            or tensor.dtype not in dtypes
            or tensor.device != device
        ):
            return False
    return gamma is None or not (gamma.requires_grad and torch.is_grad_enabled())


def fold(bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift, (Cout,) float32, of a convolution that are its bias, (Cout,) or None, and the normalisation."""
    gamma, beta, mean = norm.weight, norm.bias, norm.running_mean.float()
    scale = norm.running_var.float().add(norm.eps).rsqrt_()
    if gamma is not None:
        scale.mul_(gamma)
    less = mean if bias is None else mean - bias
    return scale, (less * scale).neg_() if beta is None else torch.addcmul(beta.float(), less, scale, value=-1)
