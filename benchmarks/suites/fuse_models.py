"""The architectures of the suite `fuse`, with random weights: from libraries, or as people write them.

Those of published code are in fuse_networks.py. A library is imported when its model is built: each is optional, and
heavy.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.suites import fuse_networks as networks


@dataclass(frozen=True)
class Architecture:
    """A model and its input.

    needs:   the library that the model comes from; "" for one written here
    shape:   of the tensor that it takes
    further: its arguments after the tensor
    field:   of its result, where the output tensor is; "" if the result is the tensor
    """

    name: str
    needs: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    further: tuple = ()
    field: str = ""

    def run(self, model: nn.Module, x: Tensor) -> Tensor:
        """Calls a model of this architecture."""
        result = model(x, *self.further)
        return getattr(result, self.field) if self.field else result


def _conv(inputs: int, outputs: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class UNet(nn.Module):
    """Ronneberger et al. 2015 with resize convolutions: two convolutions with ReLU at a level, skips joined."""

    def __init__(self, filters: int, levels: int):
        super().__init__()
        widths = [filters << level for level in range(levels + 1)]
        inputs = [3, *widths[:-1]]
        self.down = nn.ModuleList(self._double(a, b) for a, b in zip(inputs, widths, strict=True))
        steps = list(zip(widths[1:], widths[:-1], strict=True))[::-1]
        self.grow = nn.ModuleList(nn.Sequential(nn.Upsample(scale_factor=2), _conv(a, b), nn.ReLU()) for a, b in steps)
        self.up = nn.ModuleList(self._double(2 * b, b) for _, b in steps)
        self.out = nn.Conv2d(filters, 1, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(_conv(inputs, outputs), nn.ReLU(True), _conv(outputs, outputs), nn.ReLU(True))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x if not skips else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat([grow(x), skips.pop()], 1))
        return self.out(x)


class DCGAN(nn.Module):
    """The DCGAN generator with upsampling, as tutorials write it: batch normalisation before the activations."""

    def __init__(self, filters: int):
        super().__init__()
        self.filters, self.fc = filters, nn.Linear(64, filters * 16 * 16)
        self.body = nn.Sequential(
            *(nn.BatchNorm2d(filters), nn.Upsample(scale_factor=2), _conv(filters, filters)),
            *(nn.BatchNorm2d(filters, 0.8), nn.LeakyReLU(0.2, inplace=True)),
            *(nn.Upsample(scale_factor=2), _conv(filters, filters // 2)),
            *(nn.BatchNorm2d(filters // 2, 0.8), nn.LeakyReLU(0.2, inplace=True), _conv(filters // 2, 3), nn.Tanh()),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.body(self.fc(z).view(z.shape[0], self.filters, 16, 16))


class BEGAN(nn.Module):
    """The autoencoder of BEGAN (Berthelot et al. 2017): two convolutions with ELU at each size, halved by a stride."""

    def __init__(self, filters: int):
        super().__init__()
        n, widths = filters, [filters, 2 * filters, 3 * filters, 3 * filters]
        down: list[nn.Module] = [_conv(3, n), nn.ELU(True)]
        for before, after in zip(widths, [*widths[1:], None], strict=True):
            down += [_conv(before, before), nn.ELU(True), _conv(before, before), nn.ELU(True)]
            down += [_conv(before, after, stride=2), nn.ELU(True)] if after else []
        self.down, self.code = nn.Sequential(*down), nn.Linear(3 * n * 64, 64)
        self.seed, up = nn.Linear(64, n * 64), []
        for level in range(4):
            up += [_conv(n, n), nn.ELU(True), _conv(n, n), nn.ELU(True)]
            up += [nn.Upsample(scale_factor=2, mode="nearest")] if level < 3 else []
        self.up, self.filters = nn.Sequential(*up, _conv(n, 3)), n

    def forward(self, x: Tensor) -> Tensor:
        code = self.code(torch.flatten(self.down(x), 1))
        return self.up(self.seed(code).view(x.shape[0], self.filters, 8, 8))


class DepthDecoder(nn.Module):
    """Monodepth2's kind (Godard et al. 2019): reflection padding, ELU, nearest x2. No chain has zeros for padding."""

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.blocks = nn.ModuleList(self._block(a, b) for a, b in pairs)
        self.after = nn.ModuleList(self._block(b, b) for _, b in pairs)
        self.out = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(widths[-1], 1, 3), nn.Sigmoid())

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(inputs, outputs, 3), nn.ELU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        for block, after in zip(self.blocks, self.after, strict=True):
            x = after(F.interpolate(block(x), scale_factor=2, mode="nearest"))
        return self.out(x)


def _autoencoder_kl() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(64, 128), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=16,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4,
    )  # fmt: skip


def _autoencoder_kl_decoder() -> nn.Module:
    return _autoencoder_kl().decoder


def _autoencoder_tiny_decoder() -> nn.Module:
    from diffusers import AutoencoderTiny

    return AutoencoderTiny().decoder


def _diffusers_unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=64, block_out_channels=(64, 128), norm_num_groups=16, layers_per_block=1, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def _swin2sr() -> nn.Module:
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    config = Swin2SRConfig(
        image_size=32, embed_dim=48, depths=[2, 2], num_heads=[4, 4], window_size=8, upscale=4, upsampler="nearest+conv"
    )
    return Swin2SRForImageSuperResolution(config)


def _resnet18() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    return ResNetForImageClassification(config)


def _janus_vqvae_decoder() -> nn.Module:
    from transformers import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

    return JanusVQVAEDecoder(
        JanusVQVAEConfig(latent_channels=16, base_channels=64, channel_multiplier=[1, 2], num_res_blocks=1)
    )


def _monai_autoencoder_kl() -> nn.Module:
    from monai.networks.nets import AutoencoderKL

    return AutoencoderKL(
        spatial_dims=2, in_channels=1, out_channels=1, channels=(64, 128), latent_channels=3,
        num_res_blocks=(1, 1), norm_num_groups=16, attention_levels=(False, False),
        with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
    ).decoder  # fmt: skip


def _monai_basic_unet() -> nn.Module:
    from monai.networks.nets import BasicUNet

    return BasicUNet(spatial_dims=2, features=(32, 32, 64, 64, 64, 32), upsample="nontrainable", norm=None, dropout=0.0)


def _monai_basic_unet_as_it_comes() -> nn.Module:
    from monai.networks.nets import BasicUNet

    return BasicUNet(spatial_dims=2)


def _monai_residual_unet() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(2, 1, 2, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2)


def _monai_flexible_unet() -> nn.Module:
    from monai.networks.nets import FlexibleUNet

    return FlexibleUNet(3, 1, "resnet18")


def _kornia_rrdbnet() -> nn.Module:
    from kornia.models.rrdbnet import RRDBNet

    return RRDBNet(num_in_ch=3, num_out_ch=3, scale=4, num_feat=64, num_block=1, num_grow_ch=32)


ARCHITECTURES = [
    Architecture("kornia RRDBNet (ESRGAN)", "kornia", _kornia_rrdbnet, (1, 3, 32, 32)),
    Architecture("U-Net", "", functools.partial(UNet, 32, 3), (2, 3, 64, 64)),
    Architecture("DCGAN generator", "", functools.partial(DCGAN, 128), (8, 64)),
    Architecture("BEGAN autoencoder", "", functools.partial(BEGAN, 48), (4, 3, 64, 64)),
    Architecture("depth decoder", "", functools.partial(DepthDecoder, (128, 64, 32, 16)), (2, 128, 16, 16)),
    Architecture("pix2pix U-Net 256", "", networks.pix2pix_unet, (1, 3, 256, 256)),
    Architecture("PatchGAN", "", networks.patchgan, (1, 6, 256, 256)),
    Architecture("CycleGAN ResNet-9", "", networks.cyclegan_resnet, (1, 3, 128, 128)),
    Architecture("DCGAN generator (published)", "", networks.dcgan_generator, (32, 100, 1, 1)),
    Architecture("DCGAN discriminator", "", networks.dcgan_discriminator, (32, 3, 64, 64)),
    Architecture("StarGAN generator", "", networks.StarGAN, (1, 3, 128, 128), (torch.ones(1, 5),)),
    Architecture("fast neural style", "", networks.TransformerNet, (1, 3, 192, 192)),
    Architecture("VGG-16 features", "", networks.vgg16_features, (1, 3, 128, 128)),
    Architecture("EDSR baseline", "", networks.edsr, (1, 3, 64, 64)),
    Architecture("diffusers AutoencoderKL", "diffusers", _autoencoder_kl, (1, 3, 64, 64), (), "sample"),
    Architecture("diffusers AutoencoderKL decoder", "diffusers", _autoencoder_kl_decoder, (1, 4, 64, 64)),
    Architecture("diffusers AutoencoderTiny decoder", "diffusers", _autoencoder_tiny_decoder, (1, 4, 16, 16)),
    Architecture("diffusers UNet2DModel", "diffusers", _diffusers_unet, (2, 3, 64, 64), (10,), "sample"),
    Architecture("transformers ResNet-18", "transformers", _resnet18, (4, 3, 128, 128), (), "logits"),
    Architecture("transformers Swin2SR", "transformers", _swin2sr, (1, 3, 32, 32), (), "reconstruction"),
    Architecture("transformers Janus VQVAE decoder", "transformers", _janus_vqvae_decoder, (1, 16, 48, 48)),
    Architecture("MONAI AutoencoderKL decoder", "monai", _monai_autoencoder_kl, (1, 3, 64, 64)),
    Architecture("MONAI BasicUNet", "monai", _monai_basic_unet, (1, 1, 96, 96)),
    Architecture("MONAI BasicUNet (as it comes)", "monai", _monai_basic_unet_as_it_comes, (1, 1, 128, 128)),
    Architecture("MONAI UNet (residual units)", "monai", _monai_residual_unet, (4, 1, 128, 128)),
    Architecture("MONAI FlexibleUNet (ResNet-18)", "monai", _monai_flexible_unet, (1, 3, 128, 128)),
]
