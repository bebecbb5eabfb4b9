"""Whether a result shows the same person as its original, by the face_recognition package where it is installed."""

import numpy as np
from torch import Tensor

from engine.environment import attempt

SKIPPED = "not measured: face_recognition is not installed (pip install face_recognition)"
_SAME_PERSON = 0.6  # the package's own threshold


def identity(results: Tensor, originals: Tensor) -> dict[str, float] | None:
    """Mean distance of the face embeddings, the share of pairs closer than 0.6, and how many pairs had two faces.

    results, originals: (N, 3, R, R) uint8. None where the package is missing.
    """
    package, _ = attempt("face_recognition")
    if package is None:
        return None
    distances = []
    for a, b in zip(results, originals, strict=True):
        embeddings = [_embed(package, image) for image in (a, b)]
        if all(embedding is not None for embedding in embeddings):
            distances.append(float(np.linalg.norm(embeddings[0] - embeddings[1])))
    if not distances:
        return {"pairs": 0.0}
    same = float(np.mean([distance < _SAME_PERSON for distance in distances]))
    return {"distance": float(np.mean(distances)), "same_person": same, "pairs": float(len(distances))}


def _embed(package, image: Tensor) -> np.ndarray | None:
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    # small faces: the detector wants about 80 pixels
    factor = max(1, round(256 / pixels.shape[0]))
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    found = package.face_encodings(pixels)
    return found[0] if found else None
