"""Both loaders against Pillow and plain numpy, against each other, and across interruptions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data import Batch, ImageSet, Loader, open_dataset, open_loader
from engine.data.decoding.upload import Uploads, send
from engine.data.landmarks import MIRROR_ORDER
from engine.data.shuffling import ShuffledStream
from engine.errors import InputError
from tests.support.data_images import picture, write_manifest_set, write_pictures
from tests.support.places import SHARED_DATA
from tests.support.tape import NoWaiting

pytest.importorskip("nvidia.dali")


@pytest.fixture
def pictures(tmp_path: Path) -> ImageSet:
    return open_dataset(write_pictures(tmp_path / "set", 13), channels=3, resolution=16)


def load(images: ImageSet, kind: str = "resident", **settings) -> Loader:
    defaults = {"batch_size": 4, "resolution": 16, "channels": 3, "device": "cpu", "seed": 7}
    return open_loader(images, loader=kind, **(defaults | settings))


def assert_same(a: Batch, b: Batch) -> None:
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.indices, b.indices)
    assert (a.landmarks is None) == (b.landmarks is None)
    if a.landmarks is not None:
        assert torch.equal(a.landmarks, b.landmarks)


@pytest.mark.parametrize("kind", ["resident", "dali"])
@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resolution", [16, 64])
def test_batches_are_what_pillow_makes(tmp_path: Path, kind: str, crop: str, channels: int, resolution: int) -> None:
    """Shrinking and enlarging. At the crop's edge DALI's filter sees the pixels beyond, Pillow's does not: excluded."""
    images = open_dataset(write_pictures(tmp_path / "set", 6), channels=channels, resolution=resolution)
    loader = load(images, kind, resolution=resolution, channels=channels, crop=crop)
    side = resolution + (resolution // 8 if crop == "random" else 0)
    stream = ShuffledStream(6, 7, mirror=True, slack=side - resolution)
    seen_mirrored = set()
    for step in range(4):
        batch, draw = loader.next(), stream.draw(4 * step, 4)
        assert batch.images.shape == (4, channels, resolution, resolution) and batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.indices.tolist() == draw.indices.tolist()
        for i, index in enumerate(batch.indices.tolist()):
            whole = Image.open(tmp_path / "set" / images.paths[index]).convert("L" if channels == 1 else "RGB")
            stored = np.asarray(whole.crop((4, 0, 44, 40)).resize((side, side), Image.Resampling.BILINEAR))
            x, y = draw.offsets[i]
            window = stored.reshape(side, side, channels)[y : y + resolution, x : x + resolution]
            expected = (window[:, ::-1] if draw.mirror[i] else window) / 127.5 - 1
            error = np.abs(batch.images[i].permute(1, 2, 0).numpy() - expected)
            assert error[2:-2, 2:-2].max() <= 2.01 / 127.5 and error.mean() <= 1 / 127.5
            seen_mirrored.add(bool(draw.mirror[i]))
    assert seen_mirrored == {True, False}
    loader.close()


@pytest.mark.parametrize("crop", ["center", "random"])
def test_without_resizing_every_value_is_exact(tmp_path: Path, crop: str) -> None:
    side = 18 if crop == "random" else 16
    images = open_dataset(write_pictures(tmp_path / "set", 5, width=side, height=side), channels=3, resolution=16)
    loader, stream = load(images, crop=crop, batch_size=5), ShuffledStream(5, 7, mirror=True, slack=side - 16)
    for step in range(3):
        batch, draw = loader.next(), stream.draw(5 * step, 5)
        for i, index in enumerate(draw.indices):
            x, y = draw.offsets[i]
            window = np.asarray(Image.open(tmp_path / "set" / images.paths[index]))[y : y + 16, x : x + 16]
            window = window[:, ::-1] if draw.mirror[i] else window
            expected = window.astype(np.float32) / np.float32(127.5) - np.float32(1)
            assert np.array_equal(batch.images[i].permute(1, 2, 0).numpy(), expected)
    assert batch.images.min() >= -1 and batch.images.max() <= 1


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("mirror", [True, False])
def test_both_loaders_give_the_same_bits(tmp_path: Path, crop: str, mirror: bool) -> None:
    rng = np.random.default_rng(0)
    sizes = [(40 + 7 * i, 90 - 5 * i) for i in range(11)]
    folder = write_manifest_set(
        tmp_path / "set", [picture(i, *size) for i, size in enumerate(sizes)], rng.uniform(0, 40, (11, 68, 2))
    )
    images = open_dataset(folder, channels=3, resolution=32)
    resident, dali = (load(images, kind, resolution=32, crop=crop, mirror=mirror) for kind in ("resident", "dali"))
    for _ in range(9):  # more than three epochs
        assert_same(resident.next(), dali.next())
    assert_same(resident.fixed(6), dali.fixed(6))
    assert_same(resident.next(), dali.next())
    dali.close()


@pytest.mark.parametrize("kind", ["resident", "dali"])
def test_augmented_batches_are_the_same_again(tmp_path: Path, kind: str) -> None:
    """Anew each epoch, the same with each loader and after a resume; the fixed images stay as they are."""
    points = np.random.default_rng(0).uniform(8, 32, (11, 68, 2))
    folder = write_manifest_set(tmp_path / "set", [picture(i, 40, 40) for i in range(11)], points)
    images = open_dataset(folder, channels=3, resolution=32)
    strong = {"resolution": 32, "geometry": 1.0, "light": 1.0}
    loader, other, plain = load(images, kind, **strong), load(images, "resident", **strong), load(images, resolution=32)
    seen = [loader.next() for _ in range(9)]
    for batch in seen[:5]:
        assert_same(batch, other.next())
    resumed = load(images, kind, **strong)
    resumed.load_state_dict(other.state_dict())
    for batch in seen[5:]:
        assert_same(batch, resumed.next())
    versions = [batch.images[i] for batch in seen for i in range(4) if batch.indices[i] == 3]
    assert not any(torch.equal(a, b) for number, a in enumerate(versions) for b in versions[:number])
    assert (loader.fixed(6).images - plain.fixed(6).images).abs().max() < 0.02
    torch.testing.assert_close(loader.fixed(6).landmarks, plain.fixed(6).landmarks, rtol=0, atol=1e-3)
    for used in (loader, resumed):
        used.close()


class FakeEvent:
    """Counts what torch.cuda.Event is asked for; `log` gets (number of the event, what)."""

    log: list[tuple[int, str]] = []

    def __init__(self, blocking: bool) -> None:
        self.number = FakeEvent.made = getattr(FakeEvent, "made", -1) + 1

    def record(self) -> None:
        self.log.append((self.number, "record"))

    def synchronize(self) -> None:
        self.log.append((self.number, "wait"))


@pytest.mark.parametrize("kind", ["resident", "dali"])
def test_batches_through_the_ring_of_uploads(pictures: ImageSet, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """As on a GPU: the same batches, and a buffer is written again only after its last copy was waited for."""
    plain, ringed = load(pictures, kind, crop="random"), load(pictures, kind, crop="random")
    monkeypatch.setattr(FakeEvent, "log", log := [])
    monkeypatch.setattr(FakeEvent, "made", -1, raising=False)
    ringed._uploads = Uploads(4, torch.device("cpu"), slots=3, pinned=False, event=FakeEvent)
    batches = [(plain.next(), ringed.next()) for _ in range(8)]
    for expected, batch in batches:  # after all were made: none lies in the ring
        assert_same(expected, batch)
    first_round = [(slot, "record") for slot in range(3)]
    assert log == first_round + [(step % 3, what) for step in range(3, 8) for what in ("wait", "record")]
    plain.close()
    ringed.close()


def test_what_is_uploaded_is_the_draw() -> None:
    uploads = Uploads(5, torch.device("cpu"), slots=2, pinned=False, event=FakeEvent)
    stream = ShuffledStream(13, 1, mirror=True, slack=8)
    for step in range(5):
        draw = stream.draw(5 * step, 5)
        wanted, sent = send(draw, torch.device("cpu")), uploads(draw)
        for name in ("indices", "offsets", "mirror", "words"):
            a, b = getattr(sent, name), getattr(wanted, name)
            assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def test_a_settled_loader_has_nothing_under_way(pictures: ImageSet) -> None:
    loader, other = load(pictures, "dali"), load(pictures, "resident")
    first = loader.next()
    loader.settle()
    assert len(loader._ready) == 2 and all(batch.done() for batch in loader._ready)
    other.settle()
    assert_same(first, other.next())
    for _ in range(4):
        assert_same(loader.next(), other.next())
    loader.close()


def test_no_batch_waits_for_the_device(tmp_path: Path) -> None:
    """What a batch is made with, once its draw lies on the device."""
    landmarks = np.random.default_rng(0).uniform(0, 40, (6, 68, 2))
    images = open_dataset(
        write_manifest_set(tmp_path / "set", [picture(i) for i in range(6)], landmarks), channels=3, resolution=16
    )
    loader = load(images)
    loader.next()
    for step in range(1, 4):
        draw = loader._draw(4 * step)
        indices, sent = torch.from_numpy(draw.indices), send(draw, loader.device)
        with NoWaiting():
            assert loader._assemble(indices, sent, *loader._squares(sent)).landmarks.shape == (4, 68, 2)


def test_batches_are_fresh_tensors(pictures: ImageSet) -> None:
    loader = load(pictures)
    first = loader.next()
    copy = first.images.clone()
    loader.next()
    assert torch.equal(first.images, copy)


@pytest.mark.parametrize("kind", ["resident", "dali"])
@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_resume_is_exact(pictures: ImageSet, kind: str, steps: int) -> None:
    whole = load(pictures, kind, crop="random")
    expected = [whole.next() for _ in range(steps + 6)][steps:]
    first = load(pictures, kind, crop="random")
    for _ in range(steps):
        first.next()
    state = first.state_dict()
    second = load(pictures, "dali" if kind == "resident" else "resident", crop="random", seed=99)
    second.next()  # has prepared batches that must not come
    second.load_state_dict(state)
    for batch in expected:
        assert_same(batch, second.next())
    for loader in (whole, first, second):
        loader.close()


def test_state_survives_a_weights_only_file(pictures: ImageSet, tmp_path: Path) -> None:
    loader = load(pictures)
    for _ in range(5):
        loader.next()
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (state["epoch"], state["position"]) == divmod(20, 13)
    assert loader.epoch == 1


def test_ranks_are_disjoint_and_cover_everything(pictures: ImageSet) -> None:
    alone = load(pictures, batch_size=6)
    ranks = [load(pictures, batch_size=2, rank=rank, world_size=3) for rank in range(3)]
    seen: list[int] = []
    for _ in range(13):  # 78 samples: six epochs
        parts = [loader.next() for loader in ranks]
        together = torch.cat([part.indices for part in parts])
        whole = alone.next()
        assert torch.equal(together, whole.indices)
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        seen += together.tolist()
    for epoch in range(6):
        assert sorted(seen[13 * epoch : 13 * epoch + 13]) == list(range(13))


def test_resume_with_another_world_size(pictures: ImageSet) -> None:
    ranks = [load(pictures, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(5):
        for loader in ranks:
            loader.next()
    assert ranks[0].state_dict() == ranks[1].state_dict()
    reference = load(pictures, batch_size=4)
    for _ in range(5):
        reference.next()
    more = [load(pictures, batch_size=1, rank=rank, world_size=4) for rank in range(4)]
    for loader in more:
        loader.load_state_dict(ranks[0].state_dict())
    assert torch.equal(torch.cat([loader.next().images for loader in more]), reference.next().images)


def test_another_data_set_is_refused(pictures: ImageSet, tmp_path: Path) -> None:
    other = open_dataset(write_pictures(tmp_path / "other", 14), channels=3, resolution=16)
    with pytest.raises(InputError, match=r"data set has changed.*13 images.*has 14"):
        load(other).load_state_dict(load(pictures).state_dict())


def test_landmarks_follow_the_pixels(tmp_path: Path) -> None:
    """A bright dot is drawn at one landmark of each image: after crop, resize and mirror both must agree."""
    rng = np.random.default_rng(1)
    landmarks, dots, files = rng.uniform(30, 130, (24, 68, 2)), [], []
    for index in range(24):
        width, height = (160, 200) if index % 2 else (230, 160)
        y, x = np.mgrid[0:height, 0:width]
        dot = index * 11 % 68
        landmarks[index, dot] = (width - 160) / 2 + rng.uniform(40, 120), (height - 160) / 2 + rng.uniform(40, 120)
        distance = (x - landmarks[index, dot, 0]) ** 2 + (y - landmarks[index, dot, 1]) ** 2
        files.append(Image.fromarray((255 * np.exp(-distance / 60)).astype(np.uint8)))
        dots.append(dot)
    images = open_dataset(write_manifest_set(tmp_path / "set", files, landmarks), channels=1, resolution=64)
    np.testing.assert_allclose(images.landmarks, landmarks.astype(np.float32))
    loader = load(images, resolution=64, channels=1, crop="random", batch_size=24)
    stream = ShuffledStream(24, 7, mirror=True, slack=8)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for step in range(2):
        batch, draw = loader.next(), stream.draw(24 * step, 24)
        assert batch.landmarks.shape == (24, 68, 2) and batch.landmarks.dtype == torch.float32
        for i, index in enumerate(batch.indices.tolist()):
            weight = batch.images[i, 0] + 1
            centre = torch.stack([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
            point = MIRROR_ORDER[dots[index]] if draw.mirror[i] else dots[index]
            assert (batch.landmarks[i, point] - centre).abs().max() < 0.15
        assert draw.mirror.any() and not draw.mirror.all()


@pytest.mark.skipif(not (SHARED_DATA / "renders_scan").is_dir(), reason="no shared data")
def test_mirroring_maps_real_faces_to_faces() -> None:
    """The mean face is nearly symmetric, so mirroring must map each point near itself."""
    images = open_dataset(SHARED_DATA / "renders_scan", channels=3, resolution=64)
    plain, mirrored = (load(images, resolution=64, batch_size=160, mirror=flag).next() for flag in (False, True))
    flipped = (mirrored.images == plain.images.flip(3)).flatten(1).all(1)
    assert 50 < flipped.sum() < 110
    shape, other = plain.landmarks.mean(0), mirrored.landmarks[flipped].mean(0)
    assert (shape - other).abs().max() < 4
    assert (shape[36, 0] - shape[45, 0]).abs() > 12  # a wrong index would be far away


@pytest.mark.parametrize("kind", ["resident", "dali"])
def test_fixed_images(pictures: ImageSet, kind: str) -> None:
    loader = load(pictures, kind, crop="random")
    first = loader.fixed(6)
    assert first.indices.tolist() == [0, 2, 4, 6, 8, 10]
    loader.next()
    assert_same(first, loader.fixed(6))
    assert loader.fixed(30).images.shape[0] == 30
    plain = load(pictures, kind).fixed(1).images
    assert (first.images[0] - plain[0]).abs().mean() < 0.2
    loader.close()


def test_auto_says_what_and_why(pictures: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(pictures, "auto").describe().startswith("resident loader: 13 images")
    monkeypatch.setattr("engine.data.opening.free_bytes", lambda device: 4 * 13 * 16 * 16 * 3)
    assert "resident" in load(pictures, "auto").describe()
    monkeypatch.setattr("engine.data.opening.free_bytes", lambda device: 4 * 13 * 16 * 16 * 3 - 4)
    streaming = load(pictures, "auto")
    assert streaming.describe().startswith("dali loader: 13 files") and "10.0 kB > a quarter" in streaming.describe()
    streaming.next()
    assert streaming.seconds_waited > 0
    streaming.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 14}, "batch size 14 is larger than the data set .13 usable images"),
        ({"batch_size": 5, "world_size": 3}, "batch size 15 .5 on each of 3 ranks. is larger"),
        ({"batch_size": 0}, "batch size 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"resolution": 48}, "resolution 48 is not a power-of-two multiple of 8"),
        ({"resolution": 512}, "resolution 512"),
        ({"channels": 4}, "channels 4"),
        ({"crop": "middle"}, "crop 'middle'"),
        ({"crop": "random", "geometry": 0.5}, "take one of them"),
        ({"light": 1.5}, "light goes from 0 to 1"),
        ({"kind": "fast"}, "loader 'fast'"),
    ],
)
def test_settings_that_cannot_work(pictures: ImageSet, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(pictures, **settings)


@pytest.mark.parametrize("kind", ["resident", "dali"])
@pytest.mark.parametrize("damage", ["vanish", "change"])
def test_a_file_that_vanishes_or_changes(
    empty_cache: Path, pictures: ImageSet, tmp_path: Path, kind: str, damage: str
) -> None:
    victim = tmp_path / "set" / "004.png"
    data = bytearray(victim.read_bytes())
    victim.unlink()
    if damage == "change":
        data[-1] ^= 1  # the size stays
        victim.write_bytes(data)
    with pytest.raises(InputError, match=rf"004.png {damage[:6]}"):
        loader = load(pictures, kind)
        for _ in range(4):
            loader.next()
    if damage == "change":
        assert not list((empty_cache / "validated").glob("*.json")), "the next start must decode again"


@pytest.mark.parametrize("kind", ["resident", "dali"])
def test_a_decoder_that_fails_names_the_files(
    pictures: ImageSet, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, kind: str
) -> None:
    """As when a GPU codec refuses what the CPU one accepted."""
    monkeypatch.setattr(ImageSet, "read", lambda self, index: b"not an image" * 9)
    with pytest.raises(InputError, match=r"DALI failed on one of these files: .*\d\d\d.png.*decoders.image"):
        load(pictures, kind).next()
