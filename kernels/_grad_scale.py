"""Per-sample weights of the parameters' gradients (`grad_scale`) in plain PyTorch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def weigh_samples(
    layer: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    weight: Tensor,
    bias: Tensor | None,
    grad_scale: Tensor | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """layer(*inputs, weight, bias), each sample's part in the gradients of weight and bias times its factor.

    layer:      linear in its parameters; inputs and result have the batch first
    grad_scale: (B,) the factors, which the inputs' gradients do not see. None: the plain call
    dtype:      in which the factors multiply; None: that of the layer's result

    The value is the plain call's. The inputs' gradients pass through that call; those of the parameters pass through
    the difference of a second call and its constant copy: it is zero, so its gradient can be scaled.
    """
    if grad_scale is None:
        return layer(*inputs, weight, bias)
    held = [None if tensor is None else tensor.detach() for tensor in inputs]
    for_weights = layer(*held, weight, bias)
    for_inputs = layer(*inputs, weight.detach(), None if bias is None else bias.detach())
    factors = grad_scale.to(dtype or for_inputs.dtype).view(-1, *[1] * (for_inputs.dim() - 1))
    return for_inputs + factors * (for_weights - for_weights.detach())
