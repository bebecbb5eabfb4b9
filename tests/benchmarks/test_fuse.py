"""The suite `fuse`: modes, precisions, and models that are not fused or not compiled. No timing is asserted."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import benchmarks.__main__ as bench
from benchmarks.arguments import Arguments
from benchmarks.reports import merge, saved
from benchmarks.suites import fuse, fuse_networks
from benchmarks.suites.fuse_models import ARCHITECTURES, Architecture
from engine.fusion.chains import savings
from tests.support.benchmark_results import INTEL
from tests.support.tiny_run import command


def _chain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.MaxPool2d(2))


def _pooled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.MaxPool2d(2))


FUSED = Architecture("chain", "", _chain, (2, 8, 16, 16))
NOT_FUSED = Architecture("pooled", "", _pooled, (2, 3, 8, 8))


def test_training_mode_without_dropout_and_bf16_beside(monkeypatch):
    monkeypatch.setattr(savings, "speed", lambda *args: 2.0)  # the maps are small
    measured = fuse.measure(FUSED, 2, lambda _: None, compiled=False, bf16=True)
    assert not measured.failed and not measured.left_out and measured.report.replaced
    assert tuple(measured.timings) == fuse.PASSES
    for timings in measured.timings.values():
        kinds = sorted(name.split()[0] for name in timings)
        assert kinds == ["bf16-eager", "eager", "eager", "fused"]


def test_the_modes_of_the_passes():
    model = _chain()
    for which, training in ((fuse.FORWARD, False), (fuse.BOTH, True)):
        fuse.set_mode(model, which)
        assert model[2].training is training and not model[3].training


def test_every_kink_is_smoothed():
    model = nn.Sequential(nn.PReLU(), nn.Sequential(nn.LeakyReLU(), nn.MaxPool2d(3, 2, 1)), nn.ReLU())
    smooth = fuse.smoothed(model)
    assert fuse.kinks(model) == 4 and fuse.kinks(smooth) == 0
    assert smooth(torch.randn(1, 1, 9, 9)).shape == model(torch.randn(1, 1, 9, 9)).shape


def test_a_model_in_which_nothing_is_fused_is_measured(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fuse, "ARCHITECTURES", [NOT_FUSED])
    assert command(bench.main, "fuse", "--json", tmp_path / "x.json") == 0
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["pooled, forward", "pooled, forward + backward"]
    assert all(row["replaced"] == 0 and row["reasons"] and row["speedup"]["eager"] > 0 for row in rows)
    assert "pooled: nothing is fused: " in capsys.readouterr().out


def test_a_model_that_differs_gives_way_to_the_same_model_measured_later(monkeypatch):
    measured = fuse.measure(FUSED, 2, lambda _: None, compiled=False, bf16=False)
    result = saved.read(INTEL)
    first, later = (
        result | {"rows": fuse._rows(FUSED, each)} for each in (replace(measured, failed=["off"], timings={}), measured)
    )
    assert [(row["name"], row["failed"]) for row in first["rows"]] == [(f"chain, {w}", ["off"]) for w in fuse.PASSES]
    assert merge.merged({"a": first, "b": later})["rows"] == later["rows"]


def test_a_model_that_does_not_compile_says_why(small, monkeypatch, tmp_path, capsys):
    def refuse(*model, **options):
        def call(*inputs):
            raise RuntimeError("Inductor fails\nin many lines")

        return type("Refusing", (nn.Module,), {"forward": lambda self, *inputs: call()})()

    monkeypatch.setattr(fuse, "ARCHITECTURES", [FUSED])
    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setattr(Arguments, "can_compile", True)
    monkeypatch.setattr(Arguments, "bf16_beside", True)
    assert command(bench.main, "fuse", "--json", tmp_path / "x.json") == 0
    for row in json.loads((tmp_path / "x.json").read_text())["rows"]:
        names = {name.split()[0] for name in row["left_out"]}
        assert (
            names == {"compile", "bf16-compile"} and "compile" not in row["speedup"] and row["bf16"].keys() == {"eager"}
        )
        assert set(row["left_out"].values()) == {"RuntimeError: Inductor fails"}
    assert "left out: RuntimeError: Inductor fails" in capsys.readouterr().out


@pytest.mark.parametrize("only_in_training", [False, True])
def test_a_model_that_differs_in_one_mode_has_no_speed(monkeypatch, only_in_training):
    def wrong(model, example_inputs):
        report = honest(model, example_inputs=example_inputs)
        model.register_forward_hook(lambda m, args, y: 1.001 * y if m.training is only_in_training else y)
        return report

    honest = fuse.fuse
    monkeypatch.setattr(fuse, "fuse", wrong)
    measured = fuse.measure(FUSED, 2, lambda _: None, compiled=False, bf16=False)
    assert not measured.timings
    assert any(text.startswith("output in training" if only_in_training else "output: ") for text in measured.failed)


@pytest.mark.parametrize(("factor", "wrong"), [(1.0, set()), (1.1, {"input"})])
def test_many_kinks_hide_no_wrong_gradient(factor, wrong):
    """Weights off by a rounding flip signs before the ReLUs, which is allowed; a gradient off by 10 % is not."""
    layers = [layer for _ in range(20) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
    deep = Architecture("deep", "", lambda: nn.Sequential(*layers), (2, 8, 32, 32))
    plain, x = fuse.build(deep)
    rounded = copy.deepcopy(plain)
    with torch.no_grad():
        for p in rounded.parameters():
            p *= 1 + 1e-6 * torch.randn_like(p)
    rounded.register_full_backward_hook(lambda module, of_input, of_output: (factor * of_input[0],))
    failed = fuse._differences(deep, plain, rounded, x, chains=20)
    assert {text.split(":")[0] for text in failed} == wrong


# parameters, as the authors' code or the library's documentation counts them
PUBLISHED = {
    fuse_networks.pix2pix_unet: 54_413_955,
    fuse_networks.patchgan: 2_768_705,
    fuse_networks.cyclegan_resnet: 11_378_179,
    fuse_networks.dcgan_generator: 3_576_704,
    fuse_networks.dcgan_discriminator: 2_765_568,
    fuse_networks.StarGAN: 8_430_528,
    fuse_networks.TransformerNet: 1_679_235,
    fuse_networks.vgg16_features: 14_714_688,
    fuse_networks.edsr: 1_369_859,
}


@pytest.mark.parametrize("network", PUBLISHED, ids=lambda network: network.__name__)
def test_published_networks_have_the_published_parameters(network):
    with torch.device("meta"):
        model = network()
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[network]


def test_published_networks_keep_the_size_of_images():
    taken = {a.build: a for a in ARCHITECTURES}
    for network, channels, scale in (
        (fuse_networks.pix2pix_unet, 3, 1),
        (fuse_networks.cyclegan_resnet, 3, 1),
        (fuse_networks.StarGAN, 3, 1),
        (fuse_networks.TransformerNet, 3, 1),
        (fuse_networks.edsr, 3, 2),
    ):
        shape = taken[network].shape
        with torch.device("meta"):
            model, x, more = network(), torch.empty(shape), [t.to("meta") for t in taken[network].further]
        assert model(x, *more).shape == (shape[0], channels, scale * shape[2], scale * shape[3])
