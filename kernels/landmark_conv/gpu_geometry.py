"""The sizes and options of one landmark_conv call that its GPU passes share."""

from dataclasses import dataclass

import triton


@dataclass(frozen=True)
class Geometry:
    """The maps' size, the convolution, the stamp (in pixels), and the size of the output."""

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
        """Output pixels that a stamp reaches which no border cuts."""
        rows, columns = ((2 * self.radius + k + self.stride - 1) // self.stride for k in self.kernel)
        return min(rows, self.out_height) * min(columns, self.out_width)

    def constants(self) -> dict[str, int]:
        """What every kernel of a convolution is compiled for."""
        return {"KH": self.kernel[0], "KW": self.kernel[1], "STRIDE": self.stride}


def power(value: int, low: int, high: int) -> int:
    """The smallest power of two that holds value, from low to high."""
    return min(high, max(low, triton.next_power_of_2(value)))
