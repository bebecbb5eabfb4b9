"""The nearest images of a set, so that a generator that memorises its training images shows."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.data.pixel_values import from_uint8


@dataclass(frozen=True)
class Nearest:
    """Of each query: the nearest image's number in the set, (N,) int64, whether mirrored, and how far, (N,) float32.

    The distance is the root mean square over pixels and channels, with images in [-1, 1].
    """

    index: Tensor
    mirrored: Tensor
    distance: Tensor
    images: Tensor  # (N, C, R, R) uint8, as they look best (mirrored where that is nearer)


def nearest(queries: Tensor, chunks: Iterable[Tensor], *, leave_out: Tensor | None = None) -> Nearest:
    """The nearest image of a set, or mirror image of one, for every query.

    queries:   (N, C, R, R) uint8.
    chunks:    the set in order, in pieces (M, C, R, R) uint8.
    leave_out: (N,) the number of an image that is not the query's neighbour (itself), or None.
    Raises ValueError for an empty set.
    """
    flat = _flat(queries)
    rows = torch.arange(len(queries))
    best = torch.full((len(queries),), float("inf"))
    index, mirrored = torch.zeros(len(queries), dtype=torch.int64), torch.zeros(len(queries), dtype=torch.bool)
    kept, start = torch.zeros_like(queries), 0
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
            mirrored[better], kept[better] = flipped, images[places[better]]
        start += len(chunk)
    if not start:
        raise ValueError("the set is empty")
    return Nearest(index, mirrored, best.sqrt() / queries[0].numel() ** 0.5, kept)


def _flat(images: Tensor) -> Tensor:
    """(N, C, R, R) uint8 -> (N, C * R * R) float32 in [-1, 1]."""
    return from_uint8(images.flatten(1))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, D), (M, D) -> (N, M); exact zeros for equal rows would need cdist's slow way, so tiny negatives are cut."""
    squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)
    return squared.clamp_min(0)
