"""The Gram matrix of one image's features by its definition, in plain PyTorch."""

import torch


def gram(features: torch.Tensor) -> torch.Tensor:
    """(C, H, W) -> (C, C): F F^T / (C H W)."""
    channels = features.shape[0]
    flat = features.reshape(channels, -1)
    return flat @ flat.T / flat.numel()
