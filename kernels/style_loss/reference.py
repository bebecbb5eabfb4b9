"""style_loss in plain differentiable PyTorch: the oracle, the baseline and the --eager path."""

import torch
from torch import Tensor

from ..gram.reference import gram


def style_loss(a: Tensor, b: Tensor, *, squared: bool = False) -> tuple[Tensor, Tensor]:
    """The same signature and result as the public operator, at least float32."""
    difference = (gram(a) - gram(b)).flatten(1)
    per_sample = difference.square().sum(1) if squared else torch.linalg.vector_norm(difference, dim=1)
    return per_sample, per_sample.mean()
