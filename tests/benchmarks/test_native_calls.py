"""Native calls and GPU launches are recorded, and their FLOPs and bytes counted, as they ran."""

import pytest
import torch

from benchmarks.timing import native_calls
from engine import ops
from engine.kernels import _native, _spec
from engine.kernels._observers import NativeCall, observers
from engine.kernels.resize_conv_act.geometry import SMALL_TILES, TRANSFORMED, UNPACKED, Geometry, native_sizes
from tests.support.benchmark_cases import conv


@pytest.mark.parametrize(
    "resize, second, products",
    [
        # per image: pixels, products of Cin x Cout for each; the second input beside nearest x2 has its own, direct
        ("up", 0, 9 * 48 * 16),
        ("up", 3, 9 * 48 * 16 + 9 * 4 * 48 * 3),
        ("none", 0, 16 * 48 // 4 * 16),
        ("none", 3, 16 * 48 // 4 * 19),
        ("down", 0, 9 * 12 * 16),  # few pixels: the direct sum, over weights as they lie
        ("down", 3, 9 * 12 * 19),
    ],
)
def test_products_of_the_forms(resize, second, products):
    sample = conv(resize, second).sample
    made = _spec.tensors(sample, torch.float32)
    leaves = {name: tensor.requires_grad_() for name, tensor in made.items()}
    with native_calls.recorded() as calls:
        y = ops.resize_conv_act(**leaves, **sample.options)
    (forward,) = calls
    assert forward.function == "resize_conv_act_forward" and forward.seconds > 0
    if resize != "none" or forward.integers["form"] in (SMALL_TILES, UNPACKED):  # 4x4 tiles: counted below
        assert native_calls.work(forward).flops == 2.0 * 2 * products * 24
    elements = sum(t.numel() for t in made.values()) - 24 + y.numel()
    assert native_calls.work(forward).bytes == 4.0 * elements
    with native_calls.recorded() as calls:
        y.sum().backward()
        for wanted in ("weight", "x"):
            only = {name: tensor.detach().requires_grad_(name == wanted) for name, tensor in made.items()}
            ops.resize_conv_act(**only, **sample.options).sum().backward()
    calls = [call for call in calls if call.function.endswith(("_forward", "_backward"))]  # not the kept weights'
    everything, _, of_weight, _, of_x = map(native_calls.work, calls)
    once = native_calls.work(forward).flops
    assert everything.flops == 2 * once and of_weight.flops == once
    assert 0 < of_x.flops <= once and of_x.bytes < everything.bytes
    assert native_calls.flops(calls) == everything.flops + of_weight.flops + of_x.flops + 2 * once


def test_4x4_tiles_take_36_products_for_16_outputs():
    where = Geometry("none", stride=1, padding=1, padding_mode="zeros", transposed=False, output_padding=0)
    sizes = native_sizes((1, 16, 8, 8), (24, 16, 3, 3), 0, where)
    integers = sizes | {"dtype": 0, "activation": 1, "form": TRANSFORMED}
    work = _spec.specs()["resize_conv_act"].work(NativeCall("resize_conv_act_forward", {}, integers, 0.1))
    assert work.flops == 2.0 * 36 * 4 * 16 * 24 and "4x4 tiles" in work.shape


def test_recording_leaves_the_calls_alone():
    honest = _native.native_function
    with pytest.raises(ZeroDivisionError), native_calls.recorded():
        assert _native.native_function is honest and len(observers) == 1
        1 / 0  # noqa: B018
    assert _native.native_function is honest and not observers
    assert native_calls.work(NativeCall("no_operator_forward", {}, {"n": 1}, 0.1)) is None
    assert native_calls.flops([]) is None


def test_launches_of_backward_passes_are_noted():
    """On a GPU autograd would run them in a thread of its own, where nothing is noted."""
    seen = []

    class Probe(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x.clone())

        @staticmethod
        def backward(ctx, grad):
            seen.append(torch.autograd.is_multithreading_enabled())
            return grad

    assert native_calls.launched(lambda: Probe.apply(torch.ones(1, requires_grad=True)).backward()) == []
    assert seen == [False] and torch.autograd.is_multithreading_enabled()
