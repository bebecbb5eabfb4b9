"""The gradient of norm_act's x as a function that is differentiated again: a critic's penalty for its own gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._gradients import of_reference, pulled_back
from ..resize_conv_act import before_activation

ACTIVATIONS = ("none", "relu", "leaky_relu")  # those whose slopes do not change


class Options(NamedTuple):
    """Of a raw call. groups: 0 where each channel has statistics over the batch."""

    groups: int
    eps: float
    activation: str
    negative_slope: float


class GradientOfX(torch.autograd.Function):
    """dx of y = activation(weight n + bias), n = (x - mean) / sqrt(var + eps), from a gradient of y.

    With a = weight times the gradient before the activation, and means over the values that share a statistic,
    dx = P(a) = (a - mean(a) - n mean(a n)) / sqrt(var + eps). P equals its transpose, so that a gradient v of dx gives
    P(v) to a, and to x, because n depends on it twice,

        -(n mean(v P(a)) + P(a) mean(v n) + P(v) mean(a n)) / sqrt(var + eps).
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        options: Options,
        first_order: Callable[..., Tensor],
        reference: Callable[..., Tensor],
    ) -> Tensor:
        """first_order: gives dx of a raw call's tensors and options. reference: y in plain PyTorch, of the same."""
        dx = first_order(grad, x, weight, bias, mean, var, options)
        ctx.save_for_backward(grad, x, weight, bias, mean, var, dx)
        ctx.options, ctx.first_order, ctx.reference = options, first_order, reference
        return dx

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (of_dx,) = grads
        grad, x, weight, bias, mean, var, dx = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a third derivative
            return *_of_reference(ctx, (grad, x, weight, bias), of_dx), *[None] * 5
        groups, eps, activation, slope = ctx.options
        need_grad, need_x, need_weight, need_bias = ctx.needs_input_grad[:4]

        def of_channels(values: Tensor) -> Tensor:
            """(C,) or (B, groups) as what meets x."""
            return (
                values.repeat_interleave(x.shape[1] // groups, 1)[..., None, None] if groups else values[:, None, None]
            )

        def means(values: Tensor) -> Tensor:
            return of_channels(values.unflatten(1, (groups, -1)).mean((2, 3, 4)) if groups else values.mean((0, 2, 3)))

        rstd = of_channels((var + eps).rsqrt())
        normalised = (x - of_channels(mean)) * rstd
        factor = 1.0 if weight is None else weight[:, None, None]
        before = None if activation == "none" else normalised * factor + (0.0 if bias is None else bias[:, None, None])

        def through(gradient: Tensor) -> Tensor:
            return before_activation(gradient, before, activation, slope)

        passed = through(grad)
        projected = ctx.first_order(of_dx, x, None, None, mean, var, ctx.options._replace(activation="none"))
        of_x = None
        if need_x:
            of_x = normalised * -means(of_dx * dx)
            of_x.addcmul_(dx, means(of_dx * normalised), value=-1)
            of_x.addcmul_(projected, means(passed * factor * normalised), value=-1).mul_(rstd)
        of_grad = through(projected * factor) if need_grad else None
        of_weight = (passed * projected).sum((0, 2, 3)) if need_weight else None
        return of_grad, of_x, of_weight, torch.zeros_like(bias) if need_bias else None, *[None] * 5


def _of_reference(ctx: Any, tensors: tuple[Tensor | None, ...], of_dx: Tensor) -> list[Tensor | None]:
    def dx(grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return pulled_back(lambda x: ctx.reference(x, weight, bias, ctx.options), [x], (grad,))[0]

    return of_reference(dx, tensors, ctx.needs_input_grad[:4], [of_dx])
