"""Measures identity, recognition and landmark errors with dlib's face models, where they are installed.

The models are those of the package face_recognition, which the papers name: the HOG detector, the landmarks, and the
embedding in which two pictures of a person are closer than 0.6. They are read without that package, because it asks pip
for a dlib that has to be compiled, and ends the process where a part of it is missing.
"""

import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from engine.host.environment import attempt

SKIPPED = "not measured: dlib's face models are not installed (pip install 'kiln-engine[identity]')"
SAME_PERSON = 0.6  # face_recognition's own threshold
_WORKING_SIDE = 256  # images are enlarged to about this side, because the detector needs faces of about 80 pixels
_OUTER_EYES = (36, 45)


class Recogniser:
    """dlib's models. Images are (C, R, R) uint8; of several faces the largest counts.

    dlib:   the module
    folder: the folder of the models' files
    """

    def __init__(self, dlib: Any, folder: Path):
        self._detect = dlib.get_frontal_face_detector()
        self._five = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
        self._all = dlib.shape_predictor(str(folder / "shape_predictor_68_face_landmarks.dat"))
        self._network = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))

    def embed(self, image: Tensor) -> np.ndarray | None:
        """The embedding (128,) of the face; None without a face."""
        pixels, _ = _enlarged(image)
        face = self._face(pixels)
        return (
            None if face is None else np.array(self._network.compute_face_descriptor(pixels, self._five(pixels, face)))
        )

    def landmarks(self, image: Tensor) -> np.ndarray | None:
        """The landmarks (68, 2) of the face, x and y in pixels of the image; None without a face."""
        pixels, factor = _enlarged(image)
        face = self._face(pixels)
        if face is None:
            return None
        points = np.array([(point.x, point.y) for point in self._all(pixels, face).parts()], np.float64)
        return (points + 0.5) / factor - 0.5

    def _face(self, pixels: np.ndarray) -> Any:
        """The rectangle of the largest face; None without a face."""
        return max(self._detect(pixels, 0), key=lambda box: box.area(), default=None)


@cache
def recogniser() -> Recogniser | None:
    """The models, or None where they are not installed."""
    dlib, _ = attempt("dlib")
    found = importlib.util.find_spec("face_recognition_models")
    if dlib is None or found is None or found.origin is None:
        return None
    return Recogniser(dlib, Path(found.origin).parent / "models")


def identity(results: Tensor, originals: Tensor) -> dict[str, float] | None:
    """How alike the faces of results and originals are, pair by pair; None where the models are missing.

    results, originals: (N, C, R, R) uint8
    Returns "distance", the mean distance of the face embeddings, "same_person", the share of pairs closer than 0.6, and
    "pairs", the number of pairs in which both images have a face; only "pairs" when there is none.
    """
    models = recogniser()
    if models is None:
        return None
    distances = []
    for a, b in zip(results, originals, strict=True):
        embeddings = [models.embed(image) for image in (a, b)]
        if all(embedding is not None for embedding in embeddings):
            distances.append(float(np.linalg.norm(embeddings[0] - embeddings[1])))
    if not distances:
        return {"pairs": 0.0}
    same = float(np.mean([distance < SAME_PERSON for distance in distances]))
    return {"distance": float(np.mean(distances)), "same_person": same, "pairs": float(len(distances))}


def recognition(
    generated: Tensor, training: Iterable[Tensor], strangers: Tensor | None = None
) -> dict[str, dict[str, float]] | None:
    """How many generated images show no face or a person of the training set; None where the models are missing.

    Among a thousand photos almost every stranger has somebody closer than 0.6, so photos of people who are not in the
    training set say what is to be expected of an image that copies nobody.

    generated: (N, C, R, R) uint8; training: the training images in such pieces
    strangers: (M, C, R, R) uint8, photos of other people
    Returns for "generated", and for "strangers" if there are some, "images", "not_detected" (images without a face),
    "identified" (images closer than 0.6 to a training face), "closest" and "least" (the mean and the smallest distance
    to the closest training face; both only if there are faces), and "training_faces". For "generated" also "copied",
    the images that are closer to a training face than every stranger. Source: the face generator's paper, section 4
    (1,000 images).
    """
    models = recogniser()
    if models is None:
        return None
    sets = {"generated": generated} | ({} if strangers is None else {"strangers": strangers})
    faces = {name: _faces(models, images) for name, images in sets.items()}
    closest = {name: np.full(len(found), np.inf) for name, found in faces.items()}
    known = 0
    for images in training:
        people = _faces(models, images)
        known += len(people)
        for name, found in faces.items():
            if len(people) and len(found):
                between = np.linalg.norm(found[:, None] - people, axis=2).min(1)
                closest[name] = np.minimum(closest[name], between)
    measured: dict[str, dict[str, float]] = {}
    for name, distances in closest.items():
        measured[name] = {
            "images": len(sets[name]),
            "not_detected": len(sets[name]) - len(distances),
            "identified": int((distances < SAME_PERSON).sum()),
            "training_faces": known,
        }
        if known and len(distances):
            measured[name] |= {"closest": float(distances.mean()), "least": float(distances.min())}
    if "least" in measured.get("strangers", {}):
        measured["generated"]["copied"] = int((closest["generated"] < measured["strangers"]["least"]).sum())
    return measured


def _faces(models: Recogniser, images: Tensor) -> np.ndarray:
    """The embeddings (F, 128) of the images that have a face."""
    found = [face for image in images if (face := models.embed(image)) is not None]
    return np.stack(found) if found else np.empty((0, 128))


def landmark_error(results: Tensor, points: Tensor, targets: Tensor | None = None) -> dict[str, float] | None:
    """How far the landmarks in the results lie from the wanted points; None where the models are missing.

    results: (N, C, R, R) uint8; points: (N, 68, 2) x, y in pixels of R (NaN is an unknown point)
    targets: (N, C, R, R) uint8, the images that have these points: dlib errs in them too, and a second measure leaves
             that out
    Returns "pixels", the mean distance, "percent", the same in percent of the distance between the outer corners of the
    eyes in `points`, "images", the number of results with a face, and "percent_found", in the same unit, how far the
    landmarks lie from those that dlib finds in the targets; only "images" when there is none.
    """
    models = recogniser()
    if models is None:
        return None
    pixels, percent, found = [], [], []
    for number, (image, wanted) in enumerate(zip(results, points.double().numpy(), strict=True)):
        detected = models.landmarks(image)
        if detected is None or not np.isfinite(wanted[list(_OUTER_EYES)]).all():
            continue
        eyes = float(np.linalg.norm(wanted[_OUTER_EYES[0]] - wanted[_OUTER_EYES[1]]))
        pixels.append(_distance(detected, wanted))
        percent.append(100 * pixels[-1] / eyes)
        if targets is not None and (there := models.landmarks(targets[number])) is not None:
            found.append(100 * _distance(detected, there) / eyes)
    if not pixels:
        return {"images": 0.0}
    measured = {"pixels": float(np.mean(pixels)), "percent": float(np.mean(percent)), "images": float(len(pixels))}
    return measured | ({"percent_found": float(np.mean(found))} if found else {})


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The mean distance of points (68, 2), those left out that are NaN."""
    return float(np.nanmean(np.linalg.norm(a - b, axis=1)))


def _enlarged(image: Tensor) -> tuple[np.ndarray, int]:
    """An image (C, R, R) uint8 as (S, S, 3) uint8, with pixels repeated by a whole factor, and that factor."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    factor = max(1, round(_WORKING_SIDE / pixels.shape[0]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1), factor
