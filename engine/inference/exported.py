"""Reads the folders that `kiln export` writes: config.json, model.safetensors, a model card and framing.json."""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from engine.config import TrainConfig
from engine.errors import InputError
from engine.host.input_files import refusal
from engine.systems.registry import config_from_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1


def is_exported(path: Path) -> bool:
    """Whether `path` is a folder that `kiln export` wrote, or a copy of such a folder."""
    return (path / WEIGHTS).exists()


def read(folder: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """The configuration, and the weights by name, of an exported folder. Raises InputError when it is damaged."""
    for name in (CONFIG, WEIGHTS):
        if wrong := refusal(folder / name):
            raise InputError(f"{folder}: {name}: {wrong}")
    try:
        saved = json.loads((folder / CONFIG).read_text())
        if saved["format"] != FORMAT:
            raise InputError(f"{folder}: its format is {saved['format']}, this version reads {FORMAT}")
        config = config_from_json({name: {"value": value} for name, value in saved["config"].items()})
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise InputError(f"{folder}: {Path(error.filename).name} is missing; export the model again") from None
    except (ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder} is no exported model: {error}; export it again") from None
    return config, weights
