"""Reads the folders that `kiln export` writes: config.json, model.safetensors, a model card and framing.json.

With --all-networks there is also other_networks.safetensors: what only a training needs, for `kiln train --init`.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.checkpoint import FILE_BYTES, digest, parse_weights
from engine.config import TrainConfig
from engine.errors import InputError
from engine.host.input_files import UnreadableFile, read_input
from engine.host.reading import read_json
from engine.systems.registry import config_from_json

WEIGHTS, OTHERS, CONFIG = "model.safetensors", "other_networks.safetensors", "config.json"
FORMAT = 1
# the keys of config.json that hold the SHA-256 of the files of weights
DIGEST, OTHERS_DIGEST = "weights_sha256", "other_networks_sha256"
PART = "generator"  # what the names of all weights in model.safetensors begin with
SHIPPED = Path(__file__).parent.parent / "shipped"  # the models that Kiln ships


def is_exported(path: Path) -> bool:
    """Whether `path` is a folder that `kiln export` wrote, a copy of one, or of a shipped model, whole or not."""
    return (path / WEIGHTS).exists() or path.parent == SHIPPED


def read(folder: Path) -> tuple[TrainConfig, dict[str, Tensor]]:
    """The configuration, and the weights by name, of an exported folder.

    Kiln before 0.3 wrote no digest of the weights; of such a folder any finite weights that fit are taken.
    Raises InputError when a file is missing or damaged, or when the weights are not those that were exported.
    """
    with _naming(folder):
        saved = read_json(folder / CONFIG)
        config = _config(saved)
        weights = _weights(folder / WEIGHTS, saved.get(DIGEST))
        if others := [name for name in weights if not name.startswith(f"{PART}.")]:
            raise InputError(f"{WEIGHTS} has the weights {others[0][:80]}, which no exported model has")
    return config, weights


def read_others(folder: Path) -> dict[str, Tensor]:
    """The weights of the networks that only a training needs; {} for a folder that was exported without them.

    Raises InputError as `read`.
    """
    with _naming(folder):
        saved = read_json(folder / CONFIG)
        _config(saved)
        if OTHERS_DIGEST not in saved and not (folder / OTHERS).exists():
            return {}
        return _weights(folder / OTHERS, saved.get(OTHERS_DIGEST))


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """A block whose errors say that `folder` is no exported model."""
    try:
        yield
    except InputError as error:
        wrong = str(error).removeprefix(f"{folder}/")
        again = "install Kiln again" if folder.parent == SHIPPED else "export it again"
        raise InputError(f"{folder} is no exported model: {wrong}; {again}") from None


def _weights(file: Path, expected: Any) -> dict[str, Tensor]:
    """The weights in a file of this digest; None accepts any. Raises InputError, which names the file."""
    if not file.exists():
        raise InputError(f"{file.name} is missing")
    try:
        data = read_input(file, FILE_BYTES)
    except UnreadableFile as error:
        raise InputError(f"{file.name}: {error}") from None
    if expected not in (None, digest(data)):
        raise InputError(f"{file.name} was altered (its SHA-256 differs from that in {CONFIG})")
    return parse_weights(data, halves=True)


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
