"""The suite `profile`: its parts are the whole step."""

import pytest

from benchmarks.suites import profile
from tests.support.benchmark_cases import TINY


def test_a_profile_accounts_for_the_step():
    of_step = profile.measure(TINY, "cpu", 2, lambda _: None)
    layers = {line.layer for line in of_step.lines}
    assert {"generator.first", "discriminator.encoder.first", "discriminator.decoder.last"} <= layers
    passes = [line.function for line in of_step.lines if line.layer == "generator.decoder.blocks.2"]
    assert passes == ["resize_conv_act_forward", "resize_conv_act_backward"]
    assert of_step.outside.keys() >= {"aten::_fused_adam_", "aten::_foreach_lerp_", "aten::cat"}
    total = sum(line.seconds for line in of_step.lines) + sum(of_step.outside.values())
    assert total == pytest.approx(of_step.wall.median)
