"""Which algebra a convolution takes."""

import pytest

from engine.kernels.resize_conv_act.geometry import (
    DIRECT,
    MOST_PIXELS_UNPACKED,
    SMALL_TILES,
    TRANSFORMED,
    UNPACKED,
    Geometry,
    form,
    smaller_pixels,
)

SAME = Geometry("none", 1, 1, "zeros", False, 0)
HALVED, SPREAD = SAME._replace(stride=2), SAME._replace(stride=2, transposed=True)


@pytest.mark.parametrize(
    ("x", "weight", "where", "expected"),
    [
        ((1, 512, 2, 2), (512, 512, 4), HALVED, UNPACKED),  # one pixel of 512 channels
        ((1, 512, 8, 8), (512, 512, 4), HALVED, UNPACKED),
        ((1, 512, 16, 16), (512, 512, 4), HALVED, SMALL_TILES),
        ((64, 256, 8, 8), (256, 512, 4), HALVED, TRANSFORMED),
        ((1, 512, 4, 4), (512, 512, 4), SPREAD, UNPACKED),
        ((64, 512, 4, 4), (512, 256, 4), SPREAD, TRANSFORMED),
        ((1, 512, 4, 4), (512, 512, 3), SAME, UNPACKED),
        ((1, 256, 8, 8), (256, 256, 3), SAME, SMALL_TILES),
        ((25, 64, 32, 32), (64, 64, 3), SAME, TRANSFORMED),
        ((1, 512, 4, 4), (512, 256, 1), SAME._replace(padding=0), UNPACKED),
        ((4, 512, 32, 32), (512, 256, 1), SAME._replace(padding=0), DIRECT),
        ((1, 3, 4, 4), (3, 512, 3), SAME, DIRECT),  # few channels
        ((1, 512, 4, 4), (512, 512, 3), SAME._replace(padding_mode="reflect"), SMALL_TILES),
        ((1, 512, 4, 4), (512, 512, 3), SAME._replace(resize="up"), TRANSFORMED),
    ],
)
def test_forms(x: tuple[int, ...], weight: tuple[int, ...], where: Geometry, expected: int) -> None:
    assert form(x, weight, where, False) == expected


def test_an_exact_call_takes_a_direct_sum() -> None:
    shapes = [((1, 512, 4, 4), (512, 512, 3)), ((25, 64, 32, 32), (64, 64, 3))]
    assert [form(*shape, SAME, True) for shape in shapes] == [UNPACKED, DIRECT]


@pytest.mark.parametrize("where", [SAME, HALVED, SPREAD], ids=["same", "halved", "spread"])
def test_weights_as_they_lie_meet_few_pixels(where: Geometry) -> None:
    for side in (4, 8, 16, 64):
        for channels in (8, 64, 1024):
            for kernel in (1, 2, 3, 4, 5, 7):
                x = 1, channels, side, side
                if form(x, (channels, channels, kernel), where, False) == UNPACKED:
                    assert smaller_pixels(x, kernel, where) <= MOST_PIXELS_UNPACKED
