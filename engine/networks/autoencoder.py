"""The discriminator of refiner and began, an autoencoder, and its decoder, which their generators have too."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import InputError
from engine.networks.layers import SMALLEST, Conv, Linear, from_rows, level_sizes, to_rows


class Encoder(nn.Module):
    """Encode images to maps of 8x8: conv to n, then at each level i two convs (the second widens to i*n) and /2.

    downsample: how every level but the last halves: "stride": nearest /2, so the second convolution runs at stride 2;
                "average": the mean of 2x2 pixels after the second convolution
    """

    def __init__(
        self,
        resolution: int,
        filters: int,
        channels: int,
        *,
        activation: str = "elu",
        downsample: str = "stride",
        fused: bool = True,
    ):
        super().__init__()
        levels = len(level_sizes(resolution))
        self.out_channels = levels * filters
        self.downsample = downsample
        style: dict[str, Any] = {"activation": activation, "fused": fused}
        self.first = Conv(channels, filters, **style)
        self.blocks = nn.ModuleList()
        width = filters
        for level in range(1, levels + 1):
            resize = "down" if level < levels and downsample == "stride" else "none"
            self.blocks.append(Conv(width, width, **style))
            self.blocks.append(Conv(width, level * filters, resize=resize, **style))
            width = level * filters

    def forward(self, images: Tensor, grad_scale: Tensor | None = None, input_grad_from: int = 0) -> Tensor:
        """(B, channels, R, R) -> (B, levels*filters, 8, 8); grad_scale (B,) and input_grad_from as in Conv."""
        x = self.first(images, grad_scale=grad_scale, input_grad_from=input_grad_from)
        for position, block in enumerate(self.blocks, 1):
            x = block(x, grad_scale=grad_scale)
            if self.downsample == "average" and position % 2 == 0 and position < len(self.blocks):
                x = F.avg_pool2d(x, 2)
        return x


def check_levels(widths: Sequence[int], depths: Sequence[int], resolution: int) -> None:
    """Raise InputError unless both lists are empty or have one number, of at least 1, for each level."""
    sizes = level_sizes(resolution)
    for name, numbers in (("--g-widths", widths), ("--g-depths", depths)):
        if numbers and (len(numbers) != len(sizes) or min(numbers) < 1 or max(numbers) > 1 << 14):
            raise InputError(
                f"{name} needs a number from 1 to {1 << 14} for each of the levels {', '.join(map(str, sizes))}, got "
                f"{','.join(map(str, numbers))}"
            )


class Decoder(nn.Module):
    """Decode maps of 8x8 to images: at each level two convs with n filters and x2, then a conv to the image.

    The first convolution of a level also does the x2 before it.
    widths:   filters of each level, from 8x8 on; empty: n
    depths:   convolutions of each level; empty: two
    inject:   size -> number of channels that join at that size, after the x2
    upsample: "nearest", or "deconv": a transposed convolution in place of the nearest x2 and the convolution after it
    output:   what ends the decoder: "none", "tanh", or "sigmoid" (spread from [0, 1] to [-1, 1])
    """

    def __init__(
        self,
        resolution: int,
        filters: int,
        channels: int,
        *,
        widths: Sequence[int] = (),
        depths: Sequence[int] = (),
        inject: Mapping[int, int] | None = None,
        activation: str = "elu",
        output: str = "none",
        upsample: str = "nearest",
        fused: bool = True,
    ):
        super().__init__()
        inject = inject or {}
        self.sizes = level_sizes(resolution)
        self.widths = tuple(widths) or (filters,) * len(self.sizes)
        self.depths = tuple(depths) or (2,) * len(self.sizes)
        self.blocks = nn.ModuleList()
        style: dict[str, Any] = {"activation": activation, "fused": fused}
        before = self.widths[0]
        for size, width, depth in zip(self.sizes, self.widths, self.depths, strict=True):
            if size > SMALLEST and upsample == "deconv":
                self.blocks.append(Conv(before, width, kernel_size=4, stride=2, transposed=True, **style))
            else:
                resize = "none" if size == SMALLEST else "up"
                second = 0 if size == SMALLEST else inject.get(size, 0)
                self.blocks.append(Conv(before, width, resize=resize, second_channels=second, **style))
            self.blocks += [Conv(width, width, **style) for _ in range(depth - 1)]
            before = width
        self.last = Conv(before, channels, activation=output, fused=fused)

    def forward(
        self, x: Tensor, injected: Mapping[int, Tensor] | None = None, grad_scale: Tensor | None = None
    ) -> Tensor:
        """x (B, n, 8, 8), injected: size -> (B, C2, size, size) -> (B, channels, R, R); grad_scale as in Conv."""
        injected = injected or {}
        blocks = iter(self.blocks)
        for size, depth in zip(self.sizes, self.depths, strict=True):
            joining = {"second": injected[size]} if size > SMALLEST and size in injected else {}
            x = next(blocks)(x, grad_scale=grad_scale, **joining)
            for _ in range(depth - 1):
                x = next(blocks)(x, grad_scale=grad_scale)
        x = self.last(x, grad_scale=grad_scale)
        return 2 * x - 1 if self.last.activation == "sigmoid" else x


class Autoencoder(nn.Module):
    """D(v): encoder, FC to `hidden` numbers, FC back, decoder. No normalisation; options as in Encoder and Decoder.

    Source: the refiner paper, section 2.1 and figure 1 (after BEGAN, Berthelot et al. 2017).
    """

    def __init__(
        self,
        resolution: int,
        filters: int,
        channels: int,
        *,
        hidden: int = 64,
        activation: str = "elu",
        output: str = "none",
        upsample: str = "nearest",
        downsample: str = "stride",
        fused: bool = True,
    ):
        super().__init__()
        shape = (resolution, filters, channels)
        style: dict[str, Any] = {"activation": activation, "fused": fused}
        self.encoder = Encoder(*shape, downsample=downsample, **style)
        self.encode = Linear(SMALLEST * SMALLEST * self.encoder.out_channels, hidden, fused=fused)
        self.decode = Linear(hidden, SMALLEST * SMALLEST * filters, fused=fused)
        self.decoder = Decoder(*shape, output=output, upsample=upsample, **style)

    def forward(self, images: Tensor, grad_scale: Tensor | None = None, input_grad_from: int = 0) -> Tensor:
        """(B, channels, R, R) -> the reconstruction, same shape; grad_scale (B,) and input_grad_from as in Conv."""
        code = self.encode(to_rows(self.encoder(images, grad_scale, input_grad_from)), grad_scale)
        return self.decoder(from_rows(self.decode(code, grad_scale), SMALLEST), grad_scale=grad_scale)
