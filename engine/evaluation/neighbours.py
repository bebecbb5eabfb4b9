"""Finds the nearest images of a set, which shows whether a generator has memorised its training images."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.data.pixel_values import from_uint8


@dataclass(frozen=True)
class Nearest:
    """The nearest image of a set for each of N queries.

    index:    (N,) int64, its number in the set
    mirrored: (N,) bool, whether its mirror image is the nearest
    distance: (N,) float32, the root mean square difference over pixels and channels, with images in [-1, 1]
    images:   (N, C, R, R) uint8, the nearest images, mirrored where the mirror image is nearer
    """

    index: Tensor
    mirrored: Tensor
    distance: Tensor
    images: Tensor


def nearest(queries: Tensor, chunks: Iterable[Tensor], *, leave_out: Tensor | None = None) -> Nearest:
    """The nearest image, or mirror image, of a set for every query.

    queries:   (N, C, R, R) uint8
    chunks:    the set in order, in pieces (M, C, R, R) uint8
    leave_out: (N,) int64, for each query the number of an image that does not count (the query itself), or None
    Raises ValueError for an empty set.
    """
    flat = _flat(queries)
    rows = torch.arange(len(queries))
    best = torch.full((len(queries),), float("inf"))
    index, mirrored = torch.zeros(len(queries), dtype=torch.int64), torch.zeros(len(queries), dtype=torch.bool)
    nearest_images, start = torch.zeros_like(queries), 0
    for chunk in chunks:
        for flipped in (False, True):
            images = chunk.flip(3) if flipped else chunk
            squared = _squared_distances(flat, _flat(images))
            if leave_out is not None:
                inside = (leave_out >= start) & (leave_out < start + len(chunk))
                squared[rows[inside], leave_out[inside] - start] = float("inf")
            values, places = squared.min(1)
            better = values < best
            best[better], index[better] = values[better], start + places[better]
            mirrored[better], nearest_images[better] = flipped, images[places[better]]
        start += len(chunk)
    if not start:
        raise ValueError("the set is empty")
    return Nearest(index, mirrored, best.sqrt() / queries[0].numel() ** 0.5, nearest_images)


def _flat(images: Tensor) -> Tensor:
    """(N, C, R, R) uint8 -> (N, C * R * R) float32 in [-1, 1]."""
    return from_uint8(images.flatten(1))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """The squared distances (N, M) of the rows of a (N, D) and b (M, D).

    Rounding can make the distance of equal rows slightly negative, which is cut to 0; cdist's exact way is slow.
    """
    squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)
    return squared.clamp_min(0)
