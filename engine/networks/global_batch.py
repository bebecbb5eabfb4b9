"""BatchNorm and dropout over the global batch, of which each of several ranks has a share."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import distributed


class BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d over the global batch; torch's SyncBatchNorm does not run on a CPU."""

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
    """Batch normalisation over all ranks: y, and the global mean and variance, (C,) float32. One exchange each way.

    Every rank's loss is a mean over its share of the batch, and the ranks' gradients are averaged afterwards. So the
    backward pass is that of the sum of all ranks' losses.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.float()
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        variances, means = distributed.stacked(torch.stack([variance, mean])).unbind(1)
        # the shares have one size, so the variance is the mean variance within them plus the variance of their means
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
    """(C,) -> (C, 1, 1), which multiplies maps (B, C, H, W) channel by channel."""
    return values[:, None, None]


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """F.dropout of a rank's share (B, C, H, W), with the choice that one process would make for the global batch."""
    return _dropped(F.dropout, x, probability, training)


def dropout2d(x: Tensor, probability: float, training: bool) -> Tensor:
    """F.dropout2d (whole channels) of a rank's share (B, C, H, W), with the choice of one process, as in dropout."""
    return _dropped(F.dropout2d, x, probability, training)


def _dropped(drop: Callable[[Tensor, float, bool], Tensor], x: Tensor, probability: float, training: bool) -> Tensor:
    if distributed.size() == 1 or not training:
        return drop(x, probability, training)
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last

    def draw(rows: int) -> Tensor:
        # ones of the global batch's shape and layout make the random generator draw as it does for that batch
        kept = torch.ones((rows, *x.shape[1:]), dtype=x.dtype, device=x.device).contiguous(memory_format=layout)
        return drop(kept, probability, True)

    return x * distributed.drawn(draw, len(x))
