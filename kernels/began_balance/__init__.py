"""The losses of a BEGAN step and its equilibrium: one launch on the device instead of an operator for every sum."""

import torch
from torch import Tensor

from .._availability import gpu_function
from .._checks import require, require_dtype
from .._contract import define, publish
from .._layout import float32
from .._native import native_function
from . import reference
from .reference import Balance

NAME = "began_balance"
_native_forward = native_function(f"{NAME}_forward")


@publish(reference.began_balance)
def began_balance(
    per_sample: Tensor, content: Tensor, k: Tensor, *, gamma: float, lambda_k: float, lambda_r: float
) -> Balance:
    """What a step reports of its losses, and the k of the next step.

    l_real  = mean L(x)      l_fake = mean L(G(z))
    loss_d  = l_real - k l_fake
    loss_g  = (1 - lambda_r) l_fake + lambda_r content
    k      <- clamp(k + lambda_k (gamma l_real - l_fake), 0, 1)
    measure = l_real + |gamma l_real - l_fake|

    per_sample: (2n,) L of n photos x, then of n images G(z), as l1_autoencoder_loss gives them for [x; G(z)]
    content:    () the content loss
    k:          () the k of this step; it is read, not written. Kept in float32: half precision does not hold its steps
    gamma:      the diversity ratio
    lambda_k:   the gain of k
    lambda_r:   the share of the content loss in loss_g

    Tensors are float32, bfloat16 or float16, each for itself. Returns Balance(l_real, l_fake, loss_d, loss_g, k,
    measure), each () float32, views of one tensor, without gradient. A NaN loss makes everything it enters NaN, the
    clamped k included. Raises ValueError when a shape, dtype or device does not fit.
    Source: Berthelot et al. 2017 (BEGAN), the objective with its control of k, and the global measure of convergence;
    loss_g: Nasser 2022, equation (4).
    """
    return Balance(*_forward(per_sample, content, k, float(gamma), float(lambda_k), float(lambda_r)).unbind())


def check(per_sample: Tensor, content: Tensor, k: Tensor, *dials: float) -> None:
    shape = tuple(per_sample.shape)
    pairs = len(shape) == 1 and shape[0] > 0 and shape[0] % 2 == 0
    require(pairs, NAME, f"per_sample must be (2n,), n > 0, not {shape}")
    for name, tensor in (("per_sample", per_sample), ("content", content), ("k", k)):
        require_dtype(NAME, name, tensor.dtype)
        require(tensor is per_sample or not tensor.shape, NAME, f"{name} must be (), not {tuple(tensor.shape)}")


def output(per_sample: Tensor) -> Tensor:
    """The fields of Balance in their order."""
    return torch.empty(len(Balance._fields), dtype=torch.float32, device=per_sample.device)


def _forward_cpu(per_sample, content, k, gamma, lambda_k, lambda_r):
    results = output(per_sample)
    losses = {"per_sample": float32(per_sample), "content": float32(content), "k": float32(k)}
    dials = {"gamma": gamma, "lambda_k": lambda_k, "lambda_r": lambda_r}
    _native_forward(**losses, results=results, n=per_sample.shape[0] // 2, **dials)
    return results


def _forward_fake(per_sample, content, k, gamma, lambda_k, lambda_r):
    return output(per_sample)


def _reference(per_sample, content, k, gamma, lambda_k, lambda_r):
    return torch.stack(
        reference.began_balance(per_sample, content, k, gamma=gamma, lambda_k=lambda_k, lambda_r=lambda_r)
    )


_forward = define(
    f"{NAME}(Tensor per_sample, Tensor content, Tensor k, float gamma, float lambda_k, float lambda_r) -> Tensor",
    check=check,
    cpu=_forward_cpu,
    cuda=gpu_function(__name__, "forward"),
    fake=_forward_fake,
    reference=_reference,
)
