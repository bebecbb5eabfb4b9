"""Names the measures and their units, lays them out as a table and as bars, and measures whole sets of images.

The measures of an evaluation are {set of images: {measure: value}}. A value is a number, {"mean": ..., "std": ...},
another dict of numbers, or a string that says why it was not measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine.evaluation import sliced_wasserstein
from engine.evaluation.likeness import likeness
from engine.inference.faces import FaceFinder

Measures = dict[str, dict[str, Any]]
NO_FACES = "not measured: dlib finds no face to compare"


@dataclass(frozen=True)
class Measure:
    """One line of the table.

    key, part: the place of its number in the measures of a set, measures[key] or measures[key][part]
    label:     its name in the table
    unit:      its unit, and how it is measured
    title:     of its bar chart; None draws no bars
    form:      how the number is printed
    percent:   the number is a share that figures and ablations show in percent
    """

    key: str
    part: str | None
    label: str
    unit: str
    title: str | None = None
    form: str = ".4f"
    percent: bool = False


MEASURES = (
    Measure("l1", "mean", "l1", "mean absolute error with images in [-1, 1], as in the training's losses (0 to 2)",
            "L1 (lower is better)"),
    Measure("psnr", "mean", "psnr", "dB", "PSNR in dB"),
    Measure("ssim", "mean", "ssim", "Gaussian window 11x11, sigma 1.5 (-1 to 1)", "SSIM"),
    Measure("sharpness", None, "sharpness", "mean variance of the Laplacian of grey values, as a share of that of the "
            "photos: 1 is as sharp as they are", "sharpness (photos: 1)", ".3f"),
    Measure("swd", "mean", "swd", "sliced Wasserstein distance to the set it is compared to x 1000, per level of the "
            "Laplacian pyramid", "SWD x 1000 (lower is better)", ".2f"),
    Measure("fid", None, "FID", "Fréchet Inception Distance (torch-fidelity)", "FID (lower is better)", ".2f"),
    Measure("inception_score", "mean", "Inception Score", "1 to 1008 (torch-fidelity), mean and deviation over splits",
            "Inception Score"),
    Measure("detection_rate", None, "faces detected", "share of images in which OpenCV's frontal face cascade finds a "
            "face", "faces detected, %", ".1%", percent=True),
    Measure("identity", "distance", "identity", "dlib's face models: mean distance of the embeddings of result and "
            "original (driven: source), share of pairs closer than 0.6 (same_person), pairs in which both had a face",
            "identity distance (lower is better)"),
    Measure("identity", "same_person", "same person", "", "same person, %", ".1%", percent=True),
    Measure("landmark_error", "percent", "landmark error", "mean distance of the 68 landmarks found in the images from "
            "those wanted, in pixels and in percent of the distance between the outer corners of the eyes",
            "landmark error, % of eye distance", ".2f"),
    Measure("landmark_error", "percent_found", "to the target's", "the same from the landmarks that are found in the "
            "target, in which dlib errs too", "landmarks from the target's, % of eye distance", ".2f"),
    Measure("recognition", "not_detected", "no face (dlib)", "dlib's face models: images without a face, images closer "
            "than 0.6 to a training face (identified), mean and smallest distance to the closest training face, and "
            "images closer to one than every photo of somebody else (copied)", "images without a face (dlib)", ".0f"),
    Measure("recognition", "identified", "identified", "", "identified as a training face", ".0f"),
    Measure("recognition", "closest", "closest person", "", "distance to the closest training face"),
    Measure("recognition", "copied", "copied", "", "closer to a training face than any stranger", ".0f"),
    Measure("nearest", "mean", "nearest training", "root mean square distance to the nearest training image or its "
            "mirror image, with images in [-1, 1]", "distance to the nearest training image"),
)  # fmt: skip
UNITS = {measure.key: measure.unit for measure in reversed(MEASURES)}


def number(measures: Mapping[str, Any], measure: Measure) -> tuple[float, float | None] | None:
    """(value, deviation or None) of a measure of one set of images; None where it was not measured."""
    value = measures.get(measure.key)
    if isinstance(value, Mapping):
        deviation = value.get("std") if measure.part == "mean" else None
        value = value.get(measure.part)
    else:
        deviation = None
    return None if value is None or isinstance(value, str) else (float(value), deviation)


def skipped(measures: Measures) -> list[str]:
    """A line for each reason why measures are missing, of any set: the labels of the measures and the reason."""
    reasons: dict[str, list[str]] = {}
    labels = {measure.key: measure.label for measure in reversed(MEASURES)}
    for of_set in measures.values():
        for key, value in of_set.items():
            why = NO_FACES if isinstance(value, dict) and 0 in (value.get("pairs"), value.get("images")) else value
            if isinstance(why, str) and labels[key] not in reasons.setdefault(why, []):
                reasons[why].append(labels[key])
    return [f"{', '.join(names)}: {why}" for why, names in reasons.items()]


def table(measures: Measures) -> str:
    """The measures for the terminal: a column for each set of images, and below them what was skipped and why."""
    lines = [f"{'':<16}" + "".join(f"{name:>12}" for name in measures)]
    for measure in MEASURES:
        lines += _lines(measures, measure)
    return "\n".join(lines + skipped(measures))


def _lines(measures: Measures, measure: Measure) -> list[str]:
    """The lines of one measure; of the sliced Wasserstein distance, one for each level of the pyramid and the mean."""

    def line(label: str, values: list[float | None]) -> str:
        return f"{label:<16}" + "".join(f"{'' if v is None else format(v, measure.form):>12}" for v in values)

    numbers = [number(values, measure) for values in measures.values()]
    if not any(numbers):
        return []
    lines = [line(measure.label, [value and value[0] for value in numbers])]
    if measure.key == "swd":
        levels = [values.get("swd") if isinstance(values.get("swd"), dict) else {} for values in measures.values()]
        sides = [side for side in max(levels, key=len) if side != "mean"]
        lines = [line(f"swd {side}x{side}", [level.get(side) for level in levels]) for side in sides] + lines
    return lines


def panels(
    measures: Mapping[str, Any], read: Callable[[Any, Measure], tuple[float, float | None] | None] = number
) -> list[dict[str, Any]]:
    """The bar charts of the measures, as `figures.bars` draws them.

    read: what a name has in `measures`, and a measure -> its (value, deviation or None); None where it is missing
    """
    charts = []
    for measure in MEASURES:
        values = {name: read(of_name, measure) for name, of_name in measures.items()}
        scale = 100 if measure.percent else 1
        bars = {
            name: (scale * value[0], None if value[1] is None else scale * value[1])
            for name, value in values.items()
            if value is not None
        }
        if measure.title and bars:
            charts.append({"title": measure.title, "bars": bars})
    return charts


def progress_bar(total: int, what: str, *, shown: bool = True) -> tqdm:
    """A bar over `total` images, labelled `what`; on a terminal only, and not where it is not to be shown."""
    return tqdm(total=total, unit=" images", desc=what, disable=None if shown else True, dynamic_ncols=True)


# measures of whole sets


def compare(results: Tensor, wanted: Tensor) -> dict[str, dict[str, float | None]]:
    """Mean and deviation of L1, PSNR and SSIM over the pairs of images; results, wanted: (N, C, R, R) uint8.

    The PSNR of equal images is infinite: these pairs are counted as "equal" and left out of the mean, which is None
    when all pairs are equal.
    """
    measures: dict[str, dict[str, float | None]] = {}
    for key, values in likeness(results, wanted).items():
        finite = values[values.isfinite()]
        some = len(finite) > 0
        measures[key] = {
            "mean": float(finite.mean()) if some else None,
            "std": float(finite.std(correction=0)) if some else None,
        }
        if len(finite) < len(values):
            measures[key]["equal"] = float(len(values) - len(finite))
    return measures


def spread(images: Tensor, count: int) -> Tensor:
    """`count` images spread evenly over the set."""
    return images[torch.arange(count) * len(images) // count]


def distribution_distance(results: Tensor, reals: Tensor, seed: int) -> dict[str, float]:
    """The sliced Wasserstein distance of two sets (N, C, R, R) uint8; the larger one is thinned to equal size."""
    count = min(len(results), len(reals))
    return sliced_wasserstein.distance(spread(results, count), spread(reals, count), seed=seed)


def detection_rates(sets: Mapping[str, Tensor], finder: FaceFinder, *, progress: bool = True) -> dict[str, float]:
    """Name of a set -> share of its images (N, C, R, R) uint8 in which the cascade finds a face."""
    rates = {}
    total = sum(map(len, sets.values()))
    with progress_bar(total, "finding faces", shown=progress) as bar:
        for name, images in sets.items():
            hits = 0
            for image in images:
                hits += bool(finder.boxes(np.ascontiguousarray(image.permute(1, 2, 0).numpy()).squeeze()))
                bar.update()
            rates[name] = hits / len(images)
    return rates
