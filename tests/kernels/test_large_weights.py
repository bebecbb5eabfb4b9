"""Convolutions whose packed weights outgrow the cache: packed panel by panel, their gradients made block by block."""

from typing import Any

import pytest
import torch

from engine import ops
from engine.kernels import _spec
from engine.kernels._spec import Sample
from engine.kernels.resize_conv_act import packed_weights
from tests.support.instruction_sets import INSTRUCTION_SETS

SPEC = _spec.specs()["resize_conv_act"]
SPREAD = {"stride": 2, "transposed": True}
# kernel, channels of x and of second, outputs, batch, sides, options; each more than 1 MiB packed
CASES: list[tuple[int, int, int, int, int, int, int, dict[str, Any]]] = [
    (3, 130, 3, 136, 2, 5, 6, {"activation": "elu"}),
    (3, 128, 0, 240, 2, 3, 4, {"resize": "up", "activation": "relu"}),
    (3, 104, 0, 112, 1, 24, 24, {"padding_mode": "reflect"}),  # F(4x4)
    (4, 80, 0, 104, 1, 6, 5, {"padding_mode": "replicate"}),
    (5, 90, 0, 88, 1, 6, 5, {}),
    (3, 110, 0, 104, 2, 7, 5, {"stride": 2}),
    (4, 100, 20, 104, 3, 4, 4, {"stride": 2, "padding": 1, "input_grad_from": 1}),
    (3, 104, 0, 110, 2, 4, 5, {**SPREAD, "output_padding": 1}),
    (4, 136, 0, 110, 2, 5, 4, {**SPREAD, "activation": "leaky_relu"}),
    (4, 96, 0, 100, 30, 8, 8, {"stride": 2, "input_grad_from": 13}),  # items of several images, some without gradient
    (3, 144, 0, 130, 4, 28, 28, {}),  # more tiles than are added up at a time
]


def sample_of(kernel: int, c: int, further: int, cout: int, b: int, h: int, w: int, options: dict[str, Any]) -> Sample:
    channels = (c + further, cout) if options.get("transposed") else (cout, c + further)
    shapes: dict[str, tuple[int, ...]] = {"x": (b, c, h, w), "weight": (*channels, kernel, kernel), "bias": (cout,)}
    shapes |= {"second": (b, further, h, w)} if further else {}
    kinked = options.get("activation") in ("relu", "leaky_relu")
    name = f"{b}x{c}+{further}x{h}x{w}->{cout} {kernel}x{kernel} {options}"
    return Sample(name, shapes | {"grad_scale": (b,)}, options, "channels_last", kinked)


SAMPLES = [sample_of(*case) for case in CASES]
NAMES = [sample.name for sample in SAMPLES]


def check(errors: list[_spec.Error]) -> None:
    assert not [error for error in errors if not error.passed], errors


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS, indirect=True)
@pytest.mark.parametrize("sample", SAMPLES, ids=NAMES)
def test_every_instruction_set(sample, instruction_set):
    check(_spec.compare(SPEC, sample, torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sample", SAMPLES[::3], ids=NAMES[::3])
def test_half_precision(sample, dtype):
    check(_spec.compare(SPEC, sample, dtype))


@pytest.mark.parametrize("sample", SAMPLES[:-1], ids=NAMES[:-1])
def test_any_number_of_threads(sample):
    before, made = torch.get_num_threads(), _spec.tensors(sample, torch.float32)
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results += [_spec.run(ops.resize_conv_act, sample, made, torch.float32) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    for once, again in zip(results[::2], results[1::2], strict=True):
        assert all(torch.equal(once[name], again[name]) for name in once)  # one count, the same bits every time
    check(_spec.judge(*([results[0]] * 2), results[-1], SPEC.floor[torch.float32]))


def test_results_that_are_not_needed():
    """Each gradient alone is what it is among all."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 100, 4, 4), torch.randn(104, 100, 4, 4), torch.randn(104)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    y = ops.resize_conv_act(*inputs, stride=2, padding=1)
    upstream = torch.randn_like(y)
    together = torch.autograd.grad(y, inputs, upstream, retain_graph=True)
    for one, wanted in zip(inputs, together, strict=True):
        (alone,) = torch.autograd.grad(y, one, upstream, retain_graph=True)
        assert torch.equal(alone, wanted)


def test_inference_keeps_only_what_it_reads():
    """Large weights are packed in each call; for maps with more tiles than weights they are kept."""
    weight = torch.randn(144, 128, 3, 3)
    small, large = torch.randn(1, 128, 4, 4), torch.randn(8, 128, 40, 40)
    with torch.no_grad():
        first = ops.resize_conv_act(small, weight)
        assert not packed_weights.KEPT[weight]
        ops.resize_conv_act(large, weight)
        assert len(packed_weights.KEPT[weight]) == 1
        assert torch.equal(ops.resize_conv_act(small, weight), first)  # whether or not something is kept
    trained = ops.resize_conv_act(small, weight.clone().requires_grad_())
    assert torch.equal(trained, first)


def test_infinite_gradients_stay_infinite():
    y = ops.resize_conv_act(torch.ones(1, 8, 4, 4), torch.ones(8, 8, 3, 3), bias := torch.ones(8, requires_grad=True))
    (found,) = torch.autograd.grad(y, bias, torch.full_like(y, float("inf")))
    assert torch.equal(found, torch.full_like(found, float("inf")))


def test_a_bias_gradient_of_values_that_cancel():
    """A sum near zero of numbers near one keeps its digits: 4e-6 off where the sum rounds at every step."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(8, 1, 16, 16, generator=generator)
    values -= values.double().mean().float() * 0.99
    y = ops.resize_conv_act(
        torch.randn(8, 4, 16, 16), torch.randn(1, 4, 3, 3), bias := torch.zeros(1, requires_grad=True)
    )
    (found,) = torch.autograd.grad(y, bias, values)
    assert abs(found.double() - values.double().sum()) <= 2e-7 * values.double().abs().sum() / 8
