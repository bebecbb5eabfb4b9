"""A fused model in use: later changes, hooks, dtypes, copies, compilers, and the check on example inputs."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import engine
from engine.fusion import fuse, unfuse
from tests.support.fuse_checks import UP, assert_same, calls, fused_pair, image, patterns, seeded
from tests.support.fuse_models import (
    Attributes,
    Block,
    Guarded,
    Optional,
    Progressive,
    UNet,
    conv,
    dcgan,
)


def test_later_changes_of_attributes_are_followed() -> None:
    model = seeded(Progressive)
    plain = copy.deepcopy(model)
    fuse(model)
    assert calls(model, image()) == 1
    model.level = plain.level = 3
    assert_same(model, plain, image())
    assert model(image()).shape[-1] == 64
    model.level = plain.level = 1
    model.alpha.fill_(2.0)
    plain.alpha.fill_(2.0)
    assert calls(model, image()) == 1
    assert_same(model, plain, image())


@pytest.mark.parametrize("change", ["padding_mode", "slope", "append", "replace", "weight_norm", "double"])
def test_later_changes_of_modules_are_followed(change: str) -> None:
    model = seeded(lambda: nn.Sequential(conv(3, 4), nn.LeakyReLU(0.2)))
    plain, x = copy.deepcopy(model), image()
    fuse(model)
    assert calls(model, x) == 1
    for changed in (model, plain):
        torch.manual_seed(5)
        if change == "padding_mode":
            changed[0].padding_mode, changed[0]._reversed_padding_repeated_twice = "circular", [1, 1, 1, 1]
        elif change == "slope":
            changed[1].negative_slope = 0.7
        elif change == "append":
            changed.append(nn.Sigmoid())
        elif change == "replace":
            changed[1] = nn.Tanh()
        elif change == "weight_norm":
            nn.utils.parametrizations.weight_norm(changed[0])
        else:
            changed.double()
    x = x.double() if change == "double" else x
    assert torch.equal(model(x), plain(x))


def test_hooks_fire_whenever_they_are_registered() -> None:
    seen = []
    model = seeded(lambda: nn.Sequential(conv(3, 4), nn.ELU(), conv(4, 3)))
    model.register_forward_hook(lambda module, args, output: seen.append("model"))
    model[2].register_forward_hook(lambda module, args, output: seen.append("last"))
    fuse(model)
    model(image())
    assert seen == ["last", "model"]
    handle = model[0].register_forward_hook(lambda module, args, output: seen.append(output.min().item() < -1))
    model(image())
    assert seen[2:] == [True, "last", "model"]  # the hook sees the sum before ELU, whose results end at -1
    handle.remove()
    assert calls(model, image()) == 1


def test_hooks_of_a_container_whose_children_are_called_directly() -> None:
    seen = []
    model = seeded(lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Sequential(conv(3, 4), nn.ELU())))
    fuse(model)
    assert calls(model, image()) == 1
    handle = model[1].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    model(image())
    handle.remove()
    assert seen == [2]
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(type(module)))
    model(image())
    handle.remove()
    assert seen[1:4] == [nn.Upsample, nn.Conv2d, nn.ELU]


def test_container_called_alone_is_fused_itself() -> None:
    model, _, report = fused_pair(lambda: nn.Sequential(nn.Sequential(conv(3, 4), nn.ELU()), conv(4, 3)))
    assert patterns(report) == [("0.0", "conv 3x3 + elu")]
    assert calls(model[0], image()) == calls(model, image()) == 1


def test_branches_on_shapes_and_missing_tensors_are_followed() -> None:
    model = seeded(Guarded)
    plain = copy.deepcopy(model)
    assert patterns(fuse(model)) == [("conv", f"{UP} + elu")]
    for batch, skip, fused in ((2, image(2, 3, 8, 8, seed=4), 1), (4, image(4, 3, 8, 8, seed=4), 0), (2, None, 1)):
        x = image(batch, 3, 8, 8)
        assert calls(model, x, skip) == fused
        torch.testing.assert_close(model(x, skip), plain(x, skip), rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        model(image(2, 4, 8, 8), image(2, 4, 8, 8))


def test_optional_argument_runs_the_own_forward() -> None:
    model, plain, report = fused_pair(Optional)
    assert patterns(report) == [("conv", "conv 3x3 + elu")]
    x, shift = image(), image(seed=2)
    assert torch.equal(model(x, shift), plain(x, shift))
    assert torch.equal(model(x, shift=shift), plain(x, shift))
    assert calls(model, x=x) == calls(model, x, None) == calls(model, x, shift=None) == 1
    assert calls(model, x, shift) == 0


@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (1, 3, 2, 3), (3, 8, 6), (0, 3, 4, 4)], ids=str)
def test_odd_sizes_and_images_without_batch(shape: tuple[int, ...]) -> None:
    assert_same(
        *fused_pair(lambda: nn.Sequential(conv(3, 4), nn.ELU(), nn.Upsample(scale_factor=0.5)))[:2], image(2, 3, 5, 7)
    )
    assert_same(*fused_pair(lambda: nn.Sequential(conv(3, 4, stride=2), nn.ELU()))[:2], image(*shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = seeded(Attributes).to(dtype)
    plain, x = copy.deepcopy(model), image().to(dtype)
    fuse(model)
    assert calls(model, x) == (2 if dtype == torch.bfloat16 else 0)
    exact = copy.deepcopy(plain).double()(x.double())
    error, eager = (model(x).double() - exact).norm(), (plain(x).double() - exact).norm()
    assert error <= 2 * eager + 1e-4 * exact.norm()


def test_autocast_and_channels_last() -> None:
    model = seeded(Attributes)
    plain, x = copy.deepcopy(model), image()
    fuse(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert calls(model, x) == 2
        output, expected = model(x), plain(x)
    assert output.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=0.05, atol=0.02)
    last = torch.channels_last
    model, plain = model.to(memory_format=last), plain.to(memory_format=last)
    assert_same(model, plain, x.to(memory_format=last))
    assert_same(model, plain, x)


def test_optimiser_checkpoints_and_ema_stay_valid() -> None:
    model = seeded(Attributes)
    plain = copy.deepcopy(model)
    optimisers = [torch.optim.Adam(m.parameters(), 0.01) for m in (model, plain)]
    fuse(model)
    for trained, optimiser in zip((model, plain), optimisers, strict=True):
        for step in range(2):
            optimiser.zero_grad()
            trained(image(seed=step)).square().mean().backward()
            optimiser.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    model.load_state_dict(plain.state_dict())
    assert_same(model, plain, image())


def test_copies_and_pickles() -> None:
    model, plain, _ = fused_pair(UNet)
    copied = copy.deepcopy(model)
    assert calls(copied, image()) == 12
    with torch.no_grad():
        for scaled in (copied, plain):
            for parameter in scaled.parameters():
                parameter.mul_(1.1)
    assert_same(copied, plain, image())
    assert next(model.parameters()) is not next(copied.parameters())
    loaded = pickle.loads(pickle.dumps(model))
    assert type(loaded) is UNet and calls(loaded, image()) == 0
    torch.testing.assert_close(loaded(image()), model(image()))
    unfuse(copied)
    assert type(copied) is UNet and calls(model, image()) == 12


def test_unfuse_restores_exactly() -> None:
    model = seeded(UNet)
    before = {path: (type(m), dict(vars(m))) for path, m in model.named_modules()}
    fuse(model)
    assert type(model) is not UNet and isinstance(model, UNet)
    assert unfuse(model) is model
    for path, module in model.named_modules():
        kind, attributes = before[path]
        assert type(module) is kind and "forward" not in vars(module)
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[name] is value for name, value in attributes.items())
    assert patterns(fuse(model)) == patterns(fuse(model))  # fusing twice is fusing once
    assert calls(model, image()) == 12


def test_training_mode_is_followed() -> None:
    model = seeded(lambda: nn.Sequential(conv(3, 4), nn.ELU(), nn.Dropout(0.5), conv(4, 3), nn.Tanh()))
    fuse(model)
    assert not torch.equal(model(image()), model(image()))
    model.eval()
    assert torch.equal(model(image()), model(image())) and calls(model, image()) == 2


def test_compiles_to_one_graph() -> None:
    model = seeded(lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv(3, 4), nn.ELU(), nn.Sequential(conv(4, 3))))
    expected = model(image())
    fuse(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image()), expected, rtol=1e-4, atol=1e-5)
    assert calls(model, image()) == 1


def test_example_inputs_count_products() -> None:
    model = seeded(lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv(8, 8), nn.ELU(), conv(8, 8, stride=2)))
    report = fuse(model, example_inputs=image(1, 8, 4, 4))
    # written: 8 x 8 outputs, 8 x 8 channels, 9 taps; computed: 4 x 4 inputs, 8 x 8 channels, 9 products
    assert report.replaced == [("1", f"{UP} + elu", "36,864 -> 9,216 products")]
    assert report.skipped == [("3", "conv 3x3 stride 2", "nothing to gain: a convolution alone, of 8 channels")]
    assert report.refused == [] and report.products == (36864, 9216)
    assert report.error[0] <= report.error[2]
    text = str(report)
    assert text.startswith("1 chains fused, 1 left as they were\n") and "36,864 -> 9,216 products" in text
    assert "4.0 times fewer" in text
    assert calls(model, image(1, 8, 4, 4)) == 1


def test_example_inputs_leave_buffers_and_random_numbers() -> None:
    model = seeded(dcgan)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    report = fuse(model, example_inputs=(image(3, 5),))
    assert len(report.replaced) == 3
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_mismatch_restores_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    right = engine.ops.resize_conv_act
    monkeypatch.setattr(engine.ops, "resize_conv_act", lambda *args, **options: 1.01 * right(*args, **options))
    model = seeded(Attributes)
    report = fuse(model, example_inputs={"x": image()})
    assert report.replaced == [] and type(model) is Attributes
    assert [path for path, _, _ in report.skipped] == ["first", "second"]
    assert all(reason.startswith("the outputs differ (error") for _, _, reason in report.skipped)
    with pytest.raises(ValueError, match="the outputs differ"):
        fuse(model, example_inputs={"x": image()}, strict=True)


def test_example_inputs_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="cannot run on example_inputs"):
        fuse(seeded(Attributes), example_inputs=image(1, 5, 4, 4))


def test_strict_passes_where_nothing_is_left() -> None:
    model = seeded(lambda: Block(3, 4))
    assert len(fuse(model, strict=True, example_inputs=image()).replaced) == 2


def test_importing_engine_stays_light() -> None:
    code = (
        "import sys, engine; assert 'torch' not in sys.modules; assert callable(engine.fuse);"
        "import engine.fusion; assert engine.fuse is engine.fusion.fuse and engine.unfuse is engine.fusion.unfuse;"
        "assert not hasattr(engine, 'fuze')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
