"""Whether float32 products of a GPU may take TF32, PyTorch's own and Kiln's. PyTorch starts with cuDNN allowed to."""

import contextlib
from collections.abc import Iterator

import torch


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 for float32 convolutions and matrix products of this process. Its errors are 1e-3."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


@contextlib.contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """A block with `allow_tf32(allowed)`, after which both are as before."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    allow_tf32(allowed)
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
