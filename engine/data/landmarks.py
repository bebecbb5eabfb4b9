"""The orders of points, the 68 of a face (iBUG) and the 18 of a body (OpenPose), and what mirroring does to them.

68: 0-16 jaw from image left to right, 17-26 brows, 27-35 nose, 36-47 eyes, 48-67 mouth.
18: nose, neck, right shoulder, elbow, wrist, the same of the left, right hip, knee, ankle, the same of the left, right
eye, left eye, right ear, left ear (the COCO model of Cao et al. 2017; right and left are the person's).
"""

import numpy as np

POINTS = 68
KEYPOINTS = 18
_NAMES = {POINTS: "landmarks", KEYPOINTS: "key points"}


def points_name(count: int) -> str:
    """What `count` points are called: "68 landmarks", "18 key points", "5 points"."""
    return f"{count} {_NAMES.get(count, 'points')}"


def turned_text(count: int) -> str:
    """What is said of `count` images with landmarks whose pixels are turned before they are shown."""
    return f"{count:,} images with landmarks are turned by their orientation (EXIF); landmarks count as displayed"


def _face_order() -> np.ndarray:
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


def _body_order() -> np.ndarray:
    order = np.arange(KEYPOINTS)
    for right, left in ((2, 5), (3, 6), (4, 7), (8, 11), (9, 12), (10, 13), (14, 15), (16, 17)):
        order[right], order[left] = left, right
    return order


MIRROR_ORDERS = {POINTS: _face_order(), KEYPOINTS: _body_order()}
"""By number of points K, (K,) int64: point i of a mirrored image is point MIRROR_ORDERS[K][i] of the image, with its x
mirrored. Each order is its own inverse.
"""
for _order in MIRROR_ORDERS.values():
    _order.setflags(write=False)
MIRROR_ORDER = MIRROR_ORDERS[POINTS]
