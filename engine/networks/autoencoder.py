"""The BEGAN discriminator, an autoencoder, and the decoder body it shares with the generators."""

from collections.abc import Mapping

from torch import Tensor, nn

from engine.networks.layers import SMALLEST, Conv, Linear, from_rows, level_sizes, to_rows


class Encoder(nn.Module):
    """Images to maps of 8x8: conv to n, then per level two convs (the second widens to i*n) and nearest /2.

    The /2 belongs to the second convolution of each level but the last, which runs at stride 2.
    """

    def __init__(self, resolution: int, filters: int, channels: int, *, fused: bool = True):
        super().__init__()
        levels = len(level_sizes(resolution))
        self.out_channels = levels * filters
        self.first = Conv(channels, filters, fused=fused)
        self.blocks = nn.ModuleList()
        width = filters
        for level in range(1, levels + 1):
            resize = "down" if level < levels else "none"
            self.blocks.append(Conv(width, width, fused=fused))
            self.blocks.append(Conv(width, level * filters, resize=resize, fused=fused))
            width = level * filters

    def forward(self, images: Tensor, grad_scale: Tensor | None = None, input_grad_from: int = 0) -> Tensor:
        """(B, channels, R, R) -> (B, levels*filters, 8, 8); input_grad_from as in Conv, for the images."""
        x = self.first(images, grad_scale=grad_scale, input_grad_from=input_grad_from)
        for block in self.blocks:
            x = block(x, grad_scale=grad_scale)
        return x


class Decoder(nn.Module):
    """Maps of 8x8 to images: per level two convs with n filters and nearest x2, then a conv without activation.

    The x2 belongs to the first convolution of the level above it. `inject` maps a size to the number of channels
    that join at that size, after the x2.
    """

    def __init__(
        self,
        resolution: int,
        filters: int,
        channels: int,
        *,
        inject: Mapping[int, int] | None = None,
        fused: bool = True,
    ):
        super().__init__()
        inject = inject or {}
        self.sizes = level_sizes(resolution)
        self.blocks = nn.ModuleList()
        for size in self.sizes:
            resize = "none" if size == SMALLEST else "up"
            second = 0 if size == SMALLEST else inject.get(size, 0)
            self.blocks.append(Conv(filters, filters, resize=resize, second_channels=second, fused=fused))
            self.blocks.append(Conv(filters, filters, fused=fused))
        self.last = Conv(filters, channels, activation="none", fused=fused)

    def forward(
        self, x: Tensor, injected: Mapping[int, Tensor] | None = None, grad_scale: Tensor | None = None
    ) -> Tensor:
        """x (B, filters, 8, 8), injected: size -> (B, C2, size, size); returns (B, channels, R, R)."""
        injected = injected or {}
        for level, size in enumerate(self.sizes):
            second = injected.get(size) if level else None
            x = self.blocks[2 * level](x, second=second, grad_scale=grad_scale)
            x = self.blocks[2 * level + 1](x, grad_scale=grad_scale)
        return self.last(x, grad_scale=grad_scale)


class Autoencoder(nn.Module):
    """D(v): encoder, FC to `hidden` numbers, FC back, decoder. No normalisation, no output activation.

    Source: the refiner paper, section 2.1 and figure 1 (after BEGAN, Berthelot et al. 2017).
    """

    def __init__(self, resolution: int, filters: int, channels: int, *, hidden: int = 64, fused: bool = True):
        super().__init__()
        self.encoder = Encoder(resolution, filters, channels, fused=fused)
        self.encode = Linear(SMALLEST * SMALLEST * self.encoder.out_channels, hidden, fused=fused)
        self.decode = Linear(hidden, SMALLEST * SMALLEST * filters, fused=fused)
        self.decoder = Decoder(resolution, filters, channels, fused=fused)

    def forward(self, images: Tensor, grad_scale: Tensor | None = None, input_grad_from: int = 0) -> Tensor:
        """(B, channels, R, R) -> the reconstruction, same shape; grad_scale (B,) and input_grad_from as in Conv."""
        code = self.encode(to_rows(self.encoder(images, grad_scale, input_grad_from)), grad_scale)
        return self.decoder(from_rows(self.decode(code, grad_scale), SMALLEST), grad_scale=grad_scale)
