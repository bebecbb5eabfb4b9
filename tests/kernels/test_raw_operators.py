"""Whatever is registered as torch.ops.kiln.* checks its arguments before a pointer leaves Python."""

import os
import subprocess
import sys

import pytest
import torch

import engine.kernels._skeleton  # noqa: F401, registers it
from tests.support.places import ROOT
from tests.support.raw_calls import REFUSALS, registered, valid_calls


def test_every_registered_operator_is_called():
    called = valid_calls().keys()
    assert called == {name for name in registered() if not name.startswith("unfit")}  # another test declares these


@pytest.mark.parametrize("count", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_every_single_misfit(count):
    """In a process of its own, which a crash would end: each is refused, or gives what it must."""
    words = [sys.executable, "-W", "ignore", "-m", "tests.support.raw_calls", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    wrong = [line for line in done.stdout.splitlines() if line.startswith("WRONG")]
    assert done.returncode == 0, (wrong[:5], done.stdout.splitlines()[-2:], done.stderr[-500:])


kiln = torch.ops.kiln
ONE, TWO = torch.ones(1), [True, True]
IMAGE = torch.ones(1, 3, 4, 4)


@pytest.mark.parametrize(
    "call, says",
    [
        # each read or wrote past its tensors, or took another meaning, before it was refused
        (lambda: kiln.l1_autoencoder_loss_backward(ONE.byte(), torch.ones(9, 9), None, ONE[0], TWO), "signs is"),
        (lambda: kiln.gram_backward(torch.ones(1, 2, 2), IMAGE), "grad is"),
        (lambda: kiln.gram_backward(torch.ones(1, 3, 3), IMAGE.to("meta")), "features is on meta"),
        (lambda: kiln.landmark_heatmap_backward(torch.ones(2, 5, 8), torch.ones(2, 5, 2), 1.0, 3), "grad is"),
        (lambda: kiln.landmark_heatmap_backward(torch.ones(1, 5, 8, 8), torch.ones(2, 5, 2), 1.0, 3), "grad is"),
        (lambda: kiln.style_loss_backward(IMAGE, IMAGE, ONE, ONE, None, None, False, TWO), "difference"),
        (lambda: _normalisation_backward(mean=torch.ones(2)), "mean is"),
        (lambda: _normalisation_backward(groups=2), "groups is 2; it must divide the 3 channels"),
        (lambda: _normalisation_backward(groups=-3), "groups is -3"),
        (lambda: _normalisation_backward(means=torch.ones(3, 2)), "means is"),
        (lambda: _normalisation_backward(need=[True, True, False, False]), "argument that is None"),
        (lambda: kiln.skeleton_backward(IMAGE, IMAGE, ONE, [True]), "need has 1 values"),
        (lambda: _convolution_backward(need=[True, True, True, False]), "argument that is None"),
        (lambda: _convolution_backward(y=None, activation="elu"), "y is None"),
        (lambda: _convolution_backward(y=ONE, activation="elu"), "y is"),
        (lambda: _convolution_backward(activation="silu"), "does not know silu"),
        (lambda: _convolution_backward(grad=torch.ones(1, 4, 6, 5)), "grad is"),
        (lambda: _convolution_backward(negative_slope=float("nan")), "negative_slope is nan"),
        (lambda: kiln.skeleton(torch.ones(2, 3), None), "scale must be a tensor, not NoneType"),
    ],
)  # fmt: skip
def test_misfits_that_were_dangerous(call, says):
    with pytest.raises(REFUSALS, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def _normalisation_backward(**changed: object) -> tuple[torch.Tensor, ...]:
    given = {"grad": IMAGE, "x": IMAGE, "weight": None, "bias": None, "residual": None, "mean": torch.ones(3)}
    given |= {"var": torch.ones(3), "means": None, "groups": 0, "constant": False, "eps": 1e-5, "activation": "elu"}
    given |= {"negative_slope": 0.2, "need": [True, False, False, False]}
    return kiln.norm_act_backward(**given | changed)


def _convolution_backward(**changed: object) -> tuple[torch.Tensor, ...]:
    arguments = {
        "grad": torch.ones(1, 4, 6, 6), "y": None, "x": torch.ones(1, 3, 6, 6), "weight": torch.ones(4, 3, 3, 3),
        "bias": None, "second": None, "grad_scale": None, "resize": "none", "stride": 1, "padding": 1,
        "padding_mode": "zeros", "transposed": False, "output_padding": 0, "activation": "none",
        "negative_slope": 0.2, "exact": False, "input_grad_from": 0, "need": [True, True, False, False],
    }  # fmt: skip
    return kiln.resize_conv_act_backward(**arguments | changed)


def test_saved_tensors_that_come_back_changed_are_refused():
    """saved_tensors_hooks hand over what they like in the place of what a backward pass reads."""
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    for change in (lambda t: t[:1].clone(), lambda t: t.double(), lambda t: t.flatten()):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, change):
            y = kiln.gram(x)
        with pytest.raises(REFUSALS):
            y.sum().backward()
