"""The share of a step's FLOPs that Kiln's kernels compute."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine import distributed, ops
from engine.distributed import group
from engine.kernels import _spec
from engine.systems.registry import SYSTEMS, build
from engine.training.fused_share import FACTORS, LIBRARY, FusedShare, Products, fused_share, preset_config
from engine.training.setup import mode
from engine.verification.training_steps import training_batch, training_config

CPU = torch.device("cpu")
# system -> options that bring in every network and loss of it
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((system, {}) for system in SYSTEMS),
    ("refiner", {"landmarks": True, "landmark_weight": 1.0}),
    ("began", {"upsample": "deconv", "downsample": "average"}),
    ("wgan", {"gradient_penalty": 10.0}),
    ("wgan", {"gradient_penalty": 10.0, "critic_norm": "none"}),
    ("dcgan", {"layers": "resize"}),
    ("simgan", {"reg": "features", "part_weight": 1.0, "cycle_weight": 1.0}),
    ("cyclegan", {"upsample": "nearest"}),
    ("reenact", {"norm": "instance"}),
    ("reenact", {"norm": "none"}),
    ("reenact", {"norm": "instance", "dropout": True, "d_optimiser": "sgd"}),
]


@pytest.mark.parametrize("system, options", VARIANTS, ids=str)
def test_fused_layers_compute_nearly_all_of_a_step(system: str, options: dict[str, Any]) -> None:
    count = fused_share(preset_config(system, "paper", **options))
    assert count.share >= 0.99, count


def test_a_step_in_plain_pytorch_has_no_share() -> None:
    count = fused_share(replace(preset_config("dcgan", "quick"), fused=False))
    assert count.kiln == 0 and count.share == 0 and str(count) == "0.0 % of a step's FLOPs"


@pytest.mark.parametrize("system", ["ggb", "simgan", "cyclegan"])
def test_the_flops_of_a_plain_step_are_those_of_torchs_counter(system: str) -> None:
    """The count on the meta device is that of FlopCounterMode around a real step."""
    config = replace(training_config(system), fused=False)
    real = build(config, CPU)
    batch = training_batch(config, 1, CPU)
    with FlopCounterMode(display=False) as counter:
        real.step(batch)
    assert sum(fused_share(config).rest.values()) == counter.get_total_flops() > 0


@pytest.mark.parametrize("system", ["ggb", "dcgan", "wgan"])
def test_a_fused_step_has_the_flops_of_a_plain_one(system: str) -> None:
    """Systems that take the same step either way, and have no convolution before nearest /2."""
    config = preset_config(system, "quick")
    fused, eager = fused_share(config), fused_share(replace(config, fused=False))
    assert fused.kiln == sum(eager.rest.values()) and not fused.rest


def test_a_gradient_penalty_has_the_flops_of_plain_pytorch() -> None:
    """But those of PyTorch's second derivative of LeakyReLU, which is zero, on its way through the first layer."""
    config = preset_config("wgan", "quick", gradient_penalty=10.0)
    fused, eager = fused_share(config), sum(fused_share(replace(config, fused=False)).rest.values())
    assert 0.999 * eager < fused.kiln <= eager and not fused.rest


def test_the_share_of_the_refiner_by_hand() -> None:
    """Products of the layers of a real step: forward, gradient of the weights and gradient of what needs one."""
    config = replace(training_config("refiner"), fused=True)
    system = build(config, CPU)
    # enlarging the sharpest copy, which a correction starts from, is a product along the rows and one along the columns
    small, side = max(config.inject), config.resolution
    enlarging = config.batch_size * config.channels * 2 * (side * small * small + side * small * side)
    flops = {"convolutions": 0.0, "rest": enlarging * config.correct}

    def note(layer: torch.nn.Module, inputs: tuple, named: dict[str, Any], result: torch.Tensor) -> None:
        pixels = result.shape[2:].numel()
        forward = 2 * len(result) * pixels * layer.weight.numel()
        given = dict(zip(("x", "second", "grad_scale", "input_grad_from"), inputs, strict=False)) | named
        differentiated = any(torch.is_tensor(t) and t.requires_grad for t in map(given.get, ("x", "second")))
        share = 1 - given.get("input_grad_from", 0) / len(result) if differentiated else 0
        # the critic is frozen while it judges the results for the generator
        times = 1 + layer.weight.requires_grad + share
        flops["convolutions" if result.dim() == 4 else "rest"] += forward * times

    for network in system.networks().values():
        for layer in network.modules():
            if hasattr(layer, "weight"):
                layer.register_forward_hook(note, with_kwargs=True)
    system.step(training_batch(config, 1, CPU))
    count = fused_share(config)
    assert (count.kiln, sum(count.rest.values())) == tuple(flops.values())


def test_every_operator_with_products_is_known() -> None:
    """The references of the other operators have no products."""
    for name, operator in ops.OPERATORS.items():
        sample = _spec.specs()[name].samples[0]
        made = _spec.tensors(sample, torch.float32)
        with FlopCounterMode(display=False) as counter:
            operator.reference(**made, **sample.options_in(torch.float32))
        assert bool(counter.get_total_flops()) == (name in FACTORS), name
    libraries = {row.operator for row in ops.explain() if row.kind == "library GEMM"}
    assert libraries == set(LIBRARY)


@pytest.mark.parametrize("name", [name for name in FACTORS if name not in LIBRARY])
def test_an_operator_has_the_flops_of_its_reference(name: str) -> None:
    """Forward and backward, on all samples but those whose reference computes more than is written.

    It takes a second pass for grad_scale, drops three of four values for nearest /2, and forms gradients of samples
    that need none.
    """
    spec, operator = _spec.specs()[name], ops.OPERATORS[name]
    compared = 0
    for sample in spec.samples:
        options = sample.options
        if "grad_scale" in sample.shapes or options.get("resize") == "down" or options.get("input_grad_from"):
            continue
        made = _spec.tensors(sample, torch.float32)
        with FlopCounterMode(display=False) as counter:
            _spec.run(operator.reference, sample, made, torch.float32)
        with Products() as products:
            _spec.run(operator.function, sample, made, torch.float32)
        assert products.kiln == counter.get_total_flops() and not products.rest, sample.name
        compared += 1
    assert compared > 2


def test_counting_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    fused_share(preset_config("wgan", "quick"))
    assert torch.equal(torch.get_rng_state(), before)


def test_counting_exchanges_nothing_with_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two ranks counts its share of the batch by itself."""
    monkeypatch.setattr(group, "_world", group._World(rank=1, size=2))
    config = preset_config("dcgan", "quick")
    of_rank = fused_share(replace(config, ranks=2))
    assert distributed.size() == 2
    monkeypatch.undo()
    assert 2 * of_rank.kiln == fused_share(config).kiln


def test_the_words() -> None:
    assert str(FusedShare(99_999, {"mm": 1})) == "99.9 % of a step's FLOPs"
    assert str(FusedShare(1, {})) == "100.0 % of a step's FLOPs"


def test_the_mode_line_has_the_share() -> None:
    assert mode(replace(preset_config("dcgan", "quick"), device="cpu")).startswith(
        "fused operators (100.0 % of a step's FLOPs), fp32, cpu"
    )
