"""Layers that are about the whole batch, also where each of several ranks has a share of it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import distributed


class BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d over the global batch. torch's SyncBatchNorm would not run on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and dtype."""
        if distributed.size() == 1 or not self.training:
            return super().forward(x)
        y, mean, variance = _Normalised.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            count = distributed.size() * x.numel() // x.shape[1]
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return y


class _Normalised(torch.autograd.Function):
    """Batch normalisation with one exchange each way. Returns also the global mean and variance (C,), float32.

    Every rank's loss is a mean over its share, and the ranks' gradients are averaged afterwards: so the backward pass
    is that of the sum of all ranks' losses.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.float()
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        variances, means = distributed.stacked(torch.stack([variance, mean])).unbind(1)
        # shares are of one size: the mean variance within them, and the variance of their means
        mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
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
    return values[:, None, None]


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """F.dropout of (B, C, H, W), as the global batch would have it."""
    return _dropped(F.dropout, x, probability, training)


def dropout2d(x: Tensor, probability: float, training: bool) -> Tensor:
    """F.dropout2d (whole channels) of (B, C, H, W), as the global batch would have it."""
    return _dropped(F.dropout2d, x, probability, training)


def _dropped(drop: Callable[[Tensor, float, bool], Tensor], x: Tensor, probability: float, training: bool) -> Tensor:
    if distributed.size() == 1 or not training:
        return drop(x, probability, training)
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last

    def draw(rows: int) -> Tensor:
        # on ones of the global batch's shape and layout, the generator is asked as it is for that batch
        kept = torch.ones((rows, *x.shape[1:]), dtype=x.dtype, device=x.device).contiguous(memory_format=layout)
        return drop(kept, probability, True)

    return x * distributed.drawn(draw, len(x))
