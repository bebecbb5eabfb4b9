"""Colours of skin, hair, eyes and cloth, and how they become linear light."""

from __future__ import annotations

import numpy as np

# sRGB anchors of human skin, from lightest to darkest
SKIN = np.array(
    [
        (246, 219, 203),
        (238, 202, 178),
        (226, 181, 150),
        (206, 156, 120),
        (178, 124, 88),
        (140, 92, 64),
        (102, 66, 46),
        (72, 47, 36),
    ]
)
HAIR = {  # sRGB
    "black": (22, 18, 17),
    "dark brown": (48, 32, 24),
    "brown": (84, 56, 38),
    "light brown": (128, 92, 60),
    "blond": (190, 154, 98),
    "platinum": (222, 202, 160),
    "red": (140, 66, 30),
    "grey": (138, 136, 134),
    "white": (214, 212, 208),
    "dyed": (120, 40, 90),
}
IRIS = ((62, 38, 22), (92, 58, 30), (120, 84, 42), (104, 108, 62), (94, 124, 108), (92, 128, 160), (124, 142, 154))
CLOTH = (
    (28, 30, 38),
    (44, 58, 92),
    (96, 28, 36),
    (36, 84, 66),
    (150, 150, 152),
    (226, 224, 218),
    (196, 168, 120),
    (188, 92, 70),
    (82, 72, 110),
    (60, 110, 150),
    (210, 180, 60),
    (120, 60, 90),
    (70, 70, 60),
    (16, 16, 18),
)


def linear(srgb) -> np.ndarray:
    """sRGB bytes (..., 3) to linear light in [0, 1], float32."""
    c = np.asarray(srgb, np.float64) / 255.0
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4).astype(np.float32)


def hsv(h: float, s: float, v: float) -> np.ndarray:
    """Hue (any number; whole ones are red), saturation and value in [0, 1] -> sRGB (3,), 0 to 255."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * (h % 1.0)) % 6
    return 255 * (v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1))
