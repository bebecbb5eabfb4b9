"""Losses on the features of a frozen network instead of pixels."""

from collections.abc import Mapping

from torch import Tensor

from engine import ops
from engine.kernels.style_loss.reference import style_loss as eager_style_loss
from engine.networks.layers import l1_autoencoder_loss

CONTENT = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
STYLE = "relu3_3"


def wanted_layers(perceptual: bool, identity: str | None) -> tuple[str, ...]:
    """The features that feature_losses reads, each once."""
    layers = (*(CONTENT if perceptual else ()), *((identity,) if identity else ()))
    return tuple(dict.fromkeys(layers))


def feature_losses(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], *, perceptual: bool, identity: str | None, fused: bool
) -> dict[str, Tensor]:
    """L_pp and L_id of the reenactment paper, () float32 each, from layer -> (B, C, H, W) of both images.

    perceptual: l_pp: the mean absolute differences at relu1_2, relu2_2, relu3_3 and relu4_3, and the Frobenius norm of
                the difference of the Gram matrices at relu3_3, of each image, averaged over the batch.
    identity:   l_id: the mean absolute difference at this layer; None: left out.
    """
    layers = wanted_layers(perceptual, identity)
    distance = {name: l1_autoencoder_loss(wanted[name], found[name], fused=fused)[1] for name in layers}
    losses = {}
    if perceptual:
        run = ops.style_loss if fused else eager_style_loss
        _, style = run(wanted[STYLE], found[STYLE])
        losses["l_pp"] = sum(distance[name] for name in CONTENT) + style
    if identity:
        losses["l_id"] = distance[identity]
    return losses
