"""A Generative Guiding Block's judges: is the image of a decoder's level real, and is its change from the source?"""

import torch
from torch import Tensor, nn

from engine.networks.guided_unet import Down
from engine.networks.layers import Conv


class FeatureCritic(nn.Module):
    """Three 3x3 convs from features to a map of logits (RAPD on encoded images, NVTD on encoded changes)."""

    def __init__(self, channels: int, *, fused: bool = True):
        super().__init__()
        self.body = nn.ModuleList(Conv(channels, channels, activation="leaky_relu", fused=fused) for _ in range(2))
        self.last = Conv(channels, 1, activation="none", fused=fused)

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, 1, H, W) logits of being real."""
        for conv in self.body:
            features = conv(features)
        return self.last(features)


class GuidingBlock(nn.Module):
    """E, and RAPD and NVTD on what it encodes.

    E: two convs 4x4 stride 2, to a quarter of the size with 2n filters. No normalisation: a sample's features do not
    depend on the others of the batch, so that residuals are of one image.
    rapd, nvtd: which of the two there are.
    Source: section 2.2 and figure 2; the paper gives E's kernels, not those of RAPD and NVTD.
    """

    def __init__(self, filters: int, channels: int, *, rapd: bool = True, nvtd: bool = True, fused: bool = True):
        super().__init__()
        self.encoder = nn.Sequential(Down(channels, filters, "none"), Down(filters, 2 * filters, "none"))
        self.rapd = FeatureCritic(2 * filters, fused=fused) if rapd else None
        self.nvtd = FeatureCritic(2 * filters, fused=fused) if nvtd else None

    def forward(self, images: Tensor, source: Tensor) -> dict[str, Tensor]:
        """Logits of being real, (B, 1, size/4, size/4) each: RAPD(E(v)) as "rapd", NVTD(E(v) - E(x)) as "nvtd".

        images: v (k B, channels, size, size), real, made, or both one after another; source: x (B, ...), theirs.
        """
        encoded = self.encoder(torch.cat([images, source]))
        features, of_source = encoded[: len(images)], encoded[len(images) :]
        logits = {}
        if self.rapd is not None:
            logits["rapd"] = self.rapd(features)
        if self.nvtd is not None:
            logits["nvtd"] = self.nvtd(features - of_source.repeat(len(images) // len(source), 1, 1, 1))
        return logits
