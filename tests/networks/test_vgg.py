"""VGG-19 against torch.nn layers in torchvision's order, and the file that its weights come from."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engine.errors import InputError
from engine.networks.vgg import LAYERS, VGG19, check_digest
from tests.support.training_fakes import smooth_images

# torchvision's configuration "E"; M: maximum pooling
PLAN = [64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512, "M"]
# positions in torchvision's `features` that the papers' implementations read
POSITIONS = {"relu1_2": 3, "relu2_2": 8, "relu3_2": 13, "relu3_3": 15, "relu4_3": 24}


def plain_vgg19(seed: int = 5) -> nn.Sequential:
    torch.manual_seed(seed)
    layers, channels = [], 3
    for step in PLAN:
        if step == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, step, 3, padding=1), nn.ReLU()]
            channels = step
    features = nn.Sequential(*layers)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return features


@pytest.fixture(scope="module")
def plain() -> nn.Sequential:
    return plain_vgg19()


@pytest.fixture(scope="module")
def weights_file(plain: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg19-given.pth"
    state = {f"features.{key}": tensor for key, tensor in plain.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    return path


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "eager"])
def test_features_are_those_of_torchvision(fused: bool, plain: nn.Sequential, weights_file: Path) -> None:
    vgg = VGG19(POSITIONS, fused=fused)
    vgg.load(weights_file)
    images = smooth_images(1, 2, 32)
    # as torchvision's models take photos: [0, 1], then the mean and the deviation of each colour
    x = (images + 1) / 2
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    found = vgg(images)
    assert set(found) == set(POSITIONS)
    with torch.no_grad():
        for position, layer in enumerate(plain):
            x = layer(x)
            for name, at in POSITIONS.items():
                if at == position:
                    close(found[name], x)


def test_layers_are_named_as_in_the_papers(plain: nn.Sequential) -> None:
    """relu3_3 is the third activation of the third block, and every convolution has its place in torchvision's list."""
    assert len(LAYERS) == 16
    assert all(LAYERS[name][2] + 1 == position for name, position in POSITIONS.items())
    assert all(isinstance(plain[position], nn.Conv2d) for _, _, position, _ in LAYERS.values())
    with pytest.raises(InputError, match="no relu2_3"):
        VGG19(["relu2_3"])


def test_nothing_deeper_than_needed_is_built_and_nothing_is_trained() -> None:
    vgg = VGG19(["relu2_2", "relu1_2"], width=2)
    assert list(vgg.convolutions) == ["relu1_1", "relu1_2", "relu2_1", "relu2_2"]
    assert not any(parameter.requires_grad for parameter in vgg.parameters())


def test_gradient_of_the_image(plain: nn.Sequential, weights_file: Path) -> None:
    vgg = VGG19(["relu3_3"])
    vgg.load(weights_file)
    images = smooth_images(2, 2, 16).requires_grad_()
    direction = torch.randn(2, 256, 4, 4, generator=torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad((vgg(images)["relu3_3"] * direction).sum(), images)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    (wanted,) = torch.autograd.grad((plain[:16](((images + 1) / 2 - mean) / deviation) * direction).sum(), images)
    assert (found - wanted).norm() <= 1e-3 * wanted.norm()


def test_grey_images_count_as_colourless(weights_file: Path) -> None:
    vgg = VGG19(["relu2_2"], width=4)
    vgg.randomise()
    grey = smooth_images(3, 2, 16, channels=1)
    assert torch.equal(vgg(grey)["relu2_2"], vgg(grey.expand(-1, 3, -1, -1))["relu2_2"])


def test_random_weights_are_fixed_and_keep_the_scale() -> None:
    networks = []
    for noise in range(2):
        torch.manual_seed(noise)
        networks.append(VGG19(["relu1_1", "relu4_3"], width=16))
        networks[-1].randomise()
    one, other = (network.state_dict() for network in networks)
    assert all(torch.equal(one[key], other[key]) for key in one)
    images = smooth_images(4, 4, 64) * 2
    found = networks[0](images)
    ratio = found["relu4_3"].square().mean() / found["relu1_1"].square().mean()
    assert 0.2 < ratio < 5


def test_the_wellknown_file_is_asked_for_by_its_digest(weights_file: Path) -> None:
    with pytest.raises(InputError, match="not dcbb9e9d") as refused:
        check_digest(weights_file)
    assert digest_of(weights_file)[:16] in str(refused.value) and "\n" not in str(refused.value)
    assert check_digest(weights_file, digest_of(weights_file)[:8].upper()) == digest_of(weights_file)
    with pytest.raises(InputError, match="at least 8"):
        check_digest(weights_file, digest_of(weights_file)[:7])
    with pytest.raises(InputError, match="cannot be read"):
        check_digest(weights_file.with_name("missing.pth"))


def test_safetensors_hold_the_same_weights(plain: nn.Sequential, tmp_path: Path) -> None:
    path = tmp_path / "vgg19.safetensors"
    save_file({f"features.{key}": tensor for key, tensor in plain[:4].state_dict().items()}, path)
    vgg = VGG19(["relu1_2"])
    vgg.load(path)
    assert torch.equal(vgg.convolutions["relu1_2"].weight, plain[2].weight)


@pytest.mark.parametrize("kind", ["text", "list", "layers", "shapes", "safetensors"])
def test_a_file_without_the_weights_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("vgg.safetensors" if kind == "safetensors" else "vgg.pth")
    if kind in ("text", "safetensors"):
        path.write_text("not weights")
    else:
        content = {"list": [1, 2], "layers": {"features.1.weight": torch.zeros(2)}}
        # the names of vgg19_bn, where a norm follows each convolution
        content["shapes"] = {"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(32)}
        torch.save(content[kind], path)
    with pytest.raises(InputError) as refused:
        VGG19(["relu1_2"]).load(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
