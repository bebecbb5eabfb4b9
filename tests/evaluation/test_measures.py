"""The measures of engine.evaluation on tensors: formulas written out here, stand-ins for optional packages."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.data import avatars
from engine.errors import InputError
from engine.evaluation import fidelity, figures, identity, measures
from engine.evaluation.neighbours import nearest
from engine.evaluation.sharpness import sharpness
from tests.support.evaluation_fakes import MeanColour
from tests.support.packages import needs


def random_images(count: int, side: int = 16, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


# nearest training images


def test_the_nearest_image_is_that_of_the_brute_force():
    queries, known = random_images(5), random_images(23, seed=1)
    known[17] = queries[2]
    known[4] = queries[3].flip(2)
    found = nearest(queries, known.split(7))
    both = torch.stack([known, known.flip(3)]).double() / 127.5
    for row, query in enumerate(queries.double() / 127.5):
        distances = (both - query).square().mean(dim=(2, 3, 4)).sqrt()
        flipped, place = divmod(int(distances.argmin()), 23)
        assert (int(found.index[row]), bool(found.mirrored[row])) == (place, bool(flipped))
        assert float(found.distance[row]) == pytest.approx(float(distances.min()), abs=1e-3)
        expected = known[place].flip(2) if flipped else known[place]
        assert torch.equal(found.images[row], expected)
    assert int(found.index[2]) == 17 and not found.mirrored[2] and found.distance[2] < 1e-3
    assert int(found.index[3]) == 4 and found.mirrored[3]  # a mirrored copy is a copy too


def test_an_image_is_not_its_own_neighbour():
    known = random_images(9)
    known[5] = known[1]
    found = nearest(known, known.split(4), leave_out=torch.arange(9))
    assert int(found.index[5]) == 1 and int(found.index[1]) == 5
    assert (found.index != torch.arange(9)).all()
    with pytest.raises(ValueError, match="empty"):
        nearest(known, [])


# Inception Score and FID


class FakeFidelity:
    """torch-fidelity's calculate_metrics, which reads its inputs as datasets and remembers how it was called."""

    def calculate_metrics(self, **options):
        self.options = options
        for name in ("input1", "input2"):
            assert isinstance(options[name], torch.utils.data.Dataset)
        self.sets = [torch.stack([options[n][i] for i in range(len(options[n]))]) for n in ("input1", "input2")]
        return {"inception_score_mean": 2.5, "inception_score_std": 0.25, "frechet_inception_distance": 31.0}


def test_inception_measures_call_torch_fidelity_with_the_local_file_only(monkeypatch, tmp_path):
    fake = FakeFidelity()
    monkeypatch.setattr(fidelity, "attempt", lambda name: (fake, None))
    results, reals = random_images(6, channels=1), random_images(4, channels=1, seed=1)
    found = fidelity.inception_measures(results, reals, tmp_path / "file.pth", torch.device("cpu"), 3)
    assert found == {"inception_score": {"mean": 2.5, "std": 0.25}, "fid": 31.0}
    assert torch.equal(fake.sets[0], results.expand(-1, 3, -1, -1)) and fake.sets[0].dtype == torch.uint8
    assert torch.equal(fake.sets[1], reals.expand(-1, 3, -1, -1))
    wanted = {"isc": True, "fid": True, "isc_splits": 6, "cuda": False, "cache": False, "batch_size": 3}
    wanted["feature_extractor_weights_path"] = str(tmp_path / "file.pth")
    assert wanted.items() <= fake.options.items()


def test_inception_measures_say_why_they_are_skipped(monkeypatch):
    images, cpu = random_images(4), torch.device("cpu")
    without = fidelity.inception_measures(images, images, None, cpu)
    assert without["fid"] == without["inception_score"] and "--inception-weights" in without["fid"]
    assert fidelity.URL in without["fid"]
    for problem, fix in [
        ("ModuleNotFoundError: No module named 'torch_fidelity'", "pip install kiln-engine[fid]"),
        ("RuntimeError: operator torchvision::nms does not exist", "torchvision does not fit this PyTorch"),
    ]:
        monkeypatch.setattr(fidelity, "attempt", lambda name, problem=problem: (None, problem))
        found = fidelity.inception_measures(images, images, Path("file.pth"), cpu)
        assert found["fid"].startswith("skipped:") and fix in found["fid"]
    monkeypatch.setattr(fidelity, "attempt", lambda name: (FakeFidelity(), None))
    assert "two images" in fidelity.inception_measures(images[:1], images, Path("file.pth"), cpu)["fid"]


def test_nothing_but_the_known_inception_file_is_taken(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="No such file"):
        fidelity.check_weights(tmp_path / "missing.pth")
    file = tmp_path / "weights.pth"
    file.write_bytes(b"another network")
    with pytest.raises(InputError, match="not the known file"):
        fidelity.check_weights(file)
    monkeypatch.setattr(fidelity, "DIGEST", hashlib.sha256(b"another network").hexdigest())
    fidelity.check_weights(file)
    assert "6726825d" in fidelity.URL


# dlib's face models


def test_recognition_counts_faces_and_known_persons(monkeypatch):
    monkeypatch.setattr(identity, "recogniser", MeanColour)
    generated = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    generated[1] += 30
    generated[2] += 255
    generated[3] += 128
    training = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    training[0] += 10
    training[1] += 20
    found = identity.recognition(generated, training.split(2))
    closest = [min(abs(g - t) / 255 * 3**0.5 for t in (10, 20)) for g in (30, 255, 128)]
    measured = found["generated"]
    assert measured.pop("closest") == pytest.approx(np.mean(closest)) and measured.pop("least") == min(closest)
    near = sum(distance < 0.6 for distance in closest)
    assert found == {"generated": {"images": 4, "not_detected": 1, "identified": near, "training_faces": 2}}
    # strangers say how close somebody else comes
    found = identity.recognition(generated, training.split(2), strangers=generated[[0, 3]])
    assert (found["strangers"]["images"], found["strangers"]["not_detected"]) == (2, 1)
    assert found["strangers"]["least"] == pytest.approx(108 / 255 * 3**0.5)
    assert found["generated"]["copied"] == 1
    nobody = identity.recognition(generated[:1], training.split(2), strangers=generated[:1])
    assert nobody["generated"] == {"images": 1, "not_detected": 1, "identified": 0, "training_faces": 2}
    monkeypatch.setattr(identity, "recogniser", lambda: None)
    assert identity.recognition(generated, [training]) is None
    assert identity.landmark_error(generated, torch.zeros(4, 68, 2)) is None


def test_the_landmark_error_is_the_distance_to_the_wanted_points(monkeypatch):
    """A stand-in that finds the points it was told, by the value of the image's first pixel."""
    generator = np.random.default_rng(0)
    wanted = generator.uniform(2, 14, (3, 68, 2))
    wanted[1, 5] = np.nan  # a point that nobody marked does not count
    there = {0: wanted[0] + [3, 4], 1: np.where(np.isnan(wanted[1]), 7, wanted[1] + [0, 1])}
    finds = SimpleNamespace(landmarks=lambda image: there.get(int(image[0, 0, 0])))
    monkeypatch.setattr(identity, "recogniser", lambda: finds)
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 1, 16, 16).contiguous()
    found = identity.landmark_error(images, torch.from_numpy(wanted))
    eyes = [np.linalg.norm(w[36] - w[45]) for w in wanted]
    assert found["images"] == 2
    assert found["pixels"] == pytest.approx((5 + 1) / 2)
    assert found["percent"] == pytest.approx(100 * (5 / eyes[0] + 1 / eyes[1]) / 2)
    # the targets' own landmarks are found two pixels beside the wanted ones; the first target has no face
    there[101] = there[1] + [2, 0]
    found = identity.landmark_error(images, torch.from_numpy(wanted), images + 100)
    assert found["percent_found"] == pytest.approx(100 * 2 / eyes[1])


def avatar(number: int, frame: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """A rendered face, (3, 256, 256) uint8, and its landmarks."""
    pixels, points = avatars.render(number, frame, "photo", 256)
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1), points


@needs("dlib", "face_recognition_models")
def test_the_real_landmarks_are_in_the_order_of_the_avatars():
    found = []
    for number in range(6):
        image, points = avatar(number)
        found.append(identity.landmark_error(image[None], torch.from_numpy(points)[None]))
    seen = [one["percent"] for one in found if one["images"]]
    assert len(seen) >= 3 and max(seen) < 25


@needs("dlib", "face_recognition_models")
def test_the_real_embedding_tells_people_apart():
    models = identity.recogniser()
    faces = [face for number in range(8) if (face := models.embed(avatar(number)[0])) is not None]
    assert len(faces) >= 4 and all(face.shape == (128,) for face in faces)
    image = avatar(0)[0]
    same = identity.identity(image[None], image[None])
    assert same == {"distance": 0.0, "same_person": 1.0, "pairs": 1.0}
    assert models.embed(torch.zeros(3, 64, 64, dtype=torch.uint8)) is None
    between = [np.linalg.norm(a - b) for place, a in enumerate(faces) for b in faces[:place]]
    assert np.mean(between) > 0.1


@needs("dlib", "face_recognition_models", "face_recognition", "pkg_resources")
def test_the_embedding_is_that_of_face_recognition():
    face_recognition = pytest.importorskip("face_recognition")
    image = avatar(1)[0]
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    boxes = face_recognition.face_locations(pixels, number_of_times_to_upsample=0)
    (wanted,) = face_recognition.face_encodings(pixels, boxes, model="small")
    np.testing.assert_allclose(identity.recogniser().embed(image), wanted, atol=1e-6)


# sharpness


def test_sharpness_is_the_ratio_of_laplacian_variances():
    a, b = random_images(3, 20), random_images(5, 20, seed=1)
    b = (b // 2 + 60).to(torch.uint8)

    def variance(images):
        grey = np.einsum("nchw,c->nhw", images.double().numpy(), [0.299, 0.587, 0.114])
        edges = (
            grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * grey[:, 1:-1, 1:-1]
        )
        return edges.reshape(len(edges), -1).var(1).mean()

    assert sharpness(b, a) == pytest.approx(variance(b) / variance(a))
    assert sharpness(a, a) == 1 and sharpness(a[:, :1], a[:, :1]) == 1
    assert sharpness(a, torch.zeros_like(a)) is None
    soft = torch.nn.functional.avg_pool2d(a.double(), 3, 1, 1).to(torch.uint8)
    assert sharpness(soft, a) < 0.2


# tables


def test_equal_images_have_no_psnr_and_are_counted():
    pytest.importorskip("torchmetrics")
    a = random_images(3)
    found = measures.compare(a, a)
    assert found["psnr"] == {"mean": None, "std": None, "equal": 3.0} and found["l1"]["mean"] == 0
    b = a.clone()
    b[0] = 255 - b[0]
    found = measures.compare(a, b)
    mse = ((a[0].double() - b[0].double()) ** 2).mean()
    assert found["psnr"]["mean"] == pytest.approx(float(10 * torch.log10(255**2 / mse))) and found["psnr"]["equal"] == 2


def test_the_table_has_every_number_and_every_reason():
    found = {
        "result": {"l1": {"mean": 0.125, "std": 0.5}, "swd": {"32": 10.0, "16": 20.0, "mean": 15.0},
                   "fid": "skipped: X", "landmark_error": "skipped: X", "identity": {"pairs": 0.0},
                   "psnr": {"mean": None, "std": None, "equal": 2.0}},
        "source": {"l1": {"mean": 0.25, "std": 0.5}, "detection_rate": 0.5},
    }  # fmt: skip
    lines = measures.table(found).splitlines()
    rows = {line[:16].strip(): line[16:].split() for line in lines[1:]}
    assert lines[0].split() == ["result", "source"]
    assert rows["l1"] == ["0.1250", "0.2500"] and rows["faces detected"] == ["50.0%"]
    assert (rows["swd 32x32"], rows["swd 16x16"], rows["swd"]) == (["10.00"], ["20.00"], ["15.00"])
    assert "FID, landmark error: skipped: X" in lines and f"identity: {measures.NO_FACES}" in lines
    assert "psnr" not in rows and "identity" not in rows
    shown = {panel["title"]: panel["bars"] for panel in measures.panels(found)}
    assert shown["faces detected, %"] == {"source": (50.0, None)}
    assert shown["L1 (lower is better)"] == {"result": (0.125, 0.5), "source": (0.25, 0.5)}
    assert not any("FID" in title or "PSNR" in title for title in shown)


def test_every_measure_has_a_unit():
    assert all(measures.UNITS[measure.key] for measure in measures.MEASURES)


def test_rates_and_distances_of_sets():
    finder = SimpleNamespace(boxes=lambda pixels: [1] if pixels.max() > 200 else [])
    dark, light = torch.zeros(2, 1, 16, 16, dtype=torch.uint8), torch.full((3, 1, 16, 16), 255, dtype=torch.uint8)
    rates = measures.detection_rates({"a": torch.cat([dark, light]), "b": dark}, finder)
    assert rates == {"a": 0.6, "b": 0.0}
    assert torch.equal(measures.spread(torch.arange(10), 3), torch.tensor([0, 3, 6]))
    a, b = random_images(6), random_images(3, seed=1)
    assert measures.distribution_distance(a, b, 0) == measures.distribution_distance(a[::2], b, 0)
    assert measures.distribution_distance(b, b, 0)["mean"] == 0


def test_a_comparison_is_a_picture():
    from io import BytesIO

    from PIL import Image

    rows = {"source": random_images(3), "full": random_images(3, seed=1)}
    panels = [{"title": "L1", "bars": {"full": (0.1, 0.05), "without": (0.2, None)}}]
    for shown in (panels, []):
        with Image.open(BytesIO(figures.comparison(rows, shown))) as image:
            image.load()
            assert image.width > 800
