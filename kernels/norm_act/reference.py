"""norm_act in plain differentiable PyTorch: the oracle, the baseline and the --eager path."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..resize_conv_act.reference import ACTIVATIONS


def norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    kind: str,
    groups: int | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    negative_slope: float = 0.2,
    residual: Tensor | None = None,
    residual_place: str = "before",
) -> Tensor:
    """The same signature and result as the public operator; it moves running statistics too."""
    weight, bias, *running = as_one_dtype(x, weight, bias, running_mean, running_var)
    if kind == "batch":
        y = F.batch_norm(x, *running, weight, bias, training, momentum, eps)
    elif kind == "instance" and x.shape[0]:
        y = F.instance_norm(x, *running, weight, bias, training, momentum, eps)
    else:  # PyTorch's instance_norm takes no empty batch
        y = F.group_norm(x, {"instance": x.shape[1], "layer": 1}.get(kind, groups or 1), weight, bias, eps)
    if residual is not None and residual_place == "before":
        y = y + residual
    y = ACTIVATIONS[activation](y, negative_slope)
    return y + residual if residual is not None and residual_place == "after" else y


def as_one_dtype(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *running: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The parameters as PyTorch takes them beside x: weight and bias both or none; all of x's dtype, or else float32.

    Running statistics that are float32 stay themselves: they may be written to.
    """
    if weight is not None or bias is not None:  # PyTorch's group_norm cannot be differentiated with one of them
        weight = x.new_ones(x.shape[1]) if weight is None else weight
        bias = x.new_zeros(x.shape[1]) if bias is None else bias
    given = (weight, bias, *running)
    if all(tensor is None or tensor.dtype == x.dtype for tensor in given):
        return given
    wide = torch.promote_types(x.dtype, torch.float32)
    return tuple(None if tensor is None else tensor.to(wide) for tensor in given)


def statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance: of each image's groups of channels (B, groups); groups 0: of each channel (C,)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide.unflatten(1, (groups, -1)).flatten(2) if groups else wide.transpose(0, 1).flatten(1)
    var, mean = torch.var_mean(wide, -1, correction=0)
    return mean, var
