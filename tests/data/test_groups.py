"""Samples of several images: every frame once an epoch, members of one clip, all different; pairs as listed."""

import numpy as np
import pytest

from engine.data.groups import Clips, Pairs, Singles, fixed_words


def words_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)


def test_singles_are_the_images() -> None:
    assert Singles(5)(np.array([3, 1]), words_of(2)).tolist() == [[3, 1]]


def test_pairs_are_the_table() -> None:
    pairs = np.array([[4, 0], [4, 1], [2, 3]])
    groups = Pairs(pairs)
    assert (groups.count, groups.members) == (3, 2)
    assert groups(np.array([2, 0]), words_of(2)).tolist() == [[2, 4], [3, 0]]


@pytest.mark.parametrize("members", [2, 3])
def test_members_are_different_frames_of_one_clip(members: int) -> None:
    clips = np.array([7, 2, 7, 2, 2, 7, 0, 0, 0, 7, 7])
    groups = Clips(clips, members)
    assert groups.count == len(clips)
    samples = np.tile(np.arange(len(clips)), 200)
    found = groups(samples, words_of(len(samples)))
    assert found.shape == (members, len(samples))
    assert np.array_equal(found[0], samples)
    assert (clips[found] == clips[samples]).all()
    assert all(len(set(column)) == members for column in found.T.tolist())


def test_every_choice_is_equally_likely() -> None:
    """The ordered pairs of other frames of a clip of four: 3 x 2."""
    groups = Clips(np.zeros(4, np.int64), 3)
    found = groups(np.full(6000, 1), words_of(6000))
    choices, counts = np.unique(found[1:].T, axis=0, return_counts=True)
    assert choices.tolist() == [[a, b] for a in (0, 2, 3) for b in (0, 2, 3) if a != b]
    assert counts.min() > 850 and counts.max() < 1150


def test_the_choice_is_a_function_of_the_word() -> None:
    groups, words = Clips(np.repeat([0, 1], 8), 3), fixed_words(16)
    once, again = (groups(np.arange(16), words) for _ in range(2))
    assert np.array_equal(once, again)
    assert len(np.unique(words)) == 16
    assert not np.array_equal(once, groups(np.arange(16), words_of(16)))
