"""Frontal faces by OpenCV's bundled Haar cascade (opencv-python-headless below 5; nothing is downloaded)."""

from typing import Any

import numpy as np

from engine.environment import attempt
from engine.errors import InputError
from engine.pictures import Box

# the cascade's box in an aligned portrait (medians over 360 faces of four sources): share of the side, centre
_SHARE, _CENTRE_X, _CENTRE_Y = 0.70, 0.50, 0.46
_WORKING_SIDE = 640


class FaceFinder:
    """Finds frontal faces. Raises InputError when OpenCV or its cascade is missing."""

    def __init__(self) -> None:
        self._cv2, problem = attempt("cv2")
        if self._cv2 is None:
            raise InputError(
                f"finding faces needs OpenCV, which is not usable here ({problem}): pip install kiln-engine[eval]"
            )
        folder = getattr(getattr(self._cv2, "data", None), "haarcascades", None)
        if folder is None or not hasattr(self._cv2, "CascadeClassifier"):
            raise InputError(
                "this OpenCV has no Haar cascades any more: pip install 'opencv-python-headless<5' (kiln-engine[eval])"
            )
        self._cascade = self._cv2.CascadeClassifier(folder + "haarcascade_frontalface_default.xml")

    def boxes(self, pixels: np.ndarray) -> list[Box]:
        """pixels (H, W) or (H, W, 3) uint8 -> left, top, right, bottom of each face, largest first.

        The image is brought to a working size first: the cascade's smallest face is 24 pixels wide.
        """
        cv2: Any = self._cv2
        grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        longest = max(grey.shape)
        scale = _WORKING_SIDE / longest if longest > _WORKING_SIDE else max(1.0, 128 / longest)
        if scale != 1:
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=method)
        found = self._cascade.detectMultiScale(grey, scaleFactor=1.05, minNeighbors=4, minSize=(24, 24))
        boxes = [tuple(round(v / scale) for v in (x, y, x + w, y + h)) for x, y, w, h in found]
        return sorted(boxes, key=lambda box: box[0] - box[2])

    def portrait(self, pixels: np.ndarray) -> Box | None:
        """The square around the largest face, framed as an aligned portrait, inside the image; None without a face."""
        boxes = self.boxes(pixels)
        if not boxes:
            return None
        left, top, right, bottom = boxes[0]
        height, width = pixels.shape[:2]
        side = min(round((right - left) / _SHARE), width, height)
        x = round((left + right) / 2 - _CENTRE_X * side)
        y = round((top + bottom) / 2 - _CENTRE_Y * side)
        x, y = min(max(x, 0), width - side), min(max(y, 0), height - side)
        return x, y, x + side, y + side
