"""The generator of began: noise to an image, through a decoder like that of the discriminator."""

from collections.abc import Sequence

from torch import Tensor, nn

from engine.networks.autoencoder import Decoder
from engine.networks.layers import SMALLEST, Linear, from_rows


class BeganGenerator(nn.Module):
    """G(z): FC to maps of 8x8, then a Decoder.

    hidden:                       h, the length of the noise
    widths, depths:               filters and convolutions of each level, as in Decoder
    activation, output, upsample: as in Decoder
    Source: Zhang et al., Realistic Face Image Generation Based on GAN, section 3.1 and figure 2.
    """

    def __init__(
        self,
        resolution: int,
        filters: int,
        channels: int,
        *,
        hidden: int = 64,
        widths: Sequence[int] = (),
        depths: Sequence[int] = (),
        activation: str = "elu",
        output: str = "none",
        upsample: str = "nearest",
        fused: bool = True,
    ):
        super().__init__()
        style = {"activation": activation, "output": output, "upsample": upsample, "fused": fused}
        self.decode = Linear(hidden, SMALLEST * SMALLEST * (widths[0] if widths else filters), fused=fused)
        self.decoder = Decoder(resolution, filters, channels, widths=widths, depths=depths, **style)

    def forward(self, noise: Tensor) -> Tensor:
        """(B, hidden) -> (B, channels, R, R)."""
        return self.decoder(from_rows(self.decode(noise), SMALLEST))
