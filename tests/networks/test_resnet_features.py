"""The fixed ResNet-18, with batch normalisation folded into its weights, against torch.nn.functional."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from engine.checkpoint import save
from engine.errors import InputError
from engine.networks.resnet_features import MEAN, STD, ResnetFeatures
from engine.systems.registry import build
from tests.support.training_fakes import batch_of, tiny_config


def resnet18_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Make random weights and statistics with torchvision's names, up to layer2, and a layer that is not used."""
    generator = torch.Generator().manual_seed(seed)
    weights = {"fc.weight": torch.zeros(3, 512)}

    def add(conv: str, norm: str, outputs: int, inputs: int, size: int) -> None:
        shape = (outputs, inputs, size, size)
        weights[conv + ".weight"] = torch.randn(shape, generator=generator) / (inputs * size * size) ** 0.5
        weights[norm + ".weight"] = 0.5 + torch.rand(outputs, generator=generator)
        weights[norm + ".running_var"] = 0.5 + torch.rand(outputs, generator=generator)
        for part in ("bias", "running_mean"):
            weights[f"{norm}.{part}"] = torch.randn(outputs, generator=generator) * 0.1
        weights[norm + ".num_batches_tracked"] = torch.zeros((), dtype=torch.int64)

    add("conv1", "bn1", 64, 3, 7)
    for layer, inputs, outputs in (("layer1", 64, 64), ("layer2", 64, 128)):
        for block in range(2):
            name = f"{layer}.{block}"
            add(f"{name}.conv1", f"{name}.bn1", outputs, inputs if block == 0 else outputs, 3)
            add(f"{name}.conv2", f"{name}.bn2", outputs, outputs, 3)
    add("layer2.0.downsample.0", "layer2.0.downsample.1", 128, 64, 1)
    return weights


def plain_features(weights: dict[str, torch.Tensor], images: torch.Tensor) -> list[torch.Tensor]:
    """Run ResNet-18 in evaluation by torch.nn.functional."""

    def layer(x: torch.Tensor, conv: str, norm: str, stride: int = 1) -> torch.Tensor:
        kernel = weights[conv + ".weight"]
        y = F.conv2d(x, kernel, None, stride, padding=kernel.shape[-1] // 2)
        mean, var, scale, shift = (weights[f"{norm}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(y, mean, var, scale, shift)

    colour = images.repeat(1, 3 // images.shape[1], 1, 1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    x = F.relu(layer(((colour + 1) / 2 - mean) / std, "conv1", "bn1", 2))
    features = [x]
    x = F.max_pool2d(x, 3, 2, 1)
    for name in ("layer1", "layer2"):
        for block in range(2):
            stride = 2 if (name, block) == ("layer2", 0) else 1
            at = f"{name}.{block}"
            inner = F.relu(layer(x, f"{at}.conv1", f"{at}.bn1", stride))
            shortcut = layer(x, f"{at}.downsample.0", f"{at}.downsample.1", 2) if stride == 2 else x
            x = F.relu(shortcut + layer(inner, f"{at}.conv2", f"{at}.bn2"))
        features.append(x)
    return features


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fused", [False, True])
def test_features_are_those_of_the_file(tmp_path: Path, suffix: str, channels: int, fused: bool) -> None:
    weights, path = resnet18_weights(), tmp_path / ("w" + suffix)
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    images = torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found, expected = ResnetFeatures(path, fused=fused)(images), plain_features(weights, images)
    assert [f.shape[1:] for f in found] == [(64, 16, 16), (64, 8, 8), (128, 4, 4)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_without_a_file_the_weights_are_random_and_always_the_same() -> None:
    torch.manual_seed(1)
    first = ResnetFeatures(fused=False)
    torch.manual_seed(2)
    second = ResnetFeatures(fused=True)
    assert first.digest == "random" and not any(p.requires_grad for p in first.parameters())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(f.std() > 0.05 for f in first(torch.rand(2, 3, 32, 32) * 2 - 1))


def test_files_that_are_no_resnet18_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    weights = resnet18_weights()
    broken = {
        "has no layer2.1.bn2.bias": {k: v for k, v in weights.items() if k != "layer2.1.bn2.bias"},
        r"layer1.0.conv1 is \(64, 64, 1, 1\)": weights | {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)},
        "expected names and tensors": {"model": weights},
    }
    for message, content in broken.items():
        torch.save(content, path)
        with pytest.raises(InputError, match=message):
            ResnetFeatures(path)
    for suffix in (".pth", ".safetensors"):
        wrong = path.with_suffix(suffix)
        wrong.write_bytes(b"nothing of the kind")
        with pytest.raises(InputError, match="is not a file of weights"):
            ResnetFeatures(wrong)


def test_a_run_goes_on_with_the_same_features_only(tmp_path: Path) -> None:
    """The digest of the weights' file is part of a run's state."""
    configs = []
    for seed in (0, 1):
        save_file(resnet18_weights(seed), tmp_path / f"{seed}.safetensors")
        flags = ("--reg", "features", "--feature-weights", str(tmp_path / f"{seed}.safetensors"), "--history", "8")
        configs.append(tiny_config(*flags, system="simgan"))
    first, same, other = build(configs[0], "cpu"), build(configs[0], "cpu"), build(configs[1], "cpu")
    first.step(batch_of(configs[0]))
    assert save(tmp_path / "run", 1, first.weights(), {"system": first.state_dict()}, configs[0])
    same.load_state_dict(first.state_dict())
    with pytest.raises(InputError, match="give the same --feature-weights"):
        other.load_state_dict(first.state_dict())
    assert same.own_state()["features"] == same.features.digest != other.features.digest
    assert len(same.features.digest) == 64
