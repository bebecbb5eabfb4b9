"""engine.load and kiln export: a trained model as a module, and as a folder to publish."""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

import engine
from engine import checkpoint, export, refine
from engine.data import avatars
from engine.errors import InputError
from engine.host import atomic_files
from engine.inference.faces import Framing
from engine.inference.trained import load_trained
from engine.kernels.resize_conv_act.packed_weights import KEPT
from engine.systems.registry import SYSTEMS, build
from engine.training.resolve import resolve
from tests.support.derivatives import WAYS
from tests.support.tiny_run import command, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose moving average differs from its last weights."""
    folder = make_run(tmp_path_factory.mktemp("run") / "run", data=Path("/private/photos"))
    found = checkpoint.load(folder)
    weights = {n: t + 0.01 if n.startswith("ema.") else t for n, t in found.weights.items()}
    checkpoint.save(folder, 8, weights, found.state, found.config)
    return folder


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_load(run):
    model = engine.load(run)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    refined = model(images())
    assert refined.shape == (3, 3, 32, 32) and refined.abs().max() <= 1 and not refined.requires_grad
    torch.testing.assert_close(refined, engine.load(run, fused=False)(images()), rtol=0, atol=1e-5)
    assert not torch.equal(refined, engine.load(run, ema=False)(images()))
    assert torch.equal(refined, engine.load(checkpoint.latest(run))(images()))


def test_folded_weights_are_kept(run):
    model = engine.load(run)
    first = model(images())
    kept = [packed for p in model.parameters() for packed in KEPT.get(p, {}).values()]
    addresses = [packed.data_ptr() for packed in kept]
    assert kept and torch.equal(model(images()), first)
    assert [packed.data_ptr() for p in model.parameters() for packed in KEPT.get(p, {}).values()] == addresses


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_every_system_is_exported(system, tmp_path):
    """The folder's model is the run's, and its files are those of a hub."""
    words = ["--eager", "--filters", "4", "--resolution", "32", "--device", "cpu", "--out", str(tmp_path / "run")]
    config, _ = resolve(["--system", system, *words])
    built = build(config, "cpu")
    checkpoint.save(config.out, 1, built.weights(), built.state_dict(), config)
    folder = engine.export.export(config.out, tmp_path / "out")
    assert {f.name for f in folder.iterdir()} == {"config.json", "model.safetensors", "README.md", "framing.json"}
    model, of = engine.load(config.out), engine.load(folder)
    assert type(model) is type(of)
    expected, found = model.state_dict(), of.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(expected[n], found[n]) for n in expected)
    assert (folder / "README.md").read_text().startswith("---\nlibrary_name: kiln-engine\n")


def test_export_command(run, tmp_path, capsys):
    assert command(export.main, run, tmp_path / "out") == 0
    assert "model.safetensors" in capsys.readouterr().out
    text = "".join((tmp_path / "out" / name).read_text() for name in ("config.json", "README.md"))
    assert "private" not in text and str(run) not in text
    weights = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    ema = {n.partition(".")[2]: t for n, t in checkpoint.load(run).weights.items() if n.startswith("ema.")}
    assert {n.removeprefix("generator.") for n in weights} == ema.keys()
    assert all(torch.equal(weights[f"generator.{n}"], t) for n, t in ema.items())
    assert torch.equal(engine.load(tmp_path / "out")(images()), engine.load(run)(images()))
    assert load_trained(tmp_path / "out").config.data is None

    avatars.write(tmp_path / "faces", 2, 48, 0)
    assert command(refine.main, tmp_path / "out", tmp_path / "faces" / "game", tmp_path / "refined") == 0
    assert len(list((tmp_path / "refined" / "images").iterdir())) == 2


def test_export_refusals(run, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert command(export.main, run, tmp_path / "full") == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert command(export.main, tmp_path, tmp_path / "out") == 2
    assert "holds no checkpoint" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "is no exported model"),
        (lambda f: (f / "config.json").write_text(json.dumps({"format": 9})), "its format is 9"),
        (lambda f: (f / "model.safetensors").write_bytes(b"0123456789"), "is no exported model"),
        (lambda f: safetensors.torch.save_file({}, f / "model.safetensors"), "model.safetensors was altered"),
    ],
)
def test_damaged_exports(run, tmp_path, damage, says):
    folder = export.export(run, tmp_path / "out")
    damage(folder)
    with pytest.raises(InputError, match=says):
        engine.load(folder)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def put_weights(folder: Path, weights: dict[str, torch.Tensor], *, signed: bool = False) -> None:
    """Replace the weights of an exported folder, whose digest goes, as in older folders, or fits where `signed`."""
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    saved = json.loads((folder / "config.json").read_text())
    del saved["weights_sha256"]
    if signed:
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        saved["weights_sha256"] = digest
    (folder / "config.json").write_text(json.dumps(saved))


def change_config(folder: Path, **values: object) -> None:
    saved = json.loads((folder / "config.json").read_text())
    saved["config"] |= values
    (folder / "config.json").write_text(json.dumps(saved))


def with_one(value: float):
    """A change that gives one weight this value."""

    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        first = min(weights)
        weights[first].view(-1)[0] = value
        return weights

    return change


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_one(float("nan")), r"generator\.\S+ are not finite"),
        (with_one(float("-inf")), r"generator\.\S+ are not finite"),
        (lambda weights: weights | {"extra": torch.ones(1)}, "has the weights extra"),
        (lambda weights: weights | {"generator.extra": torch.ones(1)}, "of another configuration"),
        (lambda weights: dict(list(weights.items())[1:]), "of another configuration"),
        (lambda weights: {name: tensor.double() for name, tensor in weights.items()}, "are float64, not float32"),
        (lambda weights: {name: tensor[None].clone() for name, tensor in weights.items()}, "of another configuration"),
    ],
)
def test_weights_that_no_export_has(run, tmp_path, change, says, signed):
    folder = export.export(run, tmp_path / "out")
    put_weights(folder, change(weights_of(folder)), signed=signed)
    with pytest.raises(InputError, match=says):
        engine.load(folder)


def test_every_bit_of_the_weights_counts(run, tmp_path):
    folder = export.export(run, tmp_path / "out")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for place in range(7, len(whole), len(whole) // 40):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"model\.safetensors was altered"):
            engine.load(folder)


def test_an_export_without_a_digest_still_loads(run, tmp_path):
    """Earlier versions wrote none."""
    folder = export.export(run, tmp_path / "out")
    expected = engine.load(folder)(images())
    put_weights(folder, weights_of(folder))
    assert torch.equal(engine.load(folder)(images()), expected)


@pytest.mark.parametrize(
    "values",
    [
        {"filters": 10**9},
        {"filters": 16_000},
        {"hidden": -1},
        {"resolution": 48},
        {"resolution": 64},
        {"inject": [7]},
        {"inject": []},
        {"system": "simgan"},
        {"model": "Z"},
        {"unknown": 1, "filters": [4]},
    ],
)
def test_configurations_that_do_not_fit_the_weights(run, tmp_path, values, monkeypatch):
    """One line, and no memory for a network that the numbers would make."""
    folder = export.export(run, tmp_path / "out")
    change_config(folder, **values)
    reserved = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=re.escape(str(folder))) as caught:
        engine.load(folder)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - reserved < 200_000  # KB


def test_an_export_that_was_cut_short_is_repeated(run, tmp_path, monkeypatch):
    """A disk that gets full leaves no folder that loads, and none that is in the way."""
    whole = export.export(run, tmp_path / "whole")
    write = atomic_files.write_bytes

    def full(path: Path, content: bytes) -> None:
        if path.name == "model.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(atomic_files, "write_bytes", full)
        assert command(export.main, run, tmp_path / "out") == 2
    with pytest.raises(InputError):
        engine.load(tmp_path / "out")
    assert command(export.main, run, tmp_path / "out") == 0
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(whole))


@pytest.mark.parametrize(
    "content", ['{"share": 0, "x": 0.5, "y": 0.5}', '{"share": "a", "x": 0.5, "y": 0.5}', "[]", "{", '{"share": 0.5}']
)
def test_a_damaged_framing(tmp_path, content):
    (tmp_path / "framing.json").write_text(content)
    with pytest.raises(InputError, match=r"framing\.json is damaged"):
        Framing.of(tmp_path)


def test_a_run_whose_newest_checkpoint_is_damaged(run, tmp_path, capsys):
    """The model of the earlier one is taken, and a line says so."""
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "checkpoints" / "step_00000008" / "state.pt").unlink()
    for use in (engine.load, lambda path: export.export(path, tmp_path / "out")):
        use(copy)
        told = capsys.readouterr().err
        assert "step_00000008: state.pt is missing" in told and told.count("\n") == 1
    assert load_trained(copy).step == 7


@pytest.mark.parametrize("fused", [True, False])
def test_a_loaded_model_is_differentiable(run, fused):
    """In its images, in every mode: the way that is differentiated is the plain one's, and no derivative is zero."""
    model, plain = engine.load(run, fused=fused), engine.load(run, fused=False)
    x = images(2) / 2
    direction = torch.randn(x.shape)
    for way in (WAYS[name] for name in ("dual", "jvp", "grad", "vjp", "is_grads_batched", "forward over reverse")):
        found, expected = way(model, x, direction), way(plain, x, direction)
        assert expected.norm() > 0
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
