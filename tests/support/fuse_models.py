"""Small modules as people write them, for the tests of engine.fuse."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Attributes(nn.Module):
    """Calls modules that are attributes one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2.0)
        self.first, self.act = conv(3, 4), nn.ELU(inplace=True)
        self.second, self.out = conv(4, 3, bias=False), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(self.up(x)))
        return self.out(self.second(x))


class Functional(nn.Module):
    """Calls functions in every way: methods, torch.*, torch.nn.functional.*, keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(3 if i == 0 else 4, 4) for i in range(7))
        self.weight = nn.Parameter(0.3 * torch.randn(4, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.convs[0](F.interpolate(x, scale_factor=2)))
        x = self.convs[1](F.interpolate(input=x, scale_factor=(2, 2), mode="nearest")).relu()
        x = torch.tanh(self.convs[2](x))
        x = F.interpolate(F.leaky_relu(self.convs[3](x), negative_slope=0.1), scale_factor=0.5)
        x = F.leaky_relu(self.convs[4](x), 0.3)[:, :, ::2, ::2]
        x = F.relu(self.convs[5](x), inplace=True)
        x = self.convs[6](x).sigmoid_()
        return F.conv2d(x, self.weight, stride=2, padding=1).relu_()


def dcgan() -> nn.Sequential:
    """A DCGAN generator with resize convolutions, batch normalisation between.

    The convolution before a batch normalisation has no bias: the gradient of one would be zero but for rounding errors,
    and the errors of two sums of rounding errors are no measure of each other.
    """
    return nn.Sequential(
        nn.Linear(5, 64),
        nn.Unflatten(1, (4, 4, 4)),
        nn.BatchNorm2d(4),
        nn.Upsample(scale_factor=2),
        conv(4, 4, bias=False),
        nn.BatchNorm2d(4, 0.8),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Upsample(scale_factor=2),
        conv(4, 4),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Sequential(conv(4, 3), nn.Tanh()),
    )


class Block(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(conv(inputs, outputs), nn.ReLU(inplace=True), conv(outputs, outputs), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """A U-Net of two levels with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = nn.ModuleList([Block(3, 4), Block(4, 4)]), Block(4, 4)
        self.up = nn.ModuleList([Block(8, 4), Block(8, 4)])
        self.grow = nn.ModuleList(nn.Sequential(nn.Upsample(scale_factor=2), conv(4, 4)) for _ in range(2))
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.inner(x)
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat([F.elu(grow(x)), skips.pop()], dim=1))
        return self.out(x)


class Residual(nn.Module):
    """Reads twice the result of the convolution before the ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = conv(3, 3), conv(3, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y = self.second(self.act(h))
        return F.elu(y + h)


class Dense(nn.Module):
    """An RRDB's dense block: every activation feeds all later convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(3, 4), conv(7, 4), conv(11, 3)
        self.lrelu = nn.LeakyReLU(0.2, True)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.lrelu(self.conv1(x))
        x2 = self.lrelu(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.conv3(torch.cat((x, x1, x2), 1))
        return x3 * 0.2 + x


class SuperResolution(nn.Module):
    """ESRGAN's generator in small: dense blocks, then twice nearest x2, convolution, LeakyReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Dense(), Dense())
        self.up1, self.up2, self.hr, self.last = conv(3, 4), conv(4, 4), conv(4, 4), conv(4, 3)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x) + x
        x = self.lrelu(self.up1(F.interpolate(x, scale_factor=2, mode="nearest")))
        x = self.lrelu(self.up2(F.interpolate(x, scale_factor=2, mode="nearest")))
        return self.last(self.lrelu(self.hr(x)))


class Shared(nn.Module):
    """Calls one convolution twice. fusable: whether both of its calls are followed by an activation."""

    def __init__(self, fusable: bool) -> None:
        super().__init__()
        self.conv, self.fusable = conv(3, 3), fusable

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.elu(self.conv(x)))
        return torch.tanh(y) if self.fusable else y


class Branching(nn.Module):
    """Cannot be traced, because it branches on values; its children can."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.conv = nn.Sequential(conv(3, 3), nn.ELU()), conv(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            x = -x
        return F.elu(self.conv(self.block(x)))


class Progressive(nn.Module):
    """Takes a path that depends on an attribute which training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.convs, self.level = nn.ModuleList(conv(3, 3) for _ in range(3)), 1
        self.register_buffer("alpha", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.convs[: self.level]:
            x = self.alpha * F.elu(layer(F.interpolate(x, scale_factor=2)))
        return x


class Flattening(nn.Module):
    """Takes a view of a convolution's result, so needs the contiguous result that torch gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 4), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.second(F.elu(self.first(x))))
        return x.view(x.size(0), -1)


class Written(nn.Module):
    """Changes in place what its block returned."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        y += x
        return y


class Optional(nn.Module):
    """Does something else when its second argument is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 3)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        if shift is not None:
            x = x + shift
        return F.elu(self.conv(x))


class Guarded(nn.Module):
    """Asks, as libraries do, what kind of tensor it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 3)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        assert x.shape[1] == 3
        if x.shape[0] >= 4 or x.dtype == torch.float16:
            x = -x
        if skip is not None:
            x = x + skip
        return F.elu(self.conv(F.interpolate(x, scale_factor=2.0)))


class Asserting(nn.Module):
    """Asks with hasattr what an input is, and unpacks its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        assert not hasattr(x, "pixels") and hasattr(x, "shape")
        return F.elu(self.conv(x.view(b, c, h, w)))


def step_of(module: nn.Module) -> int:
    return getattr(module, "stepped", 2)


def drawn() -> float:
    return random.random()


MEANWHILE: list[Callable[[], None]] = []  # what a test does in the middle of a forward


def meanwhile() -> None:
    for act in MEANWHILE:
        act()


LEAK = nn.LeakyReLU(0.3)


def leaked(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LEAK.negative_slope)


def is_image(x: object) -> bool:
    return isinstance(x, Tensor)


def switched(enabled: bool) -> bool:
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(enabled)
    return before


class Doubled(torch.autograd.Function):
    """Has a gradient that is not the derivative of its forward."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


class SumsInARow(nn.Module):
    """Residual sums of which the second adds the result of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.BatchNorm2d(4), nn.InstanceNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.one(2 * x) + x)
        return F.relu(y + self.two(3 * y))
