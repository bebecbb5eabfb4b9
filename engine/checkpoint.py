"""Checkpoints: folders that are used only when every file in them is intact.

run/checkpoints/step_00001000/ holds weights.safetensors, state.pt (loadable with weights_only=True), config.json and
manifest.json. The manifest is written last and holds the size and SHA-256 of the other files. The folder is written
under a temporary name, synced and then renamed, so a crash at any moment leaves the earlier checkpoints intact and no
unfinished folder that looks complete.
"""

import hashlib
import io
import json
import os
import shutil
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from engine.config import Origins, TrainConfig
from engine.errors import InputError
from engine.host.input_files import refusal
from engine.systems.registry import config_from_json

FOLDER = "checkpoints"
FORMAT = 1
FILES = ("weights.safetensors", "state.pt", "config.json")
_TEMPORARY = ".writing-"


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint; tensors are on the CPU."""

    path: Path
    step: int
    weights: dict[str, Tensor]
    state: dict[str, Any]
    config: TrainConfig


def save(
    run_dir: Path,
    step: int,
    weights: dict[str, Tensor],
    state: dict[str, Any],
    config: TrainConfig,
    origins: Origins | None = None,
    keep: int = 3,
) -> Path:
    """Write the checkpoint of `step`, remove all but the `keep` newest ones up to this step, and return its folder.

    Raises OSError (full disk, read-only folder); the earlier checkpoints are then intact and no half-written folder is
    left.
    """
    folder = run_dir / FOLDER
    final = folder / f"step_{step:08d}"
    if final.exists():
        if problem(final) is None:
            return final
        shutil.rmtree(final)
    folder.mkdir(parents=True, exist_ok=True)
    for left_by_a_crash in folder.glob(_TEMPORARY + "*"):
        shutil.rmtree(left_by_a_crash, ignore_errors=True)
    contents = {
        "weights.safetensors": safetensors.torch.save({name: _flat(tensor) for name, tensor in weights.items()}),
        "state.pt": _serialise(state),
        "config.json": json.dumps(config.to_json(origins), indent=1).encode(),
    }
    manifest = {
        "format": FORMAT,
        "step": step,
        "system": config.system,
        "files": {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in contents.items()},
    }
    temporary = folder / f"{_TEMPORARY}{final.name}"
    try:
        temporary.mkdir()
        for name, data in contents.items():
            _write(temporary / name, data)
        _write(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
        _sync(temporary)
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(folder)
    _prune(folder, step, keep)
    return final


def latest(run_dir: Path, *, tell: bool = True) -> Path | None:
    """The newest checkpoint whose files all match its manifest, or None when the run has no checkpoint.

    tell: print each damaged checkpoint that is skipped. Raises InputError when all are damaged.
    """
    checkpoints = sorted(Path(run_dir).glob(f"{FOLDER}/step_*"), key=_step_of, reverse=True)
    for path in checkpoints:
        wrong = problem(path)
        if wrong is None:
            return path
        if tell:
            print(f"skipping the damaged checkpoint {path}: {wrong}", file=sys.stderr)
    if checkpoints:
        raise InputError(f"every checkpoint in {run_dir} is damaged ({wrong}); start a new run in another folder")
    return None


def problem(path: Path) -> str | None:
    """What is wrong with the checkpoint folder `path`; None when it is intact. Unchanged files are hashed only once."""
    return _verdict(path, tuple(_stamp(path / name) for name in ("manifest.json", *FILES)))


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Size, times of change and inode of a file: some change when it is written again. None for a missing file."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@lru_cache(maxsize=256)
def _verdict(path: Path, stamps: tuple[tuple[int, ...] | None, ...]) -> str | None:
    """What is wrong with a checkpoint folder whose files have these stamps; None when it is intact."""
    for name in ("manifest.json", *FILES):
        if wrong := refusal(path / name):
            return f"{name}: {wrong}"
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        files = manifest["files"]
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, this version reads {FORMAT}"
        if missing := [name for name in FILES if name not in files]:
            return f"its manifest does not list {missing[0]}"
        for name in FILES:
            data = (path / name).read_bytes()
            if len(data) != files[name]["bytes"]:
                return f"{name} is truncated ({len(data)} of {files[name]['bytes']} bytes)"
            if _digest(data) != files[name]["sha256"]:
                return f"{name} was altered (its SHA-256 differs from the manifest)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError):
        return "manifest.json is damaged"
    return None


def read_config(folder: Path) -> TrainConfig:
    """The configuration that config.json of a checkpoint folder or a run folder holds; no other file is read.

    Raises InputError when the file is not the configuration of a run, OSError when it cannot be read.
    """
    if wrong := refusal(folder / "config.json"):
        raise InputError(f"{folder / 'config.json'}: {wrong}")
    try:
        saved = json.loads((folder / "config.json").read_text())
    except ValueError:
        raise InputError(f"{folder / 'config.json'} is not the configuration of a Kiln run") from None
    return config_from_json(saved)


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint folder, or the newest good checkpoint of a run folder, to the CPU.

    Raises InputError when there is no checkpoint, or when it is truncated or altered.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give a run folder or one of its checkpoints")
    if not (path / "manifest.json").exists() and not path.name.startswith("step_"):
        newest = latest(path)
        if newest is None:
            raise InputError(f"{path} holds no checkpoint; give a run folder or one of its checkpoints")
        path = newest
    elif wrong := problem(path):
        raise InputError(f"the checkpoint {path} cannot be used: {wrong}; use another one of the run")
    manifest = json.loads((path / "manifest.json").read_text())
    try:
        weights = safetensors.torch.load_file(path / "weights.safetensors")
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        config = read_config(path)
    except (ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(f"the checkpoint {path} cannot be read: {error}") from None
    if manifest["system"] != config.system:
        names = f"{manifest['system']!r} in manifest.json, {config.system!r} in config.json"
        raise InputError(f"the checkpoint {path} cannot be used: its system is {names}; use another one of the run")
    return Checkpoint(path, manifest["step"], weights, state, config)


def _step_of(path: Path) -> int:
    """The step in a checkpoint folder's name; -1 when it holds no number."""
    digits = path.name.removeprefix("step_")
    return int(digits) if digits.isdigit() else -1


def _prune(folder: Path, newest: int, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints up to the step `newest`."""
    # a checkpoint after `newest` can only be a damaged one that a resume skipped: it is neither counted nor removed
    old = sorted(path for path in folder.glob("step_*") if 0 <= _step_of(path) <= newest)
    for path in old[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous()


def _serialise(state: dict[str, Any]) -> bytes:
    """The bytes of state.pt."""
    buffer = io.BytesIO()
    torch.save(_to_cpu(state), buffer)
    return buffer.getvalue()


def _to_cpu(value: Any) -> Any:
    """The value with copies on the CPU of all tensors in it; dicts, lists and tuples are searched."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu").clone()
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_cpu(item) for item in value)
    return value


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write a file, and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Wait until the names of the files in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
