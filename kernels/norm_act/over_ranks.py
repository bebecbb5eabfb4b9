"""The parts of a batch normalisation whose batch lies on several ranks: they exchange statistics, then sums.

Forward:  `statistics` of each share, joined by the caller, then `normalise` with those of the whole batch.
Backward: `sums` of each share, joined by the caller, then `input_gradients` with the means over the whole batch.
Nothing here is recorded by autograd: the caller's own torch.autograd.Function is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import backward, forward


@dataclass(frozen=True)
class Options:
    """Those of norm_act."""

    eps: float = 1e-5
    activation: str = "none"
    negative_slope: float = 0.2
    residual_after: bool = False


def statistics(x: Tensor) -> Tensor:
    """The mean and the biased variance of each channel of x (B, C, H, W), as one float32 tensor (2, C)."""
    _, mean, var = forward(x, None, None, None, None, None, 0, 1.0, "none", 0.0, False, True)
    return torch.stack([mean, var])


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    options: Options,
) -> Tensor:
    """y of norm_act like x, by these statistics (C,)."""
    last = options.eps, options.activation, options.negative_slope, options.residual_after, False
    return forward(x, weight, bias, residual, mean, var, 0, *last)[0]


def sums(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    options: Options,
) -> Tensor:
    """Sums over this share, float32 (2, C), from the gradient of y: those of the gradient g before the activation and
    of g times the normalised x. They are the gradients of bias and weight."""
    ones, zeros = x.new_ones(x.shape[1], dtype=torch.float32), x.new_zeros(x.shape[1], dtype=torch.float32)
    weight, bias = ones if weight is None else weight.float(), zeros if bias is None else bias.float()
    need = [False, True, True, False]
    _, of_weight, of_bias, _ = _backward(grad, x, weight, bias, residual, mean, var, None, options, need)
    return torch.stack([of_bias, of_weight])


def input_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    means: Tensor,
    options: Options,
    need: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and residual, those that are needed.

    means: (2, C) float32, the `sums` of all shares together, divided by the number of values that a channel has
    """
    passed = options.residual_after or options.activation == "none"  # no activation follows the residual
    wanted = [need[0], False, False, need[1] and not passed]
    of_x = of_residual = None
    if any(wanted):
        of_x, _, _, of_residual = _backward(grad, x, weight, bias, residual, mean, var, means, options, wanted)
    return of_x if need[0] else None, (grad if passed else of_residual) if need[1] else None


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    means: Tensor | None,
    options: Options,
    need: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    before = None if options.residual_after else residual
    last = 0, False, options.eps, options.activation, options.negative_slope, need
    return backward(grad, x, weight, bias, before, mean, var, means, *last)
