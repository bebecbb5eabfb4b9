"""Instance and group normalisation with a residual sum and an activation: one operator each, norm_act of engine.ops.

Parameters have the names of PyTorch's modules, so both load each other's checkpoints. Batch normalisation, which looks
at the batches of all ranks, is in global_batch.
"""

from typing import Any

from torch import Tensor, nn

from engine import ops

NORM_ACT = ops.pick("norm_act")  # to be indexed with `fused`: (reference, operator)


def activation_options(norm: nn.Module) -> dict[str, Any]:
    """What a layer passes on to norm_act as it is."""
    return {name: getattr(norm, name) for name in ("activation", "negative_slope", "residual_place")}


def described(norm: nn.Module) -> str:
    """The same options in words."""
    return f"activation={norm.activation}, residual_place={norm.residual_place}, fused={norm.fused}"


class InstanceNorm(nn.InstanceNorm2d):
    """nn.InstanceNorm2d, a residual sum and an activation.

    activation:     as in norm_act of engine.ops, with its negative_slope
    residual_place: whether forward's residual is added "before" or "after" the activation
    fused:          one operator, norm_act; False: plain PyTorch
    options:        those of nn.InstanceNorm2d
    """

    def __init__(
        self,
        num_features: int,
        *,
        activation: str = "none",
        negative_slope: float = 0.2,
        residual_place: str = "before",
        fused: bool = False,
        **options: Any,
    ):
        super().__init__(num_features, **options)
        self.activation, self.negative_slope = activation, negative_slope
        self.residual_place, self.fused = residual_place, fused

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, C, H, W), and a residual of the same shape or None -> the same shape and dtype."""
        return NORM_ACT[self.fused](
            x,
            self.weight,
            self.bias,
            kind="instance",
            running_mean=self.running_mean,
            running_var=self.running_var,
            training=self.training or not self.track_running_stats,
            momentum=self.momentum or 0.0,
            eps=self.eps,
            residual=residual,
            **activation_options(self),
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {described(self)}"


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, a residual sum and an activation; of one group it is layer normalisation over whole images.

    activation, residual_place, fused: as in InstanceNorm. options: those of nn.GroupNorm
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        *,
        activation: str = "none",
        negative_slope: float = 0.2,
        residual_place: str = "before",
        fused: bool = False,
        **options: Any,
    ):
        super().__init__(num_groups, num_channels, **options)
        self.activation, self.negative_slope = activation, negative_slope
        self.residual_place, self.fused = residual_place, fused

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, C, H, W), and a residual of the same shape or None -> the same shape and dtype."""
        return NORM_ACT[self.fused](
            x,
            self.weight,
            self.bias,
            kind="group",
            groups=self.num_groups,
            eps=self.eps,
            residual=residual,
            **activation_options(self),
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {described(self)}"
