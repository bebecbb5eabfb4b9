"""began_balance in plain PyTorch: the oracle, the baseline and the --eager path."""

from typing import NamedTuple

import torch
from torch import Tensor


class Balance(NamedTuple):
    """The losses of a BEGAN step and what follows from them, each (); k is that of the next step."""

    l_real: Tensor
    l_fake: Tensor
    loss_d: Tensor
    loss_g: Tensor
    k: Tensor
    measure: Tensor


@torch.no_grad()
def began_balance(
    per_sample: Tensor, content: Tensor, k: Tensor, *, gamma: float, lambda_k: float, lambda_r: float
) -> Balance:
    """The same signature and results as the public operator, computed in at least float32."""
    per_sample, content, k = (t.float() if t.dtype.itemsize < 4 else t for t in (per_sample, content, k))
    l_real, l_fake = (half.mean() for half in per_sample.chunk(2))
    balance = gamma * l_real - l_fake
    return Balance(
        l_real=l_real,
        l_fake=l_fake,
        loss_d=l_real - k * l_fake,
        loss_g=(1 - lambda_r) * l_fake + lambda_r * content,
        k=(k + lambda_k * balance).clamp(0, 1),
        measure=l_real + balance.abs(),
    )
