"""sample: the pixels of the network, the same for a seed whatever the batch size, all files marked as synthetic."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from engine import checkpoint, sample
from engine.inference import marking, sampling
from engine.inference.trained import load_trained
from engine.networks.began import BeganGenerator
from engine.systems.generation import between
from engine.systems.registry import build
from tests.support.generator_runs import configure, run_steps
from tests.support.tiny_run import command, make_run

SYSTEMS = ("began", "dcgan", "wgan")


def make_generator_run(folder, system="began", **values):
    """A run folder of a system trained for two steps, whose images differ as those of a longer training do."""
    built = build(configure(system, **values), "cpu")
    run_steps(built, 2)
    for name, tensor in built.weights().items():
        if "blocks" in name and name.endswith("weight") and system != "began":
            tensor.mul_(30)
    checkpoint.save(folder, 2, built.weights(), built.state_dict(), built.config)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: make_generator_run(folder / name, name, fused=True) for name in SYSTEMS}


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def drawn(run, count, *words, **options) -> list[np.ndarray]:
    """`count` images that the command draws from a run, each (H, W, 3)."""
    out = run.parent / f"{run.name}-{len(list(run.parent.iterdir()))}"
    assert command(sample.main, run, out, "-n", count, *words) == 0
    return [pixels(out / f"sample_{i:05d}.png") for i in range(count)]


@pytest.mark.parametrize(
    ("words", "prefix"), [([], "ema."), (["--weights", "raw"], "generator."), (["--eager"], "ema.")]
)
def test_the_pixels_are_those_of_the_network(runs, words, prefix):
    weights = checkpoint.load(runs["began"]).weights
    network = BeganGenerator(16, 2, 3, hidden=64, fused=False)
    network.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    model = load_trained(runs["began"]).module
    with torch.no_grad():
        made = network(model.noise(5, sampling.stream(3, 0))).clamp(-1, 1)
    wanted = ((made + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    found = drawn(runs["began"], 5, "--seed", 3, "--batch-size", 2, *words)
    assert max(np.abs(a - b).max() for a, b in zip(found, wanted, strict=True)) <= 1


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_same_seed_gives_the_same_images_in_every_batch_size_and_number(runs, system):
    many = drawn(runs[system], 5)
    for words in (["--batch-size", 1], ["--batch-size", 2], ["--interpolations", 1]):
        again = drawn(runs[system], 3, *words)
        assert max(np.abs(a - b).max() for a, b in zip(again, many, strict=False)) <= 1
    other = drawn(runs[system], 3, "--seed", 1)
    assert all(np.abs(a - b).max() > 1 for a, b in zip(other, many, strict=False))
    assert np.abs(many[0] - many[1]).max() > 1


def test_the_noise_of_images_and_of_interpolations_never_meet(runs):
    model = load_trained(runs["began"]).module
    rows = torch.cat([model.noise(4, sampling.stream(seed, which)) for seed in range(3) for which in range(2)])
    assert len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize("channels", [1, 3])
def test_contact_sheet(tmp_path, channels):
    run = make_generator_run(tmp_path / "run", channels=channels)
    assert command(sample.main, run, tmp_path / "out", "-n", 5) == 0
    sheet = pixels(tmp_path / "out" / "grid.png")
    assert Image.open(tmp_path / "out" / "grid.png").mode == {1: "L", 3: "RGB"}[channels]
    # 5 images: 3 in a row, 2 pixels between them
    assert sheet.shape[:2] == (2 * 18 - 2, 3 * 18 - 2)
    for index in range(5):
        top, left = index // 3 * 18, index % 3 * 18
        assert np.array_equal(sheet[top : top + 16, left : left + 16], pixels(tmp_path / f"out/sample_0000{index}.png"))
    assert sheet[18:, 36:].min() == 255 and sheet[16:18].min() == 255
    assert len(list((tmp_path / "out").iterdir())) == 6


@pytest.mark.parametrize("system", ["began", "dcgan"])
def test_interpolations(runs, tmp_path, system):
    words = ["-n", 0, "--interpolations", 2, "--frames", 5, "--seed", 7, "--batch-size", 3]
    assert command(sample.main, runs[system], tmp_path / "out", *words) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        f"interpolation_0{i}.{suffix}" for i in range(2) for suffix in ("png", "gif")
    }
    model = load_trained(runs[system]).module
    ends = model.noise(4, sampling.stream(7, 1))
    for index in range(2):
        strip = pixels(tmp_path / "out" / f"interpolation_0{index}.png")
        assert strip.shape == (16, 5 * 18 - 2, 3)
        made = model(between(model.distribution, ends[2 * index], ends[2 * index + 1], 5))
        wanted = ((made + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
        for frame in range(5):
            assert np.abs(strip[:, frame * 18 : frame * 18 + 16] - wanted[frame]).max() <= 1
        animation = Image.open(tmp_path / "out" / f"interpolation_0{index}.gif")
        # the path goes there and back without its ends twice; equal frames may be merged
        assert animation.size == (16, 16) and animation.info["loop"] == 0 and 1 < animation.n_frames <= 8


def test_the_way_between_uniform_noises_is_straight():
    a, b = torch.rand(6) * 2 - 1, torch.rand(6) * 2 - 1
    way = between("uniform", a, b, 5)
    for index in range(5):
        torch.testing.assert_close(way[index], a * (1 - index / 4) + b * index / 4)


def test_the_way_between_normal_noises_turns_evenly():
    a, b = torch.randn(50, generator=torch.Generator().manual_seed(0)), torch.randn(50)
    way = between("normal", a, b, 5)
    torch.testing.assert_close(way[0], a)
    torch.testing.assert_close(way[-1], b)
    lengths = way.norm(dim=1)
    torch.testing.assert_close(lengths, torch.linspace(a.norm().item(), b.norm().item(), 5))
    angles = [math.acos(torch.dot(x, y) / x.norm() / y.norm()) for x, y in itertools.pairwise(way)]
    assert angles == pytest.approx([angles[0]] * 4, rel=1e-3)
    torch.testing.assert_close(between("normal", a, a, 3), a.expand(3, 50))
    assert between("normal", a, -a, 3).isfinite().all()


def test_every_file_says_that_it_is_synthetic(runs, tmp_path):
    assert command(sample.main, runs["wgan"], tmp_path / "out", "-n", 2, "--interpolations", 1, "--frames", 2) == 0
    files = list((tmp_path / "out").iterdir())
    assert len(files) == 5
    for path in files:
        data = path.read_bytes()
        assert marking.SOURCE_TYPE.encode() in data and b"Kiln wgan" in data, path.name
        text = Image.open(path).info
        assert "Synthetic image" in (text["Description"] if path.suffix == ".png" else text["comment"].decode())


def test_other_systems_are_refused_in_one_line(tmp_path, capsys):
    run = make_run(tmp_path / "refiner")
    assert command(sample.main, run, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "refine" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [(["-n", -1], "--n"), (["-n", 0], "--interpolations"), (["--frames", 1], "--frames"), (["--seed", -1], "--seed"),
     (["--batch-size", 0], "--batch-size")],
)  # fmt: skip
def test_wrong_values_are_one_line(runs, tmp_path, words, named, capsys):
    assert command(sample.main, runs["began"], tmp_path / "out", *words) == 2
    message = capsys.readouterr().err
    assert named in message and message.count("\n") == 1


def test_nothing_is_overwritten(runs, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("mine")
    assert command(sample.main, runs["began"], tmp_path / "out") == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert command(sample.main, runs["began"], tmp_path / "out" / "kept.txt") == 2
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["kept.txt"]


def test_a_diverged_model_is_one_line(tmp_path, capsys):
    run = make_generator_run(tmp_path / "run")
    saved = checkpoint.load(run)
    saved.weights["ema.decoder.last.bias"].fill_(float("nan"))
    bad = checkpoint.save(run, 3, saved.weights, {}, saved.config)
    assert command(sample.main, bad, tmp_path / "out") == 2
    assert "ema.decoder.last.bias are not finite (NaN" in capsys.readouterr().err
    assert command(sample.main, run, tmp_path / "out", "-n", 1) == 0  # with the checkpoint before it
    assert f"skipping the damaged checkpoint {bad}" in capsys.readouterr().err


def test_weights_whose_images_are_not_finite_are_one_line(tmp_path, capsys):
    run = make_generator_run(tmp_path / "run")
    saved = checkpoint.load(run)
    saved.weights["ema.decoder.last.bias"].fill_(3e38)
    saved.weights["ema.decoder.last.weight"].fill_(3e38)
    checkpoint.save(run, 3, saved.weights, {}, saved.config)
    assert command(sample.main, run, tmp_path / "out") == 2
    assert "NaN" in capsys.readouterr().err
