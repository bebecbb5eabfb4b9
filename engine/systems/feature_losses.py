"""Losses of reenact that compare the features of a frozen network (VGG-19) instead of pixels."""

from collections.abc import Mapping

from torch import Tensor

from engine.networks.layers import STYLE_LOSS, l1_autoencoder_loss

# the layers of L_pp: whose features, and whose Gram matrix it compares
CONTENT = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
STYLE = "relu3_3"


def wanted_layers(perceptual: bool, identity: str | None) -> tuple[str, ...]:
    """The names of the layers that feature_losses reads, each once."""
    layers = (*(CONTENT if perceptual else ()), *((identity,) if identity else ()))
    return tuple(dict.fromkeys(layers))


def feature_losses(
    target: Mapping[str, Tensor], result: Mapping[str, Tensor], *, perceptual: bool, identity: str | None, fused: bool
) -> dict[str, Tensor]:
    """Compute L_pp and L_id of the reenactment paper, Kassapis, Verdenius and Ondrag.

    target, result: layer -> features (B, C, H, W), of the images
    perceptual:     whether l_pp is computed: the sum of the mean absolute differences at relu1_2, relu2_2, relu3_3 and
                    relu4_3, plus the Frobenius norm of the difference of the Gram matrices at relu3_3, which is taken
                    of each image and averaged over the batch
    identity:       the layer of l_id, the mean absolute difference there; None: l_id is left out
    returns:        "l_pp" and "l_id", () float32 each
    """
    layers = wanted_layers(perceptual, identity)
    distance = {name: l1_autoencoder_loss(target[name], result[name], fused=fused)[1] for name in layers}
    losses = {}
    if perceptual:
        _, style = STYLE_LOSS[fused](target[STYLE], result[STYLE])
        losses["l_pp"] = sum(distance[name] for name in CONTENT) + style
    if identity:
        losses["l_id"] = distance[identity]
    return losses
