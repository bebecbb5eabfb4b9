"""Loaders of samples with several images, and of several sets, against the images read one by one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.data import ImageSet, Loader, Together, open_dataset, open_loader
from engine.data.landmarks import MIRROR_ORDER
from engine.errors import InputError
from tests.support.data_images import picture, write_manifest_set, write_pictures

pytest.importorskip("nvidia.dali")
SETTINGS = {"resolution": 16, "channels": 3, "device": "cpu"}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three people with four frames each and random landmarks."""
    pictures = [picture(index) for index in range(12)]
    landmarks = np.random.default_rng(0).uniform(0, 16, (12, 68, 2)).astype(np.float32)
    folder = write_manifest_set(tmp_path / "clips", pictures, landmarks)
    rows = (folder / "manifest.csv").read_text().split()
    with_clips = [f"{row},{index // 4},{index % 4}" for index, row in enumerate(rows[1:])]
    (folder / "manifest.csv").write_text("\n".join([rows[0] + ",identity,frame", *with_clips]) + "\n")
    return folder


def one_by_one(images: ImageSet) -> Loader:
    return open_loader(images, batch_size=1, seed=0, mirror=False, loader="resident", **SETTINGS).fixed(len(images))


@pytest.mark.parametrize("kind", ["resident", "dali"])
@pytest.mark.parametrize("members", [2, 3])
def test_samples_of_a_clip(clips: Path, kind: str, members: int) -> None:
    """Each image is that of its index, all of one person and different, mirrored or not together."""
    images = open_dataset(clips, points=68, members=members, channels=3, resolution=16)
    loader = open_loader(images, batch_size=5, seed=2, members=members, loader=kind, **SETTINGS)
    truth, firsts, mirrored = one_by_one(images), [], []
    for _ in range(12):
        batch = loader.next()
        parts = (batch, *batch.more)
        assert len(parts) == members
        firsts += batch.indices.tolist()
        for sample in range(5):
            chosen = [int(part.indices[sample]) for part in parts]
            assert len({images.clips[index] for index in chosen}) == 1 and len(set(chosen)) == members
            flip = not torch.equal(batch.images[sample], truth.images[chosen[0]])
            mirrored.append(flip)
            for part, index in zip(parts, chosen, strict=True):
                wanted, points = truth.images[index], truth.landmarks[index]
                if flip:
                    wanted, points = wanted.flip(-1), points[MIRROR_ORDER.copy()] * torch.tensor([-1, 1])
                    points = points + torch.tensor([15, 0])
                assert torch.equal(part.images[sample], wanted)
                torch.testing.assert_close(part.landmarks[sample], points)
    loader.close()
    assert sorted(firsts) == sorted(list(range(12)) * 5)
    assert 0 < sum(mirrored) < len(mirrored)


def test_clips_resume_and_their_fixed_samples_stay(clips: Path) -> None:
    images = open_dataset(clips, points=68, members=2, channels=3, resolution=16)
    one, other = (open_loader(images, batch_size=3, seed=seed, members=2, **SETTINGS) for seed in (4, 9))
    fixed = one.fixed(3)
    for _ in range(5):
        one.next()
    other.load_state_dict(one.state_dict())
    for _ in range(4):
        a, b = one.next(), other.next()
        assert torch.equal(a.images, b.images) and torch.equal(a.more[0].images, b.more[0].images)
        assert torch.equal(a.more[0].landmarks, b.more[0].landmarks)
    again = one.fixed(3)
    assert torch.equal(fixed.more[0].images, again.more[0].images)
    assert torch.equal(again.part(1, 3).more[0].images, fixed.more[0].images[1:])


@pytest.mark.parametrize("swap", [True, False])
def test_mirrored_landmarks_change_places_or_not(clips: Path, swap: bool) -> None:
    images = open_dataset(clips, points=68, channels=3, resolution=16)
    batch = open_loader(images, batch_size=12, seed=3, mirror_swap=swap, **SETTINGS).next()
    truth, seen = one_by_one(images).landmarks[batch.indices], 0
    for found, wanted in zip(batch.landmarks, truth, strict=True):
        mirrored = (wanted[MIRROR_ORDER.copy()] if swap else wanted) * torch.tensor([-1, 1]) + torch.tensor([15, 0])
        seen += torch.allclose(found, mirrored)
        assert torch.allclose(found, mirrored) or torch.equal(found, wanted)
    assert 0 < seen < 12


def test_a_set_without_clips_is_refused(tmp_path: Path) -> None:
    images = open_dataset(write_pictures(tmp_path / "set", 6), channels=3, resolution=16)
    with pytest.raises(InputError, match="no pairs or clips"):
        open_loader(images, batch_size=2, seed=0, members=2, **SETTINGS)


def test_more_samples_in_a_batch_than_there_are(clips: Path) -> None:
    images = open_dataset(clips, points=68, members=3, channels=3, resolution=16)
    with pytest.raises(InputError, match=r"batch size 13 is larger than the data set \(12 usable samples\)"):
        open_loader(images, batch_size=13, seed=0, members=3, **SETTINGS)


def test_two_sets_together(tmp_path: Path) -> None:
    counts = {"a": 5, "b": 9}
    sets = [open_dataset(write_pictures(tmp_path / n, c), channels=3, resolution=16) for n, c in counts.items()]

    def both(seed: int) -> Together:
        sizes = zip(sets, (2, 4), strict=True)
        return Together([open_loader(images, batch_size=size, seed=seed, **SETTINGS) for images, size in sizes])

    loader = both(1)
    batches = [loader.next() for _ in range(4)]
    assert [len(part.images) for part in (batches[0], *batches[0].more)] == [2, 4]
    state, resumed = loader.state_dict(), both(7)
    following = loader.next()
    resumed.load_state_dict(state)
    again = resumed.next()
    assert torch.equal(again.images, following.images) and torch.equal(again.more[0].images, following.more[0].images)
    assert loader.seconds_waited > 0 and len(loader.describe().splitlines()) == 2
    state["sets"].reverse()
    with pytest.raises(InputError, match="has changed"):
        both(1).load_state_dict(state)
