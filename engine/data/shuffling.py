"""The order of samples, their mirroring and their crop windows: pure functions of (seed, epoch, position).

Samples form an endless stream: epoch 0's permutation, then epoch 1's, and so on. A batch may span two epochs, so every
image is seen exactly once an epoch, nothing is dropped, and a resumed run may use another batch or world size.
"""

from dataclasses import dataclass

import numpy as np

_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Draw:
    """Consecutive samples of the stream.

    indices: (B,) int64, number of the sample; mirror: (B,) bool; offsets: (B, 2) int64, crop window's x and y.
    words:   (B,) uint64, chance for the choice of a sample's further images.
    """

    indices: np.ndarray
    mirror: np.ndarray
    offsets: np.ndarray
    words: np.ndarray


class Order:
    """count samples, shuffled anew each epoch; windows up to `slack` pixels from the corner (0: no choice)."""

    def __init__(self, count: int, seed: int, *, mirror: bool, slack: int) -> None:
        self.count, self.seed, self.mirror, self.slack = count, seed, mirror, slack
        self._epochs: dict[int, Draw] = {}

    def draw(self, start: int, size: int) -> Draw:
        """Samples start .. start + size - 1 of the stream (start counts from the beginning of epoch 0)."""
        parts = []
        while size > 0:
            epoch, position = divmod(start, self.count)
            whole = self._epoch(epoch)
            part = slice(position, min(position + size, self.count))
            parts.append((whole.indices[part], whole.mirror[part], whole.offsets[part], whole.words[part]))
            taken = len(parts[-1][0])
            start, size = start + taken, size - taken
        return Draw(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def forget(self) -> None:
        """Drop what was computed for the seed so far."""
        self._epochs.clear()

    def _epoch(self, epoch: int) -> Draw:
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
            for old in [e for e in self._epochs if abs(e - epoch) > 1]:
                del self._epochs[old]
        return self._epochs[epoch]
