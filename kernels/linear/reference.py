"""linear in plain differentiable PyTorch: the oracle, the baseline and the --eager path."""

import torch.nn.functional as F
from torch import Tensor

from .._grad_scale import weigh_samples


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, grad_scale: Tensor | None = None) -> Tensor:
    """The same signature and result as the public operator."""
    return weigh_samples(F.linear, [x], weight, bias, grad_scale, x.dtype)
