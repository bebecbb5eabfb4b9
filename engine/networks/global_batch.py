"""BatchNorm and dropout over the global batch, of which each of several ranks has a share."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import distributed
from engine.kernels.norm_act import over_ranks
from engine.kernels.resize_conv_act.reference import ACTIVATIONS
from engine.networks.norms import NORM_ACT, activation_options, described


class BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d over the global batch, a residual sum and an activation; torch's SyncBatchNorm runs on no CPU.

    activation:     as in norm_act of engine.ops, with its negative_slope
    residual_place: whether forward's residual is added "before" or "after" the activation
    fused:          one operator, norm_act; False: plain PyTorch
    options:        those of nn.BatchNorm2d
    """

    def __init__(
        self,
        num_features: int,
        *,
        activation: str = "none",
        negative_slope: float = 0.2,
        residual_place: str = "before",
        fused: bool = False,
        **options: Any,
    ):
        super().__init__(num_features, **options)
        self.activation, self.negative_slope = activation, negative_slope
        self.residual_place, self.fused = residual_place, fused

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, C, H, W), and a residual of the same shape or None -> the same shape and dtype."""
        if self.training and distributed.size() > 1:
            return self._over_ranks(x, residual)
        momentum = self.momentum or 0.0
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average of all batches so far
                momentum = 1.0 / float(self.num_batches_tracked)
        return NORM_ACT[self.fused](
            x,
            self.weight,
            self.bias,
            kind="batch",
            running_mean=self.running_mean,
            running_var=self.running_var,
            training=self.training or self.running_mean is None,
            momentum=momentum,
            eps=self.eps,
            residual=residual,
            **activation_options(self),
        )

    def _over_ranks(self, x: Tensor, residual: Tensor | None) -> Tensor:
        after = self.residual_place == "after"
        if self.fused:
            options = over_ranks.Options(self.eps, self.activation, self.negative_slope, after)
            y, mean, variance = _Fused.apply(x, self.weight, self.bias, residual, options)
        else:
            y, mean, variance = _Normalised.apply(x, self.weight, self.bias, self.eps)
            y = y if residual is None or after else y + residual
            y = ACTIVATIONS[self.activation](y, self.negative_slope)
            y = y + residual if residual is not None and after else y
        with torch.no_grad():
            count = distributed.size() * x.numel() // x.shape[1]
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {described(self)}"


def _joined(shares: Tensor) -> tuple[Tensor, Tensor]:
    """The global mean and variance of each channel (C,), from those of every rank's share (ranks, 2, C)."""
    means, variances = shares.unbind(1)
    # the shares have one size, so the variance is the mean variance within them plus the variance of their means
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


class _Fused(torch.autograd.Function):
    """norm_act over all ranks: y, and the global mean and variance, (C,) float32. One exchange each way.

    The gradients are those of _Normalised below, with a residual sum and an activation.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, options: over_ranks.Options
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _joined(distributed.stacked(over_ranks.statistics(x)))
        ctx.save_for_backward(x, weight, bias, residual, mean, variance)
        ctx.options = options
        ctx.mark_non_differentiable(mean, variance)
        return over_ranks.normalise(x, weight, bias, residual, mean, variance, options), mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        saved, x = ctx.saved_tensors, ctx.saved_tensors[0]
        sums = over_ranks.sums(grad, *saved, ctx.options)
        of_bias, of_weight = sums
        means = distributed.mean_(sums / (x.numel() // x.shape[1]))
        need = [ctx.needs_input_grad[0], ctx.needs_input_grad[3]]
        of_x, of_residual = over_ranks.input_gradients(grad, *saved, means, ctx.options, need)
        parameters = [
            g if needed else None for g, needed in zip((of_weight, of_bias), ctx.needs_input_grad[1:3], strict=True)
        ]
        return of_x, *parameters, of_residual, None


class _Normalised(torch.autograd.Function):
    """Batch normalisation over all ranks: y, and the global mean and variance, (C,) float32. One exchange each way.

    Every rank's loss is a mean over its share of the batch, and the ranks' gradients are averaged afterwards. So the
    backward pass is that of the sum of all ranks' losses.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.float()
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        mean, variance = _joined(distributed.stacked(torch.stack([mean, variance])))
        rstd = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        y = (wide - _column(mean)) * _column(rstd * weight) + _column(bias)
        ctx.mark_non_differentiable(mean, variance)
        return y.to(x.dtype), mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        wide = grad.float()
        standard = (x.float() - _column(mean)) * _column(rstd)
        of_bias, of_weight = wide.sum((0, 2, 3)), (wide * standard).sum((0, 2, 3))
        of_x = None
        if ctx.needs_input_grad[0]:
            pixels = x.numel() // x.shape[1]
            means = distributed.mean_(torch.stack([of_bias, of_weight]) / pixels)
            of_x = (wide - _column(means[0]) - standard * _column(means[1])) * _column(rstd * weight)
            of_x = of_x.to(x.dtype)
        return of_x, of_weight, of_bias, None


def _column(values: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1), which multiplies maps (B, C, H, W) channel by channel."""
    return values[:, None, None]


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """F.dropout of a rank's share (B, C, H, W), with the choice that one process would make for the global batch.

    The choice does not depend on the order of memory: fused and eager networks drop the same elements.
    """
    return x * _kept(F.dropout, x, tuple(x.shape[1:]), probability) if training else x


def dropout2d(x: Tensor, probability: float, training: bool) -> Tensor:
    """F.dropout2d (whole channels) of a rank's share (B, C, H, W), with the choice of one process, as in dropout."""
    return x * _kept(F.dropout2d, x, (x.shape[1], 1, 1), probability) if training else x


def _kept(
    drop: Callable[[Tensor, float, bool], Tensor], x: Tensor, of_image: tuple[int, ...], probability: float
) -> Tensor:
    """The factors that `drop` takes for x, `of_image` for each image."""

    def draw(rows: int) -> Tensor:
        # the random generator draws for ones as it does for a tensor of the global batch
        return drop(torch.ones((rows, *of_image), dtype=x.dtype, device=x.device), probability, True)

    factors = distributed.drawn(draw, len(x))
    return factors if x.is_contiguous() else factors.contiguous(memory_format=torch.channels_last)
