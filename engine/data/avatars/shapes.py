"""The two functions of which every part of the face is made: a smooth step and a soft bump."""

from __future__ import annotations

import numpy as np


def step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, a smooth cubic between; any shape."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def bump(x: np.ndarray, y: np.ndarray, cx: float, cy: float, sx: float, sy: float) -> np.ndarray:
    """Gaussian around (cx, cy) with radii sx, sy: 1 at the centre, 1/e one radius away."""
    return np.exp(-(((x - cx) / sx) ** 2) - ((y - cy) / sy) ** 2)
