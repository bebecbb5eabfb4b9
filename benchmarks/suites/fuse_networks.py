"""Networks of the suite `fuse` as their authors' code has them, layer by layer: GANs first, then others."""

import torch
from torch import Tensor, nn


class Level(nn.Module):
    """One level of pix2pix's U-Net: halves, calls the level below, doubles, and joins its input to the result.

    outer, inner: filters outside of the level and inside
    below:        the level below; None for the lowest, which normalises only on the way up
    inputs:       of the whole network, for the highest level alone, which has tanh and joins nothing
    """

    def __init__(self, outer: int, inner: int, below: nn.Module | None, *, inputs: int = 0, dropout: bool = False):
        super().__init__()
        highest = inputs > 0
        down: list[nn.Module] = [nn.Conv2d(inputs or outer, inner, 4, 2, 1, bias=False)]
        if not highest:
            down.insert(0, nn.LeakyReLU(0.2, True))
        if below:
            down += [below] if highest else [nn.BatchNorm2d(inner), below]
        joined = 2 * inner if below else inner
        up: list[nn.Module] = [nn.ReLU(True), nn.ConvTranspose2d(joined, outer, 4, 2, 1, bias=highest)]
        up += [nn.Tanh()] if highest else [nn.BatchNorm2d(outer)]
        self.highest = highest
        self.model = nn.Sequential(*down, *up, *[nn.Dropout(0.5)] * dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.highest else torch.cat([x, self.model(x)], 1)


def pix2pix_unet(filters: int = 64) -> nn.Module:
    """The generator of pix2pix (Isola et al. 2017) for 256x256 pixels: eight levels, dropout in three of the lowest."""
    n = filters
    level = Level(8 * n, 8 * n, None)
    for _ in range(3):
        level = Level(8 * n, 8 * n, level, dropout=True)
    for outer in (4 * n, 2 * n, n):
        level = Level(outer, 2 * outer, level)
    return Level(3, n, level, inputs=3)


def patchgan(inputs: int = 6, filters: int = 64) -> nn.Module:
    """The discriminator of pix2pix, which judges patches of 70x70 pixels of two images joined."""
    n = filters
    layers = [nn.Conv2d(inputs, n, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for before, after, stride in ((n, 2 * n, 2), (2 * n, 4 * n, 2), (4 * n, 8 * n, 1)):
        layers += [nn.Conv2d(before, after, 4, stride, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(8 * n, 1, 4, 1, 1))


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module):
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def cyclegan_resnet(filters: int = 64, blocks: int = 9) -> nn.Module:
    """The generator of CycleGAN (Zhu et al. 2017): reflected borders, instance normalisation, nine residual blocks."""
    n = filters
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(3, n, 7), nn.InstanceNorm2d(n), nn.ReLU(True)]
    for width in (n, 2 * n):
        layers += [nn.Conv2d(width, 2 * width, 3, 2, 1), nn.InstanceNorm2d(2 * width), nn.ReLU(True)]
    layers += [Residual(*_reflected(4 * n), nn.ReLU(True), *_reflected(4 * n)) for _ in range(blocks)]
    for width in (4 * n, 2 * n):
        half = width // 2
        layers += [nn.ConvTranspose2d(width, half, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(half), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(n, 3, 7), nn.Tanh())


def _reflected(width: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]


def dcgan_generator(noise: int = 100, filters: int = 64) -> nn.Module:
    """G of DCGAN (Radford et al. 2016) for 64x64 pixels, as in pytorch/examples."""
    n = filters
    layers: list[nn.Module] = [nn.ConvTranspose2d(noise, 8 * n, 4, 1, 0, bias=False)]
    for width in (8 * n, 4 * n, 2 * n):
        layers += [nn.BatchNorm2d(width), nn.ReLU(True), nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False)]
    return nn.Sequential(
        *layers, nn.BatchNorm2d(n), nn.ReLU(True), nn.ConvTranspose2d(n, 3, 4, 2, 1, bias=False), nn.Tanh()
    )


def dcgan_discriminator(filters: int = 64) -> nn.Module:
    """D of DCGAN for 64x64 pixels, as in pytorch/examples."""
    n = filters
    layers: list[nn.Module] = [nn.Conv2d(3, n, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for width in (n, 2 * n, 4 * n):
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(8 * n, 1, 4, 1, 0, bias=False), nn.Sigmoid(), nn.Flatten(0))


class StarGAN(nn.Module):
    """The generator of StarGAN (Choi et al. 2018): the wanted attributes are further channels of the image."""

    def __init__(self, attributes: int = 5, filters: int = 64, blocks: int = 6):
        super().__init__()
        n = filters
        layers: list[nn.Module] = [nn.Conv2d(3 + attributes, n, 7, 1, 3, bias=False), _norm(n), nn.ReLU(True)]
        for width in (n, 2 * n):
            layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), _norm(2 * width), nn.ReLU(True)]
        for _ in range(blocks):
            first, second = (nn.Conv2d(4 * n, 4 * n, 3, 1, 1, bias=False) for _ in range(2))
            layers.append(Residual(first, _norm(4 * n), nn.ReLU(True), second, _norm(4 * n)))
        for width in (4 * n, 2 * n):
            half = width // 2
            layers += [nn.ConvTranspose2d(width, half, 4, 2, 1, bias=False), _norm(half), nn.ReLU(True)]
        self.main = nn.Sequential(*layers, nn.Conv2d(n, 3, 7, 1, 3, bias=False), nn.Tanh())

    def forward(self, x: Tensor, attributes: Tensor) -> Tensor:
        """x: (B, 3, H, W); attributes: (B, attributes)."""
        maps = attributes.view(attributes.size(0), attributes.size(1), 1, 1)
        return self.main(torch.cat([x, maps.repeat(1, 1, x.size(2), x.size(3))], dim=1))


def _norm(width: int) -> nn.Module:
    return nn.InstanceNorm2d(width, affine=True, track_running_stats=True)


class TransformerNet(nn.Module):
    """Fast neural style (Johnson et al. 2016) as in pytorch/examples: reflected borders, nearest x2."""

    def __init__(self) -> None:
        super().__init__()
        down = [(3, 32, 9, 1), (32, 64, 3, 2), (64, 128, 3, 2)]
        layers = [layer for sizes in down for layer in (*self._conv(*sizes), nn.ReLU())]
        layers += [Residual(*self._conv(128, 128, 3, 1), nn.ReLU(), *self._conv(128, 128, 3, 1)) for _ in range(5)]
        for before, after in ((128, 64), (64, 32)):
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), *self._conv(before, after, 3, 1), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.ReflectionPad2d(4), nn.Conv2d(32, 3, 9))

    @staticmethod
    def _conv(before: int, after: int, side: int, stride: int) -> tuple[nn.Module, ...]:
        norm = nn.InstanceNorm2d(after, affine=True)
        return nn.ReflectionPad2d(side // 2), nn.Conv2d(before, after, side, stride), norm

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def vgg16_features() -> nn.Module:
    """The convolutions of VGG-16 (Simonyan and Zisserman 2015), of which perceptual losses are made."""
    layers: list[nn.Module] = []
    before = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(True)]
            before = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def edsr(filters: int = 64, blocks: int = 16, scale: int = 2) -> nn.Module:
    """EDSR's baseline (Lim et al. 2017): residual blocks without normalisation, pixel shuffle."""
    n = filters
    body = [Residual(_conv(n, n), nn.ReLU(True), _conv(n, n)) for _ in range(blocks)]
    tail = [_conv(n, n * scale**2), nn.PixelShuffle(scale), _conv(n, 3)]
    return nn.Sequential(_conv(3, n), Residual(*body, _conv(n, n)), *tail)


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)
