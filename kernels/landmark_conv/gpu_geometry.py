"""The sizes and options of one landmark_conv call that its GPU passes share."""

from dataclasses import dataclass

import triton


@dataclass(frozen=True)
class Geometry:
    """The sizes and options of one call.

    height, width:         of the heatmaps, and of the image
    kernel:                (KH, KW)
    stride, padding:       of the convolution
    sigma, radius:         of the Gaussian, in pixels; its window is 2 radius + 1 pixels wide
    subpixel:              whether the Gaussian is centred at the landmark itself, not at its pixel
    out_height, out_width: of the result
    """

    height: int
    width: int
    kernel: tuple[int, int]
    stride: int
    padding: int
    sigma: float
    radius: int
    subpixel: bool
    out_height: int
    out_width: int

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def stamp_pixels(self) -> int:
        """How many output pixels a stamp reaches if no border cuts it."""
        rows, columns = ((2 * self.radius + k + self.stride - 1) // self.stride for k in self.kernel)
        return min(rows, self.out_height) * min(columns, self.out_width)

    def constants(self) -> dict[str, int]:
        """The compile-time constants that every kernel of the convolution takes."""
        return {"KH": self.kernel[0], "KW": self.kernel[1], "STRIDE": self.stride}


def power(value: int, low: int, high: int) -> int:
    """The smallest power of two that holds value, from low to high."""
    return min(high, max(low, triton.next_power_of_2(value)))
