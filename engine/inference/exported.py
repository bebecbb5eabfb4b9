"""Reads the folders that `kiln export` writes: config.json, model.safetensors, a model card and framing.json."""

from pathlib import Path
from typing import Any

from torch import Tensor

from engine.checkpoint import FILE_BYTES, digest, parse_weights
from engine.config import TrainConfig
from engine.errors import InputError
from engine.host.input_files import UnreadableFile, read_input
from engine.host.reading import read_json
from engine.systems.registry import config_from_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1
DIGEST = "weights_sha256"  # the key of config.json that holds the SHA-256 of the file of weights
PART = "generator"  # what the names of all weights begin with


def is_exported(path: Path) -> bool:
    """Whether `path` is a folder that `kiln export` wrote, or a copy of such a folder."""
    return (path / WEIGHTS).exists()


def read(folder: Path) -> tuple[TrainConfig, dict[str, Tensor]]:
    """The configuration, and the weights by name, of an exported folder.

    Kiln before 0.3 wrote no digest of the weights; of such a folder any finite weights that fit are taken.
    Raises InputError when a file is missing or damaged, or when the weights are not those that were exported.
    """
    try:
        saved = read_json(folder / CONFIG)
        config = _config(saved)
        data = read_input(folder / WEIGHTS, FILE_BYTES)
        if saved.get(DIGEST, digest(data)) != digest(data):
            raise InputError(f"{WEIGHTS} was altered (its SHA-256 differs from that in {CONFIG})")
        weights = parse_weights(data)
        if others := [name for name in weights if not name.startswith(f"{PART}.")]:
            raise InputError(f"{WEIGHTS} has the weights {others[0][:80]}, which no exported model has")
    except InputError as error:
        wrong = str(error).removeprefix(f"{folder}/")
        raise InputError(f"{folder} is no exported model: {wrong}; export it again") from None
    except UnreadableFile as error:
        raise InputError(f"{folder}: {WEIGHTS}: {error}") from None
    return config, weights


def _config(saved: Any) -> TrainConfig:
    """The configuration in the content of an exported config.json. Raises InputError, which names no folder."""
    if not isinstance(saved, dict) or (not isinstance(saved.get("config"), dict) and saved.get("format") == FORMAT):
        raise InputError(f"{CONFIG} does not describe one")
    if saved.get("format") != FORMAT:
        raise InputError(f"its format is {str(saved.get('format'))[:40]}, this version reads {FORMAT}")
    try:
        return config_from_json({name: {"value": value} for name, value in saved["config"].items()})
    except InputError as error:
        raise InputError(f"{CONFIG}: {error}") from None
