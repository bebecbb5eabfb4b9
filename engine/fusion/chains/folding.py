"""Folds a batch normalisation in evaluation into the convolution before it: one convolution with another weight.

gamma (w * x + b - mean) / sqrt(var + eps) + beta is a convolution with the weight w s and the bias (b - mean) s + beta,
where s = gamma / sqrt(var + eps) of each channel. The folded weight is made at every call of what the tensors hold
then, so no change of them is missed. Where nothing is recorded for a backward pass it is made in memory that is kept;
the operator, too, keeps what it packs of that memory, and packs again where a number has changed.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from engine.fusion.lookups import PLAIN_TENSORS
from engine.kernels._of_tensors import OfTensors

FOLDED: OfTensors[WeakKeyDictionary[nn.Module, Tensor]] = OfTensors()  # weight -> normalisation -> the folded weight
MADE_OF: OfTensors[int] = OfTensors()  # folded weight -> the address of the weight that it was made of


def can_fold(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d, transposed: bool) -> bool:
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


def fold(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d, transposed: bool
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that is the convolution of x and then the normalisation; float32.

    x: (B, C, H, W); weight: (Cout, C, K, K), transposed (C, Cout, K, K); bias: (Cout,) or None
    """
    gamma, beta, mean = norm.weight, norm.bias, norm.running_mean.float()
    scale = torch.rsqrt(norm.running_var.float() + norm.eps)
    scale = scale if gamma is None else scale * gamma
    shift = -mean * scale if bias is None else (bias - mean) * scale
    shift = shift if beta is None else shift + beta
    scale = scale.view((1, -1, 1, 1) if transposed else (-1, 1, 1, 1))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, beta)):
        folded = weight * scale
    else:
        folded = torch.mul(weight, scale, out=_kept(weight, norm))
    MADE_OF[folded] = weight.data_ptr()
    return folded, shift


def _kept(weight: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Memory for a folded weight, the same at every call."""
    of_weight = FOLDED.get(weight)
    if of_weight is None:
        of_weight = FOLDED[weight] = WeakKeyDictionary()
    kept = of_weight.get(norm)
    if kept is None or kept.shape != weight.shape or kept.stride() != weight.stride() or kept.device != weight.device:
        # a tensor made in inference mode could not be written to outside of it
        with torch.inference_mode(False):
            kept = of_weight[norm] = torch.empty_like(weight, dtype=torch.float32, requires_grad=False)
    return kept


def address_of(weight: Tensor) -> int:
    """The address of a weight; of a folded one, that of the weight that it was made of."""
    return MADE_OF.get(weight) or weight.data_ptr()
