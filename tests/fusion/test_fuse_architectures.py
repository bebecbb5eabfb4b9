"""engine.fuse on whole architectures of libraries and tutorials: what it replaces, outputs and gradients."""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from benchmarks.suites import fuse as suite
from benchmarks.suites import fuse_networks as networks
from benchmarks.suites.fuse_models import ARCHITECTURES, Architecture
from engine import fuse, unfuse

# number of chains that are more than a convolution alone, and number of all chains
EXPECTED = {
    "kornia RRDBNet (ESRGAN)": (16, 20),
    "U-Net": (17, 17),
    "DCGAN generator": (3, 3),
    "BEGAN autoencoder": (20, 21),
    "depth decoder": (7, 7),
    "pix2pix U-Net 256": (15, 15),
    "PatchGAN": (5, 5),
    "CycleGAN ResNet-9": (46, 46),
    "DCGAN generator (published)": (5, 5),
    "DCGAN discriminator": (5, 5),
    "StarGAN generator": (22, 34),
    "fast neural style": (29, 29),
    "VGG-16 features": (13, 13),
    "EDSR baseline": (33, 35),
    "diffusers AutoencoderKL": (37, 41),
    "diffusers AutoencoderKL decoder": (21, 25),
    "diffusers AutoencoderTiny decoder": (34, 35),
    "diffusers UNet2DModel": (34, 34),
    "transformers ResNet-18": (19, 19),
    "transformers Swin2SR": (4, 5),
    "transformers Janus VQVAE decoder": (7, 15),
    "MONAI AutoencoderKL decoder": (7, 10),
    "MONAI BasicUNet": (0, 17),
    "MONAI BasicUNet (as it comes)": (21, 38),
    "MONAI UNet (residual units)": (26, 35),
    "MONAI FlexibleUNet (ResNet-18)": (21, 22),
}


# importing one of these takes longer than all that the other architectures do
LARGE_LIBRARIES = ("diffusers", "transformers", "monai")
LARGE_MODELS = (
    *("pix2pix U-Net 256", "PatchGAN", "CycleGAN ResNet-9", "DCGAN generator (published)", "DCGAN discriminator"),
    *("StarGAN generator", "fast neural style", "VGG-16 features", "EDSR baseline"),
)
# the same layers, narrower or on smaller inputs than the benchmarks measure
SMALLER: dict[str, dict[str, Any]] = {
    "pix2pix U-Net 256": {"build": partial(networks.pix2pix_unet, 32)},
    "CycleGAN ResNet-9": {"shape": (1, 3, 64, 64)},
    "DCGAN generator (published)": {"shape": (8, 100, 1, 1)},
    "DCGAN discriminator": {"shape": (8, 3, 64, 64)},
    "StarGAN generator": {"shape": (1, 3, 64, 64)},
    "fast neural style": {"shape": (1, 3, 96, 96)},
    "EDSR baseline": {"shape": (1, 3, 32, 32)},
    "diffusers AutoencoderKL decoder": {"shape": (1, 4, 32, 32)},
    "diffusers UNet2DModel": {"shape": (1, 3, 32, 32)},
    "transformers Janus VQVAE decoder": {"shape": (1, 16, 24, 24)},
}
CASES = [
    pytest.param(a, id=a.name, marks=pytest.mark.slow if a.needs in LARGE_LIBRARIES or a.name in LARGE_MODELS else ())
    for a in ARCHITECTURES
]


@pytest.mark.parametrize("architecture", CASES)
def test_equal_within_the_rule(architecture: Architecture) -> None:
    if why := suite.missing(architecture):
        pytest.skip(why)
    architecture = replace(architecture, **SMALLER.get(architecture.name, {}))
    plain, x = suite.build(architecture)
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    longer = [entry for entry in report.replaced if entry.pattern != "conv 3x3"]
    assert (len(longer), len(report.replaced)) == EXPECTED[architecture.name], str(report)
    if report.replaced:
        assert suite.disagreements(architecture, plain, fused, x, len(report.replaced)) == []
    else:
        assert str(report).endswith("nothing is gained: the model runs as it did")
    unfuse(fused)
    assert [type(module) for module in fused.modules()] == [type(module) for module in plain.modules()]
