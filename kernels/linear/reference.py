"""linear in plain differentiable PyTorch: the oracle, the baseline and the --eager path."""

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, grad_scale: Tensor | None = None) -> Tensor:
    """The same signature and result as the public operator."""
    if grad_scale is None:
        return F.linear(x, weight, bias)
    # value of the plain product; the parameters' gradient passes through the scaled zero
    for_weights = F.linear(x.detach(), weight, bias)
    for_input = F.linear(x, weight.detach(), None if bias is None else bias.detach())
    return for_input + grad_scale.to(x.dtype).unsqueeze(1) * (for_weights - for_weights.detach())
