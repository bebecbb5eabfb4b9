"""What speed.py predicts, and that each call is decided by its own sizes and by whether gradients are recorded."""

import pytest
import torch
from torch import nn

from engine.fusion import fuse
from engine.fusion.chains import savings
from engine.fusion.chains.speed import speed, speed_on_large_maps
from engine.kernels.resize_conv_act.geometry import Geometry
from tests.support.fuse_checks import calls, image, seeded
from tests.support.fuse_models import conv

SAME = Geometry("none", 1, 1, "zeros", False, 0)
HALVED = SAME._replace(stride=2)
MODES = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])


@MODES
def test_speed_grows_with_the_maps(training: bool) -> None:
    sides = [2, 8, 32, 128]
    speeds = [speed((1, 64, side, side), (64, 64, 3, 3), SAME, 1, training) for side in sides]
    assert speeds == sorted(speeds) and speeds[0] < 1 < speeds[-1] <= 9 / 2.25 * 1.5
    assert max(speeds) <= speed_on_large_maps((64, 64, 3, 3), SAME, 1)


@MODES
def test_what_a_layer_adds_and_fewer_products_save(training: bool) -> None:
    x, weight = (4, 64, 32, 32), (64, 64, 3, 3)
    alone, followed = (speed(x, weight, SAME, operations, training) for operations in (0, 2))
    assert alone < followed  # layers after the convolution are passes of their own as written
    reflected = speed(x, weight, SAME._replace(padding_mode="reflect"), 0, training)
    assert reflected > alone  # so is a padding
    assert speed(x, weight, HALVED, 0, training) < alone  # tiles of stride 2 save fewer products
    points = speed((4, 64, 32, 32), (64, 64, 1, 1), SAME._replace(padding=0), 0, training)
    assert points < speed(x, weight, HALVED, 0, training)  # and 1x1 kernels none


@MODES
def test_many_weights_and_few_pixels_still_gain(training: bool) -> None:
    """Weights are read as they lie: 512 to 512 channels of 4x4 taps for one pixel."""
    assert speed((1, 512, 2, 2), (512, 512, 4, 4), HALVED, 1, training) > 1.5


def test_a_call_is_decided_by_whether_gradients_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(lambda: nn.Sequential(conv(16, 16), nn.ReLU()))
    fuse(model)
    for faster_in_training in (False, True):
        monkeypatch.setattr(savings, "speed", lambda *args, good=faster_in_training: 2.0 if args[-1] == good else 0.5)
        assert calls(model, image(1, 16, 8, 8)) == faster_in_training
        with torch.no_grad():
            assert calls(model, image(1, 16, 8, 8)) != faster_in_training
        model.requires_grad_(False)
        assert calls(model, image(1, 16, 8, 8)) != faster_in_training  # nothing is recorded
        model.requires_grad_(True)
