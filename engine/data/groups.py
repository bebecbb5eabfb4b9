"""Which images make a sample: one alone, a pair from a list, or frames of one clip."""

from typing import Protocol

import numpy as np

from engine.data.dataset import ImageSet
from engine.errors import InputError

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: its multiples are spread evenly over the 64-bit words


class Groups(Protocol):
    """`count` samples of `members` images each."""

    count: int
    members: int

    def __call__(self, samples: np.ndarray, words: np.ndarray) -> np.ndarray:
        """The images of samples.

        samples: (B,) int64 below count.
        words:   (B,) uint64 of random bits, which choose what the sample's number leaves open.
        returns: (members, B) int64, positions in the image set.
        """


class Singles:
    """Every image is a sample."""

    members = 1

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, samples: np.ndarray, words: np.ndarray) -> np.ndarray:
        return samples[None]


class Pairs:
    """Every row of a table (P, 2) is a sample: source and target."""

    members = 2

    def __init__(self, pairs: np.ndarray) -> None:
        self._pairs = pairs
        self.count = len(pairs)

    def __call__(self, samples: np.ndarray, words: np.ndarray) -> np.ndarray:
        return self._pairs[samples].T


class Clips:
    """Every frame is the first image of one sample an epoch; the sample's other images are other frames of its clip.

    clips: (N,) clip number of each image. Every clip has at least `members` frames; those of a sample all differ.
    """

    def __init__(self, clips: np.ndarray, members: int) -> None:
        self.count, self.members = len(clips), members
        self._by_clip = np.argsort(clips, kind="stable")
        _, clip, lengths = np.unique(clips, return_inverse=True, return_counts=True)
        self._start = np.concatenate([[0], np.cumsum(lengths)[:-1]])[clip]
        self._length = lengths[clip]
        self._place = np.empty(len(clips), np.int64)
        self._place[self._by_clip] = np.arange(len(clips))
        self._place -= self._start

    def __call__(self, samples: np.ndarray, words: np.ndarray) -> np.ndarray:
        start, length = self._start[samples], self._length[samples]
        chosen = [self._place[samples]]
        for taken in range(1, self.members):
            words, place = np.divmod(words, (length - taken).astype(np.uint64))
            place = place.astype(np.int64)
            # `place` counts only the frames that are left: step over those taken, in ascending order
            for earlier in np.sort(np.stack(chosen), axis=0):
                place += place >= earlier
            chosen.append(place)
        return self._by_clip[start + np.stack(chosen)]


def group_images(images: ImageSet, members: int) -> Groups:
    """The samples of a set, of `members` images each.

    Raises InputError when the set has neither the pairs nor the clips that `members` needs.
    """
    if members == 1:
        return Singles(len(images))
    if members == 2 and images.pairs is not None:
        return Pairs(images.pairs)
    if images.clips is None or (images.clips < 0).any():
        raise InputError(f"{images.root} has no {'pairs or ' * (members == 2)}clips; give a data set that has them")
    return Clips(images.clips, members)


def fixed_words(count: int) -> np.ndarray:
    """(count,) uint64 for samples that are the same on every call."""
    return np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
