"""Finds frontal faces with the Haar cascade that OpenCV brings (opencv-python-headless below 5); downloads nothing."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.host import atomic_files
from engine.host.environment import attempt
from engine.host.reading import read_json
from engine.inference.pictures import Box

_WORKING_SIDE = 640
_FEWEST = 8  # a framing is measured on at least so many faces


@dataclass(frozen=True)
class Framing:
    """Where the cascade finds the face in a square picture; the defaults are those of an aligned portrait.

    share: width of the face's box, as a share of the picture's side
    x, y:  centre of the box, as shares of the picture's side
    """

    share: float = 0.70
    x: float = 0.50
    y: float = 0.48

    FILE = "framing.json"

    def write(self, run_dir: Path) -> None:
        """Save the framing in a run folder, for `kiln refine --face-crop`. Raises OSError."""
        atomic_files.write_text(run_dir / self.FILE, json.dumps(dataclasses.asdict(self)))

    @classmethod
    def of(cls, model: Path) -> "Framing":
        """The framing of the photos that a run (or a checkpoint) was trained on; the default when none was kept.

        Raises InputError for a file that is damaged.
        """
        for folder in (model, model.parent.parent):
            if (folder / cls.FILE).exists():
                return cls._read(folder / cls.FILE)
        return cls()

    @classmethod
    def _read(cls, file: Path) -> "Framing":
        """The framing in a file. Raises InputError for anything else than shares that a face can have."""
        saved = read_json(file)
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(saved, dict) or sorted(saved) != sorted(names):
            raise InputError(f"{file} is damaged: it needs {', '.join(names)}, and nothing else")
        for name, value in saved.items():
            if type(value) not in (int, float) or not (0.01 if name == "share" else 0) <= value <= 1:
                raise InputError(f"{file} is damaged: {name} is {str(value)[:40]}, not a share of the picture")
        return cls(**saved)

    @classmethod
    def measure(cls, pictures: np.ndarray) -> "Framing | None":
        """The median framing of square pictures (N, R, R, 3) uint8; None without OpenCV and for fewer than 8 faces."""
        try:
            finder = FaceFinder()
        except InputError:
            return None
        faces = [(boxes[0], len(p)) for p in pictures if (boxes := finder.boxes(p))]
        if len(faces) < _FEWEST:
            return None
        framings = [((r - l) / n, (l + r) / 2 / n, (t + b) / 2 / n) for (l, t, r, b), n in faces]  # noqa: E741
        return cls(*(round(float(value), 4) for value in np.median(framings, 0)))

    def zoomed(self, factor: float) -> "Framing":
        """The framing of the pictures' middle, whose side is so many times smaller."""
        return Framing(self.share * factor, 0.5 + (self.x - 0.5) * factor, 0.5 + (self.y - 0.5) * factor)


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
        """The box (left, top, right, bottom) of each face in pixels (H, W) or (H, W, 3) uint8, the largest first.

        The image is first brought to a working size, with a longer side of 128 to 640 pixels, because the cascade's
        smallest face is 24 pixels wide.
        """
        cv2: Any = self._cv2
        grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        longest = max(grey.shape)
        scale = _WORKING_SIDE / longest if longest > _WORKING_SIDE else max(1.0, 128 / longest)
        if scale != 1:
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=method)
        faces = self._cascade.detectMultiScale(grey, scaleFactor=1.05, minNeighbors=4, minSize=(24, 24))
        boxes = [tuple(round(v / scale) for v in (x, y, x + w, y + h)) for x, y, w, h in faces]
        return sorted(boxes, key=lambda box: box[0] - box[2])

    def portrait(self, pixels: np.ndarray, framing: Framing) -> Box | None:
        """The square that gives the largest face this framing; it may reach beyond the image. None without a face."""
        boxes = self.boxes(pixels)
        if not boxes:
            return None
        left, top, right, bottom = boxes[0]
        side = round((right - left) / framing.share)
        x = round((left + right) / 2 - framing.x * side)
        y = round((top + bottom) / 2 - framing.y * side)
        return x, y, x + side, y + side
