"""The networks of ggb against torch.nn.functional on the same weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.networks.guided_unet import GuidedUNet, PatchCritic, guided_sizes
from engine.networks.guiding_block import GuidingBlock
from engine.networks.initialisation import he_normal
from engine.networks.layers import Conv
from engine.systems.ggb import GgbSystem
from tests.support.ggb_fakes import batch_of, config_of, heatmaps_of
from tests.support.training_fakes import smooth_images

MODES = pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])


def unet_by_hand(w: dict[str, Tensor], x: Tensor, points: Tensor, sigma: float, depth: int, sizes) -> tuple:
    """Run G with the weights w; batch normalisation uses the statistics of the batch."""

    def norm(v: Tensor, name: str) -> Tensor:
        return F.batch_norm(v, None, None, w[name + ".weight"], w[name + ".bias"], training=True)

    v = torch.cat([x, heatmaps_of(points, x.shape[-1], sigma)], 1)
    v = F.leaky_relu(F.conv2d(v, w["first.weight"], w["first.bias"], 2, 1), 0.2)
    skips, made = [v], {}
    for i in range(depth - 1):
        v = F.conv2d(v, w[f"down.{i}.conv.weight"], w.get(f"down.{i}.conv.bias"), 2, 1)
        v = F.leaky_relu(norm(v, f"down.{i}.norm") if i < depth - 2 else v, 0.2)
        skips.append(v)
    skips.pop()
    for i in range(depth - 1):
        v = F.relu(norm(F.conv_transpose2d(v, w[f"up.{i}.conv.weight"], None, 2, 1), f"up.{i}.norm"))
        if (size := v.shape[-1]) in sizes:
            made[size] = torch.tanh(F.conv2d(v, w[f"to_image.{size}.weight"], w[f"to_image.{size}.bias"], padding=1))
        v = torch.cat([v, skips.pop()], 1)
    return torch.tanh(F.conv_transpose2d(v, w["last.weight"], w["last.bias"], 2, 1)), made


@MODES
@pytest.mark.parametrize(("resolution", "points"), [(16, 68), (32, 18)])
def test_generator_is_the_unet_written_out(fused: bool, resolution: int, points: int) -> None:
    config = config_of(resolution=resolution, points=points, fused=fused, heatmap=1 / 16)
    network = GgbSystem(config, "cpu").generator
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 10)
    batch = batch_of(config)
    sizes = {16: (4, 8), 32: (4, 8, 16)}[resolution]
    wanted, wanted_levels = unet_by_hand(
        network.state_dict(), batch.images, batch.more[0].landmarks, resolution / 16, {16: 3, 32: 4}[resolution], sizes
    )
    image, levels = network(batch.images, batch.more[0].landmarks)
    torch.testing.assert_close(image, wanted, rtol=1e-4, atol=1e-5)
    assert set(levels) == set(sizes)
    for size in sizes:
        assert levels[size].shape == (4, 3, size, size)
        torch.testing.assert_close(levels[size], wanted_levels[size], rtol=1e-4, atol=1e-5)


@MODES
def test_guiding_block_is_its_convs_written_out(fused: bool) -> None:
    block = GuidingBlock(3, 3, fused=fused)
    he_normal(block, 5)
    w = block.state_dict()
    images, source = smooth_images(1, 4, 8), smooth_images(2, 2, 8)

    def encode(v: Tensor) -> Tensor:
        for i in (0, 1):
            v = F.leaky_relu(F.conv2d(v, w[f"encoder.{i}.conv.weight"], w[f"encoder.{i}.conv.bias"], 2, 1), 0.2)
        return v

    def critic(name: str, v: Tensor) -> Tensor:
        for i in (0, 1):
            v = F.leaky_relu(F.conv2d(v, w[f"{name}.body.{i}.weight"], w[f"{name}.body.{i}.bias"], padding=1), 0.2)
        return F.conv2d(v, w[f"{name}.last.weight"], w[f"{name}.last.bias"], padding=1)

    logits = block(images, source)
    of_source = encode(source)
    changes = torch.cat([encode(images[:2]) - of_source, encode(images[2:]) - of_source])
    torch.testing.assert_close(logits["rapd"], critic("rapd", encode(images)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits["nvtd"], critic("nvtd", changes), rtol=1e-4, atol=1e-5)


def test_sizes_at_256_are_the_papers() -> None:
    """256 -> 2 -> 256 in 7 convs and 7 transposed convs, guided at 32, 64 and 128; D has 5 convs."""
    with torch.device("meta"):
        network = GuidedUNet(256, 64, 3, points=18, sizes=guided_sizes(256, 3), fused=False)
        critic = PatchCritic(256, 64, 3)
        sides: list[int] = []
        layers = [network.first, *network.down, *network.up, network.last]
        for layer in (*layers, *critic.down, critic.last):
            layer.register_forward_hook(lambda _layer, _inputs, output: sides.append(output.shape[-1]))
        image, levels = network(torch.empty(1, 3, 256, 256), torch.empty(1, 18, 2))
        logits = critic(image)
    assert sides == [128, 64, 32, 16, 8, 4, 2, 4, 8, 16, 32, 64, 128, 256, 128, 64, 32, 16, 8]
    assert image.shape == (1, 3, 256, 256) and logits.shape == (1, 1, 8, 8)
    assert {size: tuple(v.shape) for size, v in levels.items()} == {s: (1, 3, s, s) for s in (32, 64, 128)}
    kernels = [m for m in network.modules() if isinstance(m, Conv) and m.weight.shape[-1] == 4]
    assert len(kernels) == 13 and all(m.stride == 2 and m.padding == 1 for m in kernels)


@pytest.mark.parametrize("resolution", [16, 32, 64, 128, 256])
def test_every_resolution_builds(resolution: int) -> None:
    system = GgbSystem(config_of(resolution=resolution, device="meta"), "meta")
    for network, inputs, count in system.passes(fused=False):
        network(*inputs)
        assert count > 0
    assert system.sizes == {16: (4, 8)}.get(resolution, (resolution // 8, resolution // 4, resolution // 2))
