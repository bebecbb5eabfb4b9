"""The order of samples: exact, complete, disjoint between ranks, the same for ever."""

import numpy as np
import pytest

from engine.data.landmarks import MIRROR_ORDER
from engine.data.shuffling import ShuffledStream

STREAM = {
    "indices": [0, 1, 4, 0, 5, 3],
    "mirror": [False, False, True, False, True, True],
    "offsets": [[3, 4], [8, 7], [4, 0], [6, 0], [6, 8], [1, 2]],
}


def test_every_epoch_is_another_permutation() -> None:
    stream = ShuffledStream(23, seed=5, mirror=True, slack=4)
    epochs = [stream.draw(23 * epoch, 23).indices for epoch in range(4)]
    for indices in epochs:
        assert sorted(indices) == list(range(23))
    assert len({tuple(indices) for indices in epochs}) == 4
    assert not np.array_equal(epochs[0], ShuffledStream(23, seed=6, mirror=True, slack=4).draw(0, 23).indices)


def test_the_stream_never_changes() -> None:
    """Resuming under another version of numpy or Kiln needs these very numbers."""
    draw = ShuffledStream(6, seed=1, mirror=True, slack=8).draw(3, 6)
    assert draw.indices.tolist() == STREAM["indices"]
    assert draw.mirror.tolist() == STREAM["mirror"]
    assert draw.offsets.tolist() == STREAM["offsets"]


def test_a_draw_is_a_window_of_the_stream() -> None:
    stream = ShuffledStream(7, seed=3, mirror=True, slack=2)
    whole = stream.draw(0, 70)
    for start, size in ((0, 1), (5, 4), (13, 15), (6, 64), (60, 3), (2, 3)):
        part = stream.draw(start, size)
        for name in ("indices", "mirror", "offsets"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[start : start + size])


@pytest.mark.parametrize("seed", [-1, 0, 2**63, 2**64 - 1])
def test_any_seed(seed: int) -> None:
    assert sorted(ShuffledStream(9, seed=seed, mirror=False, slack=0).draw(0, 9).indices) == list(range(9))


def test_mirror_and_windows_are_balanced() -> None:
    draw = ShuffledStream(4000, seed=0, mirror=True, slack=3).draw(0, 4000)
    assert 0.46 < draw.mirror.mean() < 0.54
    for axis in (0, 1):
        counts = np.bincount(draw.offsets[:, axis], minlength=4)
        assert len(counts) == 4 and counts.min() > 900
    assert abs(np.corrcoef(draw.mirror, draw.offsets[:, 0])[0, 1]) < 0.06
    plain = ShuffledStream(4000, seed=0, mirror=False, slack=0).draw(0, 4000)
    assert not plain.mirror.any() and not plain.offsets.any()
    assert np.array_equal(plain.indices, draw.indices)


def test_mirror_order_against_the_table() -> None:
    """The pairs as annotation tools list them."""
    pairs = [(0, 16), (1, 15), (2, 14), (3, 13), (4, 12), (5, 11), (6, 10), (7, 9)]
    pairs += [(17, 26), (18, 25), (19, 24), (20, 23), (21, 22), (31, 35), (32, 34)]
    pairs += [(36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)]
    pairs += [(48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)]
    expected = list(range(68))
    for left, right in pairs:
        expected[left], expected[right] = right, left
    assert MIRROR_ORDER.tolist() == expected
    assert np.array_equal(MIRROR_ORDER[MIRROR_ORDER], np.arange(68))
