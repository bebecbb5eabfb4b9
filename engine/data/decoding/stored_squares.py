"""Where a stored square lies in its file: the central square of the pixels, resized to `stored` pixels a side.

Pixel coordinates: 0 is the centre of the first pixel, in files and in batches.
"""

import numpy as np

from engine.errors import InputError

RESOLUTIONS = (16, 32, 64, 128, 256)
# how EXIF counts orientations: to show an image, exchange rows and columns from 5 on, then mirror along x, along y
FIRST_SIDEWAYS = 5
MIRRORED_X, MIRRORED_Y = (2, 3, 6, 7), (3, 4, 7, 8)


def check_resolution(resolution: int, channels: int) -> None:
    """Raises InputError unless resolution = 8 * 2^k from 16 to 256 and channels is 1 or 3."""
    if resolution not in RESOLUTIONS:
        raise InputError(
            f"resolution {resolution} is not a power-of-two multiple of 8 from 16 to 256: "
            f"take one of {', '.join(map(str, RESOLUTIONS))}"
        )
    if channels not in (1, 3):
        raise InputError(f"channels {channels} is neither 1 (grey) nor 3 (colour)")


def stored_size(resolution: int, crop: str) -> int:
    """Side in pixels of the squares that DALI makes: R, or R + R/8 where random R x R windows are cut from them.

    resolution: R. crop: "center" or "random"; raises InputError for anything else.
    """
    if crop not in ("center", "random"):
        raise InputError(f"crop {crop!r} is neither 'center' nor 'random'")
    return resolution + resolution // 8 if crop == "random" else resolution


def central_square(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The central square of each file.

    sizes:   (N, 2) int, width and height in pixels.
    returns: corners (N, 2) int, x and y (rounded down), and sides (N,) int.
    """
    sides = sizes.min(axis=1)
    return (sizes - sides[:, None]) // 2, sides


def corners_in_file(corners: np.ndarray, sides: np.ndarray, sizes: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """Where the squares of displayed images lie among the pixels of their files, which may be stored turned.

    corners:      (N, 2) int, x and y, and sides: (N,) int, of the squares, in pixels as displayed.
    sizes:        (N, 2) int, width and height as displayed.
    orientations: (N,) int, 1 to 8, as EXIF counts.
    returns:      (N, 2) int, x and y in pixels of the files.
    """
    mirrored = np.stack([np.isin(orientations, MIRRORED_X), np.isin(orientations, MIRRORED_Y)], axis=1)
    turned = np.where(mirrored, sizes - sides[:, None] - corners, corners)
    return np.where((orientations >= FIRST_SIDEWAYS)[:, None], turned[:, ::-1], turned)


def unlike_displayed(points: np.ndarray, size: tuple[int, int], orientation: int) -> str:
    """Why landmarks cannot be those of an image as it is displayed; "" where they can.

    points:      (K, 2), x and y in pixels; NaN is a missing point.
    size:        width and height as displayed. orientation: 1 to 8, as EXIF counts.
    Landmarks that lie inside the image only as its file stores it were found before it was turned.
    """
    known = points[np.isfinite(points).all(axis=1)]

    def inside(sides: tuple[int, int]) -> bool:
        return bool(((known >= -0.5) & (known <= np.array(sides) - 0.5)).all())

    if orientation < FIRST_SIDEWAYS or inside(size) or not inside(size[::-1]):
        return ""
    width, height = size
    return (
        f"its landmarks fit the {height}x{width} pixels of the file, not the {width}x{height} displayed (orientation "
        f"{orientation}): give them in pixels as displayed"
    )


def place_landmarks(landmarks: np.ndarray, sizes: np.ndarray, stored: int) -> np.ndarray:
    """Landmarks of the files as landmarks of the stored squares; points outside a square stay outside of it.

    landmarks: (N, K, 2) in pixels of the files.
    sizes:     (N, 2) int, width and height in pixels of the files.
    stored:    side in pixels of the squares.
    returns:   (N, K, 2) float32 in pixels of the squares.
    """
    corners, sides = central_square(sizes)
    scale = (stored / sides)[:, None, None]
    return ((landmarks - corners[:, None, :] + 0.5) * scale - 0.5).astype(np.float32)
