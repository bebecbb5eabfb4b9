"""Native functions refuse what would make them read or write past a tensor; sizes that no memory holds are errors."""

import os

import pytest
import torch

from engine import ops
from engine.kernels import _native

X, WEIGHT, Y = torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3), torch.empty(1, 1, 3, 3)
CONV = {
    "x": X, "weight": WEIGHT, "scale": None, "bias": None, "second": None, "residual": None, "y": Y, "kept": None,
    "dtype": 0, "activation": 0, "form": 0, "batch": 1, "up": False, "transposed": False, "border": 0,
    "weight_last": False, "kernel": 3, "stride": 1, "padding": 1, "channels": 2, "further": 0, "height": 3, "width": 3,
    "out_height": 3, "out_width": 3, "cout": 1, "negative_slope": 0.2,
}  # fmt: skip
GRAM = {"features": X, "result": Y, "dtype": 0, "batch": 1, "pixels": 9, "channels": 2, "planar": True}


@pytest.mark.parametrize(
    "function, given, words",
    [
        ("resize_conv_act_forward", CONV | {"x": None}, "x is None"),
        ("resize_conv_act_forward", CONV | {"batch": -1}, "batch is -1; it must lie in 0 .. 9223372036854775807"),
        ("resize_conv_act_forward", CONV | {"height": -3}, "height is -3; it must lie in 0 .. 8388608"),
        (
            "resize_conv_act_forward",
            CONV | {"width": (1 << 32) + 3},
            "width is 4294967299; it must lie in 0 .. 8388608",
        ),
        ("resize_conv_act_forward", CONV | {"further": 1}, "second is missing"),
        ("resize_conv_act_forward", CONV | {"kernel": 9}, "no such kernel or stride"),
        ("gram_forward", GRAM | {"pixels": -9}, "pixels is -9"),
    ],
)
def test_what_cannot_be_is_refused(function, given, words):
    with pytest.raises(ValueError) as caught:
        _native.native_function(function)(**given)
    assert str(caught.value) == f"native function {function}: {words}" or words in str(caught.value)


def test_a_freed_storage_is_refused():
    """As FSDP leaves a parameter outside of its layer's call. Elements that are none need no memory."""
    x = torch.randn(2, 3, 4, 4)
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"features has elements but no memory: its storage was freed$"):
        ops.gram(x)
    with pytest.raises(ValueError, match=r"\w+ has elements but no memory: its storage was freed$"):
        ops.l1_autoencoder_loss(torch.randn(2, 3, 4, 4), x)
    assert ops.gram(torch.empty(0, 3, 4, 4)).shape == (0, 3, 3)


def test_no_threads_are_refused():
    with pytest.raises(ValueError, match="no threads"):
        _native.load().function("gram_forward")(0, GRAM)


def test_a_side_that_no_int_holds_is_refused():
    """Not cut to what an int holds: the rest of the result would be memory that nobody wrote."""
    with pytest.raises(ValueError, match=r"width is 8388609; it must lie in 0 .. 8388608"):
        ops.resize_conv_act(torch.empty(0, 1, 1, (1 << 23) + 1), torch.ones(1, 1, 3, 3))
    with pytest.raises(ValueError, match=r"padding is 16777216; it must lie in 0 .. 8388608"):
        ops.landmark_conv(torch.empty(0, 1, 2), torch.ones(1, 1, 3, 3), height=4, width=4, padding=1 << 24)


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer ends the process there")
def test_scratch_beyond_the_address_space_is_a_memory_error():
    """Of a matrix of 2^23 channels; what is asked for before and after fits."""
    few = ops.gram(X)
    with pytest.raises(MemoryError, match="native function gram_forward: no memory is left"):
        _native.native_function("gram_forward")(**GRAM | {"channels": 1 << 23})
    assert torch.equal(ops.gram(X), few)
