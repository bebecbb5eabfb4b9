"""A guiding block of ggb: judges whether the image of a decoder's level, and its change from the source, look real."""

import torch
from torch import Tensor, nn

from engine.networks.guided_unet import Down
from engine.networks.layers import Conv


class FeatureCritic(nn.Module):
    """Three 3x3 convs from features to a map of logits: RAPD on encoded images, NVTD on encoded changes."""

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
    """The encoder E, and the discriminators RAPD and NVTD on what E encodes.

    E has two convs 4x4 stride 2, to a quarter of the size with 2n filters. It has no normalisation, so a sample's
    features do not depend on the other samples of the batch, and a residual is that of one image.
    rapd, nvtd: whether the block has these discriminators
    Source: section 2.2 and figure 2 of the paper, which gives the kernels of E, not those of RAPD and NVTD.
    """

    def __init__(self, filters: int, channels: int, *, rapd: bool = True, nvtd: bool = True, fused: bool = True):
        super().__init__()
        self.encoder = nn.Sequential(
            Down(channels, filters, "none", fused=fused), Down(filters, 2 * filters, "none", fused=fused)
        )
        self.rapd = FeatureCritic(2 * filters, fused=fused) if rapd else None
        self.nvtd = FeatureCritic(2 * filters, fused=fused) if nvtd else None

    def forward(self, images: Tensor, source: Tensor) -> dict[str, Tensor]:
        """Compute the logits of being real: RAPD(E(v)) as "rapd", NVTD(E(v) - E(x)) as "nvtd".

        images:  v (k B, channels, size, size): real images, generated images, or first the ones, then the others
        source:  x (B, channels, size, size), the sources of the images
        returns: name -> (k B, 1, size/4, size/4)
        """
        encoded = self.encoder(torch.cat([images, source]))
        features, of_source = encoded[: len(images)], encoded[len(images) :]
        logits = {}
        if self.rapd is not None:
            logits["rapd"] = self.rapd(features)
        if self.nvtd is not None:
            logits["nvtd"] = self.nvtd(features - of_source.repeat(len(images) // len(source), 1, 1, 1))
        return logits
