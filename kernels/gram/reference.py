"""gram in plain differentiable PyTorch: the oracle, the baseline and the --eager path."""

from torch import Tensor


def gram(features: Tensor) -> Tensor:
    """(B, C, C) inner products of the channels of each image over C H W, at least float32."""
    if features.dtype.itemsize < 4:
        features = features.float()
    batch, channels, height, width = features.shape
    flat = features.reshape(batch, channels, height * width)
    return flat @ flat.transpose(1, 2) / (channels * height * width)
