"""The 68 points of a face in iBUG order.

0-16 jaw from image left to right, 17-26 brows, 27-35 nose, 36-47 eyes, 48-67 mouth.
"""

import numpy as np

POINTS = 68


def _mirror_order() -> np.ndarray:
    order = np.arange(POINTS)

    def swap(first: int, last: int) -> None:
        """Reverse the run first..last: its left end takes its right end's place."""
        order[first : last + 1] = np.arange(last, first - 1, -1)

    swap(0, 16)  # jaw
    swap(17, 26)  # both brows, one run from left to right
    swap(31, 35)  # nostrils; 27-30, the bridge, stay
    order[36:40], order[42:46] = [45, 44, 43, 42], [39, 38, 37, 36]  # upper lids and corners
    order[40:42], order[46:48] = [47, 46], [41, 40]  # lower lids
    swap(48, 54)  # outer lip, upper edge
    swap(55, 59)  # outer lip, lower edge
    swap(60, 64)  # inner lip, upper edge
    swap(65, 67)  # inner lip, lower edge
    return order


MIRROR_ORDER = _mirror_order()
"""(68,) int64: point i of a mirrored face is point MIRROR_ORDER[i] of the face, with its x mirrored. An involution."""
MIRROR_ORDER.setflags(write=False)
MIRROR_ORDERS = {POINTS: MIRROR_ORDER}
