"""The layers that the networks are made of, each over one operator of engine.ops, and the losses.

`fused=True` runs the operator, `fused=False` its plain PyTorch reference. Parameters, names and start values are the
same for both, so a fused and an eager network load each other's checkpoints.
"""

import math

import torch
from torch import Tensor, nn

from engine import ops
from engine.errors import InputError
from engine.kernels.began_balance.reference import Balance

# the operators of networks and losses, to be indexed with `fused`: (reference, operator)
RESIZE_CONV_ACT = ops.pick("resize_conv_act")
LANDMARK_CONV = ops.pick("landmark_conv")
LANDMARK_HEATMAP = ops.pick("landmark_heatmap")
LINEAR = ops.pick("linear")
STYLE_LOSS = ops.pick("style_loss")
L1_AUTOENCODER_LOSS = ops.pick("l1_autoencoder_loss")
BEGAN_BALANCE = ops.pick("began_balance")
SMALLEST = 8  # side of the coarsest level, in pixels


def level_sizes(resolution: int) -> list[int]:
    """List the sides [8, 16, ..., resolution]. Raises InputError unless resolution is 16, 32, 64, 128 or 256."""
    if resolution not in (16, 32, 64, 128, 256):
        raise InputError(f"resolution {resolution} cannot be trained; choose 16, 32, 64, 128 or 256")
    return [SMALLEST << level for level in range(int(math.log2(resolution)) - 2)]


class Conv(nn.Module):
    """A convolution of any kind, a nearest resize around it and an activation after it: one operator.

    in_channels:     channels of `x`
    second_channels: channels of `second`, which are concatenated after those of `x`; 0: there is no second input
    kernel_size:     1 to 7
    resize:          "none", "up" (nearest x2 of `x` before the convolution) or "down" (nearest /2 of the result)
    stride, padding, padding_mode, transposed, output_padding: as in resize_conv_act of engine.ops; parameters have the
                     names and shapes of torch.nn.Conv2d and ConvTranspose2d
    activation:      "none", "elu", "relu", "leaky_relu" (slope 0.2), "tanh", "sigmoid" or "silu"
    bias:            False: none, for a normalisation after it has a bias of its own
    """

    start_gain: float  # of a layer that starts otherwise than its activation says (engine.networks.initialisation)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        padding_mode: str = "zeros",
        transposed: bool = False,
        output_padding: int = 0,
        resize: str = "none",
        activation: str = "elu",
        second_channels: int = 0,
        bias: bool = True,
        fused: bool = True,
    ):
        super().__init__()
        self.resize, self.activation, self.fused = resize, activation, fused
        self.stride, self.padding, self.padding_mode = stride, padding, padding_mode
        self.transposed, self.output_padding = transposed, output_padding
        channels = (in_channels + second_channels, out_channels)
        channels = channels if transposed else channels[::-1]
        self.weight = nn.Parameter(torch.empty(*channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None

    def forward(
        self,
        x: Tensor,
        second: Tensor | None = None,
        grad_scale: Tensor | None = None,
        input_grad_from: int = 0,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Run the layer: (B, C, H, W) -> (B, out_channels, ...).

        second:          (B, C2, ...) at the resolution of the convolution
        grad_scale:      (B,) float32, which multiplies each sample's contribution to the gradients of the layer's
                         parameters, and nothing else
        input_grad_from: samples before it get no gradient in x and second
        residual:        like the result: it is added before the activation
        """
        return RESIZE_CONV_ACT[self.fused](
            x,
            self.weight,
            self.bias,
            resize=self.resize,
            stride=self.stride,
            padding=self.padding,
            padding_mode=self.padding_mode,
            transposed=self.transposed,
            output_padding=self.output_padding,
            activation=self.activation,
            second=second,
            residual=residual,
            grad_scale=grad_scale,
            input_grad_from=input_grad_from,
        )

    def extra_repr(self) -> str:
        out_channels, in_channels, size, _ = self.weight.shape
        if self.transposed:
            out_channels, in_channels = in_channels, out_channels
        kind = f"kernel_size={size}, stride={self.stride}, resize={self.resize}" + ", transposed" * self.transposed
        return f"{in_channels} -> {out_channels}, {kind}, activation={self.activation}, fused={self.fused}"


class LandmarkConv(nn.Module):
    """A convolution of an image and one Gaussian heatmap per landmark; the fused operator makes no heatmaps.

    channels: channels of the image
    points:   number of landmarks, whose heatmaps follow the image's channels in `weight`
    sigma:    of the Gaussians in pixels; their window reaches 3 sigma
    """

    def __init__(
        self,
        channels: int,
        points: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        sigma: float = 1.0,
        activation: str = "none",
        fused: bool = True,
    ):
        super().__init__()
        self.points, self.stride, self.padding, self.sigma = points, stride, padding, sigma
        self.activation, self.fused = activation, fused
        self.weight = nn.Parameter(torch.empty(out_channels, channels + points, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def forward(self, image: Tensor, landmarks: Tensor, grad_scale: Tensor | None = None) -> Tensor:
        """Run the layer: (B, C, H, W) -> (B, out_channels, ...).

        landmarks:  (B, points, 2) x, y in pixels of the image; NaN: a heatmap of zeros
        grad_scale: (B,) float32 as in Conv
        """
        return LANDMARK_CONV[self.fused](
            landmarks,
            self.weight,
            self.bias,
            image=image,
            stride=self.stride,
            padding=self.padding,
            sigma=self.sigma,
            radius=math.ceil(3 * self.sigma),
            activation=self.activation,
            grad_scale=grad_scale,
        )

    def extra_repr(self) -> str:
        out_channels, in_channels, size, _ = self.weight.shape
        return f"{in_channels} -> {out_channels}, kernel_size={size}, stride={self.stride}, fused={self.fused}"


class Linear(nn.Module):
    """A fully connected layer: (B, in_features) -> (B, out_features)."""

    def __init__(self, in_features: int, out_features: int, *, fused: bool = True):
        super().__init__()
        self.fused = fused
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def forward(self, x: Tensor, grad_scale: Tensor | None = None) -> Tensor:
        """x (B, in_features) -> (B, out_features); grad_scale (B,) float32 as in Conv."""
        return LINEAR[self.fused](x, self.weight, self.bias, grad_scale=grad_scale)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features} -> {out_features}, fused={self.fused}"


def l1_autoencoder_loss(target: Tensor, reconstruction: Tensor, *, fused: bool) -> tuple[Tensor, Tensor]:
    """Mean absolute error of each sample (B,) and over the batch (), float32; both inputs (B, C, H, W)."""
    return L1_AUTOENCODER_LOSS[fused](target, reconstruction)


def began_balance(per_sample: Tensor, content: Tensor, k: Tensor, *, fused: bool, **constants: float) -> Balance:
    """The losses of a step and the next k, from L of each photo and of each G(z), (2n,); arguments as in engine.ops."""
    return BEGAN_BALANCE[fused](per_sample, content, k, **constants)


def to_rows(x: Tensor) -> Tensor:
    """Flatten maps (B, C, H, W) to (B, H*W*C) in channels_last order: a view when x is channels_last, else a copy."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)


def from_rows(rows: Tensor, size: int) -> Tensor:
    """Undo to_rows: a view (B, C, size, size), channels_last, of rows (B, size*size*C)."""
    return rows.view(rows.shape[0], size, size, -1).permute(0, 3, 1, 2)


def parameter_count(network: nn.Module) -> int:
    """The number of scalars in the network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
