"""The order of samples, their mirroring and their crop windows: pure functions of (seed, epoch, position).

Samples form an endless stream: epoch 0's permutation, then epoch 1's, and so on. A batch may span two epochs, so every
image is seen exactly once an epoch, nothing is dropped, and a resumed run may use another batch or world size.
"""

from dataclasses import dataclass

import numpy as np

_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Draw:
    """Consecutive samples of the stream, or the images of such samples.

    indices: (B,) int64, number of each sample (of each image).
    mirror:  (B,) bool, whether it is mirrored.
    offsets: (B, 2) int64, x and y of its crop window in pixels of the stored square.
    words:   (B,) uint64 of random bits, from which the sample's further images are chosen.
    """

    indices: np.ndarray
    mirror: np.ndarray
    offsets: np.ndarray
    words: np.ndarray

    def at(self, places: "slice | np.ndarray") -> "Draw":
        """The samples at these places of the draw."""
        return Draw(self.indices[places], self.mirror[places], self.offsets[places], self.words[places])


class ShuffledStream:
    """Samples 0 to count - 1, shuffled anew each epoch, with crop windows up to `slack` pixels from the corner.

    mirror: whether half of the samples, chosen at random, are mirrored; False: none is.
    slack:  0 leaves the crop window no choice.
    """

    def __init__(self, count: int, seed: int, *, mirror: bool, slack: int) -> None:
        self.count, self.seed, self.mirror, self.slack = count, seed, mirror, slack
        self._epochs: dict[int, Draw] = {}

    def draw(self, start: int, size: int) -> Draw:
        """Samples start .. start + size - 1 of the stream (start counts from the beginning of epoch 0)."""
        parts: list[Draw] = []
        while size > 0:
            epoch, position = divmod(start, self.count)
            parts.append(self._epoch(epoch).at(slice(position, min(position + size, self.count))))
            taken = len(parts[-1].indices)
            start, size = start + taken, size - taken
        return Draw(
            np.concatenate([part.indices for part in parts]),
            np.concatenate([part.mirror for part in parts]),
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.words for part in parts]),
        )

    def reseed(self, seed: int) -> None:
        """Go on with the stream of another seed."""
        self.seed = seed
        self._epochs.clear()

    def _epoch(self, epoch: int) -> Draw:
        """All samples of an epoch; only neighbouring epochs are kept in memory."""
        if epoch not in self._epochs:
            # Philox's raw words are the same in every version of numpy; Generator.permutation promises no such thing
            words = np.random.Philox(key=np.array([self.seed & _WORD, epoch], np.uint64)).random_raw(5 * self.count)
            keys, mirror, x, y, choices = words.reshape(5, self.count)
            self._epochs[epoch] = Draw(
                indices=np.argsort(keys, kind="stable"),
                mirror=(mirror >> np.uint64(63)).astype(bool) & self.mirror,
                offsets=(np.stack([x, y], axis=1) % np.uint64(self.slack + 1)).astype(np.int64),
                words=choices,
            )
            for old in [number for number in self._epochs if abs(number - epoch) > 1]:
                del self._epochs[old]
        return self._epochs[epoch]
