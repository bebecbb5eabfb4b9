"""Precedence, origins, and the one line for each wrong command line."""

import json
from pathlib import Path

import pytest

from engine import config as configuration
from engine.checkpoint import save
from engine.config import table
from engine.errors import InputError
from engine.systems.refiner import RefinerConfig
from engine.systems.registry import SYSTEMS, build, config_from_json
from engine.training.resolve import resolve
from engine.training.schedule import learning_rate
from tests.support.training_fakes import tiny_config


def test_precedence_and_origins() -> None:
    config, origins = resolve(["--fused", "--preset", "paper", "--lr=0.5", "--no-mirror", "--batch_size", "3"])
    assert (config.filters, origins["filters"]) == (64, "preset paper")
    assert (config.steps, origins["steps"]) == (1_000_000, "preset paper")
    assert (config.lr, origins["lr"]) == (0.5, "command line")
    assert (config.mirror, origins["mirror"]) == (False, "command line")
    assert (config.batch_size, origins["batch_size"]) == (3, "command line")
    assert (config.gamma, origins["gamma"]) == (0.5, "default")
    assert resolve(["--fused"])[0].filters == RefinerConfig.PRESETS["quick"]["filters"]


def test_a_value_given_as_the_default_counts_as_given() -> None:
    assert resolve(["--fused", "--steps", str(RefinerConfig.PRESETS["quick"]["steps"])])[1]["steps"] == "command line"


def test_the_paper_preset_is_the_paper() -> None:
    config, _ = resolve(["--fused", "--preset", "paper"])
    assert (config.batch_size, config.resolution, config.lr, config.lr_schedule) == (25, 64, 1e-3, "constant")


@pytest.mark.parametrize(
    ("flags", "model", "inject"),
    [
        ([], "C", (8, 16, 32)),
        (["--model", "A"], "A", (8,)),
        (["--model", "C"], "C", (8, 16, 32)),
        (["--inject", "16,8"], "B", (8, 16)),
        (["--inject", "8,32"], "custom", (8, 32)),
        (["--resolution", "16"], "A", (8,)),
    ],
)
def test_model_and_inject_say_the_same(flags: list[str], model: str, inject: tuple[int, ...]) -> None:
    config, _ = resolve(["--fused", *flags])
    assert (config.model, config.inject) == (model, inject)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--fused .* or --eager"),
        (["--fused", "--eager"], "exclude each other"),
        (["--fused", "--resolution", "48"], "choose 16, 32, 64, 128 or 256"),
        (["--fused", "--model", "C", "--resolution", "32"], "cannot inject at 32"),
        (["--fused", "--inject", "16"], "begin the list with it"),
        (["--fused", "--inject", "8,x"], "expected sizes such as 8,16"),
        (["--fused", "--model", "A", "--inject", "8"], "give one"),
        (["--fused", "--model", "custom"], "--inject"),
        (["--fused", "--precision", "tf32", "--device", "cpu"], "tf32"),
        (["--fused", "--system", "gan"], "unknown system 'gan'; choose from refiner"),
        (["--fused", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["--fused", "--gamma", "nan"], "--gamma must be between 0 and 1"),
        (["--fused", "--lr", "-1"], "--lr must be positive"),
        (["--fused", "--lr", "inf"], "--lr must be positive"),
        (["--fused", "--ema", "1"], "below 1"),
        (["--fused", "--landmark-weight", "nan"], "--landmark-weight must not be negative"),
        (["--fused", "--bach-size", "3"], "--batch-size"),
        (["--fused", "--resume"], "--out"),
    ],
)
def test_wrong_usage_is_one_line(flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        resolve(flags)
    assert "\n" not in str(caught.value)


def test_config_json_round_trip(tmp_path: Path) -> None:
    config, origins = resolve(["--fused", "--data", "photos", "--out", str(tmp_path), "--inject", "8,32"])
    configuration.write(config, origins, tmp_path / "config.json")
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["data"] == {"value": "photos", "origin": "command line"}
    assert saved["steps"]["origin"] == "preset quick"
    assert "resume" not in saved and "eager" not in saved
    loaded = config_from_json(saved)
    assert loaded.to_json(origins) == config.to_json(origins)
    assert (loaded.inject, loaded.data) == ((8, 32), Path("photos"))


@pytest.mark.parametrize("broken", [[], {"steps": 3}, {"steps": {}}, None])
def test_a_config_json_of_something_else(broken: object) -> None:
    with pytest.raises(InputError, match="not the configuration"):
        config_from_json(broken)


def test_the_table_names_every_value_under_its_origin() -> None:
    text = table(*resolve(["--fused", "--steps", "7"]))
    command_line = text[text.index("command line") :]
    assert "steps 7" in command_line and "gamma" not in command_line
    assert all(f"{name} " in text for name in ("gamma", "inject", "ema", "loader"))
    assert max(map(len, text.splitlines())) <= 120


def run_folder(path: Path, *flags: str) -> list[str]:
    config = tiny_config(*flags, mode="--fused", out=path)
    save(path, 5, build(config, "cpu").weights(), {}, config)
    return ["--resume", "--out", str(path)]


def test_resume_takes_the_checkpoint_then_the_command_line(tmp_path: Path) -> None:
    resume = run_folder(tmp_path, "--gamma", "0.7", "--lr", "0.01")
    config, origins = resolve([*resume, "--lr", "0.002"])
    assert (config.gamma, origins["gamma"]) == (0.7, "checkpoint")
    assert (config.lr, origins["lr"]) == (0.002, "command line")
    assert (config.fused, config.eager, config.inject, config.filters) == (True, False, (8,), 2)
    assert resolve([*resume, "--eager"])[0].fused is False
    assert resolve([*resume, "--fused", "--model", "A", "--filters", "2"])[0].filters == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--filters", "4"], "--filters 2, which cannot become 4"),
        (["--resolution", "32"], "--resolution 16"),
        (["--channels", "1"], "--channels"),
        (["--inject", "8,16", "--resolution", "32"], "cannot become"),
        (["--seed", "3"], "--seed"),
        (["--hidden", "8"], "--hidden"),
        (["--landmarks"], "--landmarks no, which cannot become yes"),
        (["--landmark-weight", "1"], "landmark loss"),
        (["--preset", "paper"], "keeps its preset"),
        (["--fused", "--eager"], "exclude"),
    ],
)
def test_resume_refuses_what_would_break_the_run(tmp_path: Path, flags: list[str], message: str) -> None:
    resume = run_folder(tmp_path)
    with pytest.raises(InputError, match=message):
        resolve([*resume, *flags])


def test_levels_of_a_preset_fit_other_resolutions() -> None:
    words = ["--fused", "--preset", "good", "--resolution"]
    widths, depths = (
        {r: getattr(resolve([*words, str(r)])[0], name) for r in (32, 64, 128)} for name in ("g_widths", "g_depths")
    )
    assert widths[32] == widths[64][:3] and widths[128] == (*widths[64], widths[64][-1])
    assert depths[32] == depths[64][:3] and depths[128] == (*depths[64], depths[64][-1])
    with pytest.raises(InputError, match="--g-widths needs a number"):
        resolve([*words, "64", "--g-widths", "8,8"])


def test_learning_rates() -> None:
    constant = tiny_config("--lr", "0.01")
    assert [learning_rate(constant, step) for step in (1, 500, 1000)] == [0.01] * 3
    step = tiny_config("--lr", "1", "--lr-schedule", "step", "--lr-every", "10", "--lr-decay", "0.5")
    assert [learning_rate(step, s) for s in (1, 10, 11, 20, 21)] == [1, 1, 0.5, 0.5, 0.25]
    cosine = tiny_config("--lr", "1", "--lr-schedule", "cosine", "--lr-warmup", "10", "--steps", "110")
    values = [learning_rate(cosine, s) for s in (1, 5, 10, 60, 110)]
    assert values == pytest.approx([0.1, 0.5, 1, 0.5, 0])
    linear = tiny_config("--lr", "2", "--lr-schedule", "linear", "--steps", "100")
    assert [learning_rate(linear, s) for s in (1, 50, 51, 75, 100)] == pytest.approx([2, 2, 1.96, 1, 0])
    floor = tiny_config("--lr", "2", "--lr-schedule", "linear", "--steps", "100", "--lr-floor", "0.3")
    assert [learning_rate(floor, s) for s in (1, 75, 90, 100)] == pytest.approx([2, 1, 0.6, 0.6])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("filters", [4]),
        ("filters", "4"),
        ("filters", 4.0),
        ("filters", True),
        ("filters", None),
        ("filters", 10**30),
        ("mirror", 1),
        ("mirror", "yes"),
        ("lr", "0.001"),
        ("lr", [0.1]),
        ("preset", "slow"),
        ("preset", 1),
        ("channels", 2),
        ("channels", True),
        ("data", 3),
        ("data", "a\0b"),
        ("inject", 8),
        ("inject", ["8"]),
        ("inject", [8] * 1000),
        ("split", {}),
    ],
)
def test_a_saved_value_of_another_type(name: str, value: object) -> None:
    saved = resolve(["--fused"])[0].to_json()
    saved[name]["value"] = value
    with pytest.raises(InputError, match=f"^{name} is ") as caught:
        config_from_json(saved)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("saved", [None, [], 7, {}, {"system": "refiner"}, {"system": {"value": "refiner"}, "lr": 1}])
def test_what_is_no_saved_configuration(saved: object) -> None:
    with pytest.raises(InputError, match="not the configuration of a Kiln run"):
        config_from_json(saved)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_saved_configuration_is_read_as_it_was(system: str) -> None:
    config = resolve(["--fused", "--system", system, "--data", "/some/photos", "--lr", "1"])[0]
    assert config_from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("system", "name"), [("refiner", "filters"), ("began", "hidden"), ("dcgan", "noise"), ("cyclegan", "blocks")]
)
def test_numbers_that_no_network_has(system: str, name: str) -> None:
    with pytest.raises(InputError, match=f"--{name} must be at most"):
        resolve(["--fused", "--system", system, f"--{name}", "1000000000"])
