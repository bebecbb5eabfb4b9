"""The public operators."""

from engine.kernels.l1_autoencoder_loss.reference import l1_autoencoder_loss
from engine.kernels.linear.reference import linear
from engine.kernels.resize_conv_act.reference import resize_conv_act

__all__ = ["l1_autoencoder_loss", "linear", "resize_conv_act"]
