"""evaluate and its measures, against independent formulas."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from engine import checkpoint, evaluate, refine
from engine.evaluation import figures, identity, refined
from engine.evaluation import sliced_wasserstein as swd
from engine.evaluation.identity import SKIPPED
from engine.evaluation.likeness import likeness
from tests.support.checkpoint_reads import count_reads
from tests.support.data_images import picture, write_manifest_set, write_pictures
from tests.support.evaluation_fakes import MeanColour
from tests.support.packages import needs
from tests.support.tiny_run import command, make_run

needs_extras = needs("torchmetrics", "cv2")
needs_all = needs("torchmetrics", "cv2", "nvidia.dali")


def gaussian(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(count: int, side: int = 32, channels: int = 3, seed: int = 0) -> torch.Tensor:
    found = [np.asarray(picture(seed + i, side, side)) for i in range(count)]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)[:, :channels].contiguous()


# sliced Wasserstein distance


def test_equal_sets_have_distance_0_whatever_their_order():
    a = gaussian(500, 20, 0)
    assert swd.sliced_wasserstein(a, a) == 0
    assert swd.sliced_wasserstein(a, a.flip(0)) == pytest.approx(0, abs=1e-12)


def test_a_shift_has_the_distance_of_its_projections():
    """E|s.u| over the unit sphere of R^d is |s| gamma(d/2) / (sqrt(pi) gamma((d+1)/2))."""
    size = 12
    a, shift = gaussian(300, size, 0), torch.linspace(-1, 2, size, dtype=torch.float64)
    sphere = math.gamma(size / 2) / (math.sqrt(math.pi) * math.gamma((size + 1) / 2))
    assert swd.sliced_wasserstein(a, a + shift) == pytest.approx(float(shift.norm()) * sphere, rel=0.1)


def test_a_wider_gaussian_has_the_distance_of_its_deviation():
    """W1(N(0, 1), N(0, s^2)) = |s - 1| sqrt(2 / pi) along every direction."""
    found = swd.sliced_wasserstein(gaussian(10_000, 6, 0), 1.5 * gaussian(10_000, 6, 1))
    assert found == pytest.approx(0.5 * math.sqrt(2 / math.pi), rel=0.05)


def test_one_dimension_is_scipys_distance():
    stats = pytest.importorskip("scipy.stats")
    a, b = gaussian(400, 1, 0), gaussian(400, 1, 1).exp()
    expected = stats.wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())
    assert swd.sliced_wasserstein(a, b) == pytest.approx(expected)


def test_the_pyramid_adds_up_to_the_image_and_separates_the_scales():
    x = images(2, 64).float()
    levels = swd.laplacian_pyramid(x)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    rebuilt = levels[-1]
    for level in reversed(levels[:-1]):
        rebuilt = swd.enlarge(rebuilt) + level
    torch.testing.assert_close(rebuilt, x)
    # a constant image has nothing in the band-pass levels
    flat = swd.laplacian_pyramid(torch.full((1, 3, 64, 64), 80.0))
    inner = flat[0][:, :, 4:-4, 4:-4]
    torch.testing.assert_close(inner, torch.zeros_like(inner), atol=1e-4, rtol=0)


def test_patches_are_pieces_of_the_image():
    level = torch.arange(2 * 3 * 16 * 16.0).view(2, 3, 16, 16)
    found = swd.patches(level, 5, torch.Generator().manual_seed(0))
    assert found.shape == (10, 3, 7, 7)
    for index, patch in enumerate(found):
        place = int(patch[0, 0, 0]) % 256
        top, left = divmod(place, 16)
        torch.testing.assert_close(patch, level[index // 5, :, top : top + 7, left : left + 7])


def test_distance_of_image_sets():
    a, noisy = images(40), images(40)
    assert swd.distance(a, a) == {"32": 0, "16": 0, "mean": 0}
    noise = torch.randint(-60, 61, noisy.shape, generator=torch.Generator().manual_seed(0))
    noisy = (noisy + noise).clamp(0, 255).byte()
    found = swd.distance(a, noisy)
    assert found == swd.distance(a, noisy)  # deterministic
    # noise changes the finest level most; other draws of the same kind of image are nearer than noise
    assert found["32"] > found["16"] > 0
    assert found["32"] > swd.distance(a, images(40, seed=100))["32"]
    with pytest.raises(ValueError, match="equal size"):
        swd.distance(a, a[:5])


# likeness


@needs_extras
@pytest.mark.parametrize("channels", [1, 3])
def test_likeness(channels):
    a, b = images(3, channels=channels), images(3, channels=channels, seed=5)
    b[0] = a[0]
    found = likeness(a, b, batch_size=2)
    difference = (a.double() - b.double()).numpy()
    np.testing.assert_allclose(found["l1"], np.abs(difference).mean((1, 2, 3)) / 127.5)
    mse = (difference**2).mean((1, 2, 3))
    np.testing.assert_allclose(found["psnr"][1:], 10 * np.log10(255**2 / mse[1:]), rtol=1e-6)
    assert found["psnr"][0] == math.inf and found["ssim"][0] == pytest.approx(1)
    assert (found["ssim"][1:] < 0.9).all()


@needs_extras
def test_ssim_is_that_of_wang_et_al():
    """The formula by hand, over the windows that lie inside the image."""
    signal = pytest.importorskip("scipy.signal")
    a, b = images(1, 40, 1), images(1, 40, 1, seed=3)
    x, y = a[0, 0].double().numpy(), b[0, 0].double().numpy()
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2

    def mean(values):
        return signal.convolve2d(values, window, mode="valid")

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = mean(x), mean(y)
    sxx, syy, sxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    ssim = ((2 * mx * my + c1) * (2 * sxy + c2)) / ((mx**2 + my**2 + c1) * (sxx + syy + c2))
    assert likeness(a, b)["ssim"][0] == pytest.approx(ssim.mean(), abs=1e-6)


def test_error_maps_average_the_channels():
    a, b = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    a[0, :, 0, 0] = torch.tensor([30, 60, 0])
    b[0, :, 0, 1] = torch.tensor([96, 96, 96])
    np.testing.assert_array_equal(figures.error_maps(a, b), [[[30, 96], [0, 0]]])


# the command


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    run = make_run(folder / "run")
    data = write_pictures(folder / "data", 6, width=50, height=40)
    assert command(evaluate.main, run, "--data", data, "--out", folder / "out") == 0
    return folder


@needs_all
def test_the_measures_are_those_of_what_refine_writes(measured):
    found = json.loads((measured / "out" / "metrics.json").read_text())
    assert command(refine.main, measured / "run", measured / "data", measured / "refined") == 0
    errors = []
    for seed in range(6):
        original = picture(seed, 50, 40).crop((5, 0, 45, 40)).resize((32, 32), Image.Resampling.BILINEAR)
        written = Image.open(measured / "refined" / f"{seed:03d}.png")
        errors.append(np.abs(np.asarray(original).astype(int) - np.asarray(written)).mean() / 127.5)
    assert found["refined"]["l1"]["mean"] == pytest.approx(np.mean(errors), rel=1e-3)
    assert found["refined"]["l1"]["std"] == pytest.approx(np.std(errors), rel=1e-2)
    assert (found["images"], found["step"], found["system"]) == (6, 7, "refiner")
    assert found["original"]["detection_rate"] == 0  # the images have no face
    assert set(found["refined"]["swd"]) == {"32", "16", "mean"}
    assert found["refined"]["identity"] == SKIPPED or "pairs" in found["refined"]["identity"]


@needs_all
def test_the_figures_are_images(measured):
    for name in ("examples", "heatmaps", "bars"):
        with Image.open(measured / "out" / f"{name}.png") as image:
            image.load()
            assert image.width > 400 and image.height > 200
    assert not [path for path in (measured / "out").iterdir() if path.name.startswith(".")]


@needs_all
def test_limit_spreads_over_the_set_and_the_default_place_is_the_run(measured, capsys):
    assert command(evaluate.main, measured / "run", "--data", measured / "data", "--limit", 2) == 0
    place = measured / "run" / "evaluation" / "data-step_00000007"
    assert json.loads((place / "metrics.json").read_text())["images"] == 2
    assert str(place / "metrics.json") in capsys.readouterr().out


@needs_all
def test_landmark_models(tmp_path, capsys):
    run = make_run(tmp_path / "run", landmarks=True)
    points = np.random.default_rng(0).uniform(5, 35, (2, 68, 2))
    data = write_manifest_set(tmp_path / "set", [picture(0), picture(1)], points)
    assert command(evaluate.main, run, "--data", data, "--out", tmp_path / "out") == 0
    assert command(evaluate.main, run, "--data", data / "images", "--out", tmp_path / "out2") == 2
    assert "no landmarks" in capsys.readouterr().err and not (tmp_path / "out2").exists()


@needs_extras
def test_bad_input(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    data = write_pictures(tmp_path / "data", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for words, message in [
        ((run,), "--data PATH, or --held-out"),
        ((run, "--data", tmp_path / "empty"), "no image file"),
        ((run, "--data", tmp_path / "missing"), "there is no folder or zip"),
        ((tmp_path / "missing", "--data", data), "does not exist"),
        ((data, "--data", data), "give a run folder or one of its checkpoints"),
        ((run, "--data", data, "--out", tmp_path / "file"), "file"),
        ((run, "--data", data, "--limit", -1), "--limit"),
    ]:
        assert command(evaluate.main, *words) == 2, words
        printed = capsys.readouterr().err
        assert message in printed and printed.count("error:") == 1, printed


@needs_all
def test_an_interrupted_evaluation_leaves_no_old_result(measured, monkeypatch, tmp_path):
    words = (measured / "run", "--data", measured / "data", "--out", tmp_path / "out")
    assert command(evaluate.main, *words) == 0

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(refined.Refined, "measure", interrupt)
    assert command(evaluate.main, *words) == 130
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize("module", ["torchmetrics", "cv2"])
def test_missing_extras_are_named(tmp_path, capsys, monkeypatch, module):
    from engine.host import environment

    def attempt(name):
        return (None, f"No module named {module!r}") if name.split(".")[0] == module else environment.attempt(name)

    monkeypatch.setattr("engine.evaluation.likeness.attempt", attempt)
    monkeypatch.setattr("engine.inference.faces.attempt", attempt)
    run, data = make_run(tmp_path / "run"), write_pictures(tmp_path / "data", 1)
    assert command(evaluate.main, run, "--data", data) == 2
    assert "pip install kiln-engine[eval]" in capsys.readouterr().err


def test_a_torchvision_that_does_not_fit_is_named(tmp_path, capsys, monkeypatch):
    """Where torch-fidelity is installed, torchmetrics cannot be imported beside a torchvision of another torch."""
    broken = "RuntimeError: operator torchvision::nms does not exist"
    monkeypatch.setattr("engine.evaluation.likeness.attempt", lambda name: (None, broken))
    run, data = make_run(tmp_path / "run"), write_pictures(tmp_path / "data", 1)
    assert command(evaluate.main, run, "--data", data) == 2
    assert "torchvision does not fit this PyTorch" in capsys.readouterr().err


def test_faces_are_found_in_a_face():
    pytest.importorskip("cv2")
    avatars = pytest.importorskip("engine.data.avatars")
    from engine.inference.faces import FaceFinder

    finder = FaceFinder()
    hits = sum(bool(finder.boxes(avatars.render(identity, 0, "photo", 128)[0])) for identity in range(8))
    assert hits >= 5
    assert not finder.boxes(np.full((128, 128, 3), 90, np.uint8))


def test_identity_is_measured_where_the_package_is(monkeypatch):
    """With a stand-in whose embedding is the mean colour the distances are known."""
    monkeypatch.setattr(identity, "recogniser", MeanColour)
    a = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    b = a.clone()
    a[0] += 51
    b[0] += 51
    a[1] += 255
    b[1, 0] += 51
    found = identity.identity(a, b)  # the third pair has no face
    assert found["pairs"] == 2
    assert found["distance"] == pytest.approx((0 + math.sqrt(0.8**2 + 1 + 1)) / 2)
    assert found["same_person"] == 0.5


def test_nearest_copies_are_those_of_pytorch():
    x = images(1).float()
    torch.testing.assert_close(x[:, :, ::4, ::4], F.interpolate(x, size=8, mode="nearest"))


@needs_all
def test_the_checkpoint_is_read_once(measured, tmp_path, monkeypatch):
    shutil.copytree(measured / "run", tmp_path / "run")  # in this place no checkpoint has been hashed yet
    counts = count_reads(monkeypatch)
    assert command(evaluate.main, tmp_path / "run", "--data", measured / "data", "--out", tmp_path / "out") == 0
    assert counts == {"hashed": len(checkpoint.FILES), "weights": 1, "state": 1}


@needs_extras
def test_face_crop_measures_what_refine_makes_of_it(tmp_path, monkeypatch):
    """A stand-in finds the face in a corner: what is refined is that corner, for both commands."""
    from engine.inference.faces import FaceFinder

    run, data = make_run(tmp_path / "run"), write_pictures(tmp_path / "data", 2, width=80, height=60)
    monkeypatch.setattr(FaceFinder, "portrait", lambda self, pixels, framing: (4, 6, 44, 46))
    kept = {}
    monkeypatch.setattr(refined.Refined, "draw", lambda self, measures, out: kept.setdefault("results", self.results))
    assert command(evaluate.main, run, "--data", data, "--face-crop", "--out", tmp_path / "out") == 0
    assert command(refine.main, run, data, tmp_path / "refined", "--face-crop") == 0
    for number, file in enumerate(sorted((tmp_path / "refined").rglob("*.png"))):
        found = np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(kept["results"][number].numpy(), found)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["face_crop"] is True
