"""Measures identity and landmark errors with the face_recognition package, where it is installed."""

from collections.abc import Iterable
from types import ModuleType

import numpy as np
from torch import Tensor

from engine.host.environment import attempt

SKIPPED = "not measured: face_recognition is not installed (pip install face_recognition)"
SAME_PERSON = 0.6  # the package's own threshold
_WORKING_SIDE = 256  # images are enlarged to about this side, because the detector needs faces of about 80 pixels

# face_recognition gives the 68 points by part, and some of them twice: part -> places of its points in the iBUG order
_PARTS = {
    "chin": range(17),
    "left_eyebrow": range(17, 22),
    "right_eyebrow": range(22, 27),
    "nose_bridge": range(27, 31),
    "nose_tip": range(31, 36),
    "left_eye": range(36, 42),
    "right_eye": range(42, 48),
    "top_lip": (48, 49, 50, 51, 52, 53, 54, 64, 63, 62, 61, 60),
    "bottom_lip": (54, 55, 56, 57, 58, 59, 48, 60, 67, 66, 65, 64),
}
_OUTER_EYES = (36, 45)


def package() -> ModuleType | None:
    """The module face_recognition, or None where it is not installed."""
    return attempt("face_recognition")[0]


def identity(results: Tensor, originals: Tensor) -> dict[str, float] | None:
    """How alike the faces of results and originals are, pair by pair; None where face_recognition is missing.

    results, originals: (N, C, R, R) uint8
    Returns "distance", the mean distance of the face embeddings, "same_person", the share of pairs closer than 0.6, and
    "pairs", the number of pairs in which both images have a face; only "pairs" when there is none.
    """
    module = package()
    if module is None:
        return None
    distances = []
    for a, b in zip(results, originals, strict=True):
        embeddings = [_embed(module, image) for image in (a, b)]
        if all(embedding is not None for embedding in embeddings):
            distances.append(float(np.linalg.norm(embeddings[0] - embeddings[1])))
    if not distances:
        return {"pairs": 0.0}
    same = float(np.mean([distance < SAME_PERSON for distance in distances]))
    return {"distance": float(np.mean(distances)), "same_person": same, "pairs": float(len(distances))}


def recognition(generated: Tensor, training: Iterable[Tensor]) -> dict[str, int] | None:
    """How many generated images show no face or a person of the training set; None where face_recognition is missing.

    generated: (N, C, R, R) uint8; training: the training images in such pieces
    Returns "images", "not_detected" (images without a face), "identified" (images closer than 0.6 to a training face)
    and "training_faces". Source: the face generator's paper, section 4 (1,000 images).
    """
    module = package()
    if module is None:
        return None
    faces = [face for image in generated if (face := _embed(module, image)) is not None]
    identified = np.zeros(len(faces), bool)
    known = 0
    for images in training:
        people = [face for image in images if (face := _embed(module, image)) is not None]
        known += len(people)
        if people and faces:
            between = np.linalg.norm(np.stack(faces)[:, None] - np.stack(people), axis=2)
            identified |= (between < SAME_PERSON).any(1)
    return {
        "images": len(generated),
        "not_detected": len(generated) - len(faces),
        "identified": int(identified.sum()),
        "training_faces": known,
    }


def landmark_error(results: Tensor, points: Tensor) -> dict[str, float] | None:
    """How far the landmarks in the results lie from the wanted points; None where face_recognition is missing.

    results: (N, C, R, R) uint8; points: (N, 68, 2) x, y in pixels of R (NaN is an unknown point)
    Returns "pixels", the mean distance, "percent", the same in percent of the distance between the outer corners of the
    eyes in `points`, and "images", the number of results with a face; only "images" when there is none.
    """
    module = package()
    if module is None:
        return None
    pixels, percent = [], []
    for image, wanted in zip(results, points.double().numpy(), strict=True):
        detected = _landmarks(module, image)
        if detected is None or not np.isfinite(wanted[list(_OUTER_EYES)]).all():
            continue
        error = float(np.nanmean(np.linalg.norm(detected - wanted, axis=1)))
        pixels.append(error)
        percent.append(100 * error / float(np.linalg.norm(wanted[_OUTER_EYES[0]] - wanted[_OUTER_EYES[1]])))
    if not pixels:
        return {"images": 0.0}
    return {"pixels": float(np.mean(pixels)), "percent": float(np.mean(percent)), "images": float(len(pixels))}


def _enlarged(image: Tensor) -> tuple[np.ndarray, int]:
    """An image (C, R, R) uint8 as (S, S, 3) uint8, with pixels repeated by a whole factor, and that factor."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    factor = max(1, round(_WORKING_SIDE / pixels.shape[0]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1), factor


def _embed(module: ModuleType, image: Tensor) -> np.ndarray | None:
    """The embedding (128,) of the first face, or None without a face."""
    embeddings = module.face_encodings(_enlarged(image)[0])
    return embeddings[0] if embeddings else None


def _landmarks(module: ModuleType, image: Tensor) -> np.ndarray | None:
    """The landmarks (68, 2) of the first face in pixels of the image, or None without a face."""
    pixels, factor = _enlarged(image)
    faces = module.face_landmarks(pixels)
    if not faces:
        return None
    points = np.empty((68, 2))
    for part, places in _PARTS.items():
        points[list(places)] = faces[0][part]
    return (points + 0.5) / factor - 0.5
