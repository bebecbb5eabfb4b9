"""Which images make a sample: one alone, a pair from a list, or frames of one clip."""

from typing import Protocol

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: its multiples are spread evenly over the words


class Groups(Protocol):
    """count samples of `members` images each."""

    count: int
    members: int

    def __call__(self, samples: np.ndarray, words: np.ndarray) -> np.ndarray:
        """samples (B,) int64 below count, words (B,) uint64 that decide what is left to chance.

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
    """The rows of a table (P, 2): source and target."""

    members = 2

    def __init__(self, pairs: np.ndarray) -> None:
        self._pairs = pairs
        self.count = len(pairs)

    def __call__(self, samples: np.ndarray, words: np.ndarray) -> np.ndarray:
        return self._pairs[samples].T


class Clips:
    """Every frame once an epoch as the first of a sample, with other frames of its clip, all different.

    clips: (N,) clip number of each image, each with at least `members` frames.
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
            # count only the frames that are left: step over those taken, in ascending order
            for earlier in np.sort(np.stack(chosen), axis=0):
                place += place >= earlier
            chosen.append(place)
        return self._by_clip[start + np.stack(chosen)]


def fixed_words(count: int) -> np.ndarray:
    """(count,) uint64 for samples that are the same on every call."""
    return np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
