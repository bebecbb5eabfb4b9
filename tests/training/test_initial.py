"""--init and --freeze-d: which weights and values a run starts with, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from engine import checkpoint, export, train
from engine.config import TrainConfig
from engine.errors import InputError
from engine.systems.registry import SYSTEMS, build
from engine.training import initial
from engine.training.resolve import resolve
from tests.support.data_images import write_pictures
from tests.support.tiny_run import command, make_run
from tests.support.training_fakes import batch_of, tiny_config

CRITIC = {"critic_weight": 0.1, "critic_filters": 4, "lambda_r": 0.7, "lr": 2e-3, "lr_schedule": "cosine"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "run", **CRITIC)
    # the average differs from the last weights, as after training
    stored = checkpoint.load(folder)
    for name, tensor in stored.weights.items():
        if name.startswith("ema."):
            tensor.mul_(0.5)
    return checkpoint.save(folder, 8, stored.weights, stored.state, stored.config).parent.parent


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    folder = run.parent / "exported"
    assert command(export.main, run, folder, "--all-networks") == 0
    return folder


def resolved(model: Path, *words: str) -> tuple[TrainConfig, dict[str, str]]:
    return resolve(["--eager", "--device", "cpu", "--threads", "1", "--init", str(model), *words])


def test_values_are_those_of_the_model(run: Path) -> None:
    config, origins = resolved(run, "--steps", "33", "--lambda-r", "0.2")
    assert (config.resolution, config.filters, config.inject, config.critic_weight) == (32, 4, (8, 16), 0.1)
    assert config.lr == pytest.approx(2e-3 / 4) and config.lr_schedule == "cosine"
    assert (config.lambda_r, config.steps) == (0.2, 33)
    assert origins["filters"] == origins["lr"] == "init" and origins["lambda_r"] == "command line"
    assert origins["checkpoint_every"] == "preset quick"
    assert resolved(run, "--lr", "0.1")[0].lr == 0.1


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_all_networks_start_from_the_model(run: Path, exported: Path, kind: str) -> None:
    model = run if kind == "run" else exported
    config, _ = resolved(model)
    system, weights = build(config, "cpu"), checkpoint.load(run).weights
    said = initial.load(system, str(model))
    read = exported if kind == "exported" else run / "checkpoints" / "step_00000008"
    assert said == f"{read}: weights of discriminator, generator, critic, ema"
    for name, tensor in system.weights().items():
        # an export holds one version of the generator: its average
        source = name.replace("generator.", "ema.", 1) if kind == "exported" else name
        assert torch.equal(tensor, weights[source]), name
    assert system.k == 0 and system.steps_done == 0
    assert not any(optimiser.state for optimiser in system.optimisers.values())


def test_an_export_of_the_generator_alone_says_what_starts_anew(run: Path, tmp_path: Path) -> None:
    assert command(export.main, run, tmp_path / "g") == 0
    system = build(resolved(tmp_path / "g")[0], "cpu")
    before = {name: tensor.clone() for name, tensor in system.weights().items()}
    said = initial.load(system, str(tmp_path / "g"))
    assert said.endswith(
        "weights of generator, ema; discriminator, critic start from scratch, for it holds no weights of those"
    )
    after = system.weights()
    assert all(
        torch.equal(before[name], after[name]) for name in before if name.startswith(("discriminator", "critic"))
    )
    assert not torch.equal(before["generator.first.weight"], after["generator.first.weight"])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_exports_are_read_as_float32(run: Path, tmp_path: Path, dtype: str) -> None:
    assert command(export.main, run, tmp_path / "half", "--dtype", dtype, "--all-networks") == 0
    stored = safetensors.torch.load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16 if dtype == "fp16" else torch.bfloat16}
    system = build(resolved(tmp_path / "half")[0], "cpu")
    initial.load(system, str(tmp_path / "half"))
    for name, tensor in checkpoint.load(run).weights.items():
        if not name.startswith("generator."):
            loaded = system.weights()[name]
            assert loaded.dtype == torch.float32
            torch.testing.assert_close(loaded, tensor, rtol=1e-3 if dtype == "fp16" else 1e-2, atol=1e-6)


def test_weights_too_large_for_half_precision_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = make_run(tmp_path / "run")
    stored = checkpoint.load(folder)
    stored.weights["ema.first.bias"].fill_(1e6)
    checkpoint.save(folder, 8, stored.weights, stored.state, stored.config)
    assert command(export.main, folder, tmp_path / "half", "--dtype", "fp16") == 2
    assert "too large for fp16; take bf16 or fp32" in capsys.readouterr().err
    assert not (tmp_path / "half").exists()


def test_a_run_trains_on_from_a_model_and_resumes_as_itself(run: Path, exported: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("nvidia.dali")
    data, out = write_pictures(tmp_path / "data", 20), tmp_path / "out"
    words = ["--eager", "--device", "cpu", "--threads", "1", "--data", data, "--sample-every", "0", "--freeze-d", "2"]
    assert command(train.main, *words, "--init", exported, "--steps", "2", "--out", out) == 0
    assert f"init    {exported}: weights of discriminator, generator, critic, ema" in capsys.readouterr().out
    shutil.move(exported, tmp_path / "gone")
    try:
        # what was started needs the model no more
        assert command(train.main, "--resume", "--steps", "3", "--out", out) == 0
        said = capsys.readouterr().out
        assert "init    " not in said and "freeze_d 2" in said
    finally:
        shutil.move(tmp_path / "gone", exported)
    first, last = checkpoint.load(run).weights, checkpoint.load(out).weights
    for layer in ("encoder.first", "encoder.blocks.0"):
        assert torch.equal(first[f"discriminator.{layer}.weight"], last[f"discriminator.{layer}.weight"])
    assert not torch.equal(
        first["discriminator.encoder.blocks.1.weight"], last["discriminator.encoder.blocks.1.weight"]
    )
    assert torch.equal(first["critic.second.weight"], last["critic.second.weight"])
    assert not torch.equal(first["critic.third.weight"], last["critic.third.weight"])


@pytest.mark.parametrize("mode", ["--eager", "--fused"])
@pytest.mark.parametrize("system", list(SYSTEMS))
def test_frozen_layers_stay_and_the_others_learn(system: str, mode: str) -> None:
    config = dataclasses.replace(tiny_config(system=system, mode=mode), freeze_d=1)
    trained = build(config, "cpu")
    frozen = {id(p) for net in trained.networks().values() for p in net.parameters() if not p.requires_grad}
    before = {name: [p.detach().clone() for p in net.parameters()] for name, net in trained.networks().items()}
    for step in range(4):
        losses = trained.step(batch_of(config, step))
        assert all(value.isfinite() for value in losses.values())
    assert frozen
    for name, net in trained.networks().items():
        for old, parameter in zip(before[name], net.parameters(), strict=True):
            assert torch.equal(old, parameter) or id(parameter) not in frozen, name
        assert any(not torch.equal(old, p) for old, p in zip(before[name], net.parameters(), strict=True)), name
    still = {id(p) for net in trained.networks().values() for p in net.parameters() if not p.requires_grad}
    assert still == frozen  # what the step freezes for a while it gives back as it was


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--filters", "16"], "has --filters 4, which cannot become 16; leave --filters out"),
        (["--resolution", "64"], "has --resolution 32, which cannot become 64"),
        (["--model", "A"], "has --inject 8,16, which cannot become 8"),
        (["--system", "began"], "is of --system refiner, which cannot become began"),
        (["--freeze-d", "-1"], "--freeze-d must not be negative"),
    ],
)
def test_other_networks_are_refused(run: Path, words: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        resolved(run, *words)


def test_freezing_everything_is_refused() -> None:
    config = dataclasses.replace(tiny_config(), freeze_d=99)
    with pytest.raises(InputError, match="--freeze-d 99 leaves nothing to train: discriminator has"):
        build(config, "cpu")


def test_damaged_models_are_refused(exported: Path, tmp_path: Path) -> None:
    def damaged(name: str, content: bytes | None) -> Path:
        folder = tmp_path / f"{name}-{content is None}"
        shutil.copytree(exported, folder)
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        return folder

    whole = (exported / "other_networks.safetensors").read_bytes()
    for folder, says in (
        (damaged("other_networks.safetensors", whole[:100]), "other_networks.safetensors was altered"),
        (damaged("other_networks.safetensors", None), "other_networks.safetensors is missing"),
        (damaged("model.safetensors", b""), "model.safetensors was altered"),
    ):
        with pytest.raises(InputError, match=says):
            initial.load(build(resolved(exported)[0], "cpu"), str(folder))
    with pytest.raises(InputError, match="does not exist"):
        resolved(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no shipped model has this name"):
        resolved(Path("portrats-b"))


def test_judges_of_other_widths_are_refused(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(exported, folder)
    others = safetensors.torch.load_file(folder / "other_networks.safetensors")
    others["critic.third.bias"] = torch.zeros(77)
    data = safetensors.torch.save(others)
    (folder / "other_networks.safetensors").write_bytes(data)
    saved = json.loads((folder / "config.json").read_text())
    saved["other_networks_sha256"] = checkpoint.digest(data)
    (folder / "config.json").write_text(json.dumps(saved))
    with pytest.raises(InputError, match="weights of 'critic' are of another configuration"):
        initial.load(build(resolved(folder)[0], "cpu"), str(folder))
