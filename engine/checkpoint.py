"""Checkpoints: folders that are used only when every file in them is intact.

run/checkpoints/step_00001000/ holds weights.safetensors, state.pt (loadable with weights_only=True), config.json and
manifest.json. The manifest is written last and holds the size and SHA-256 of the other files. The folder is written
under a temporary name, synced and then renamed (engine.host.atomic_files), so a crash at any moment leaves the earlier
checkpoints intact and no unfinished folder that looks complete. A reader takes the newest checkpoint that is intact.
"""

import hashlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from engine.config import Origins, TrainConfig
from engine.errors import InputError
from engine.host import atomic_files
from engine.host.input_files import UnreadableFile, read_input
from engine.host.reading import read_json
from engine.systems.registry import config_from_json

T = TypeVar("T")
FOLDER = "checkpoints"
BEST = "best"  # in that folder: a link to the checkpoint that measured best on images that are not trained on
FORMAT = 1
FILES = ("weights.safetensors", "state.pt", "config.json")
FILE_BYTES = 1 << 36  # of a file, at most
_DTYPES = (torch.float32, torch.int64)  # of weights: parameters and buffers, and BatchNorm's counts
_HALVES = (torch.float16, torch.bfloat16)  # that an exported model may be stored in


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
        atomic_files.remove_folder(final)
    contents = {
        "weights.safetensors": safetensors.torch.save({name: _flat(tensor) for name, tensor in weights.items()}),
        "state.pt": _serialise(state),
        "config.json": json.dumps(config.to_json(origins), indent=1).encode(),
    }
    manifest = {
        "format": FORMAT,
        "step": step,
        "system": config.system,
        "files": {name: {"bytes": len(data), "sha256": digest(data)} for name, data in contents.items()},
    }
    with atomic_files.whole_folder(final) as temporary:
        for name, data in contents.items():
            _write(temporary / name, data)
        _write(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
    _prune(folder, step, keep)
    return final


def mark_best(path: Path, keep: int = 3) -> None:
    """Make checkpoints/best a link to the run's newest checkpoint, `path`; `save` then keeps it. Raises OSError.

    keep: as for `save`; the one that was the best before is kept no longer
    """
    atomic_files.link(path.parent / BEST, path.name)
    _prune(path.parent, _step_of(path), keep)


def best(run_dir: Path) -> Path | None:
    """The checkpoint of a run that measured best, or None where there is none that is intact.

    Where it is damaged or gone, one line on standard error says so.
    """
    marked = Path(run_dir) / FOLDER / BEST
    if not os.path.lexists(marked):
        return None
    if wrong := problem(marked):
        print(f"skipping {marked}: {wrong}; taking the newest checkpoint instead", file=sys.stderr)
        return None
    # the name of the step's own folder, where it is a link to that
    return marked.parent / os.readlink(marked) if marked.is_symlink() else marked


def load_best(path: Path) -> Checkpoint:
    """Read a checkpoint folder, or of a run folder its best checkpoint, else its newest good one. Raises InputError."""
    return load(best(path) or path)


def latest(run_dir: Path, *, tell: bool = True) -> Path | None:
    """The newest checkpoint whose files all match its manifest, or None when the run has no checkpoint.

    tell: print each damaged checkpoint that is passed over. Raises InputError when all are damaged.
    """
    return _newest_good(Path(run_dir), _checked, tell)


def problem(path: Path) -> str | None:
    """What is wrong with the checkpoint folder `path`; None when it is intact. Unchanged files are hashed only once."""
    try:
        _checked(path)
    except _Damaged as error:
        return str(error)
    return None


def _checked(path: Path) -> Path:
    """The checkpoint folder `path`, whose files all match its manifest. Raises _Damaged."""
    _manifest(path, _stamps(path))
    return path


@dataclass(frozen=True)
class _Manifest:
    """What a manifest.json says that all files of its folder bear out."""

    step: int
    system: str


class _Damaged(Exception):
    """A file of a checkpoint is missing, cannot be read, or is not what the manifest lists; the message says which."""


def _stamps(path: Path) -> tuple[tuple[int, ...] | None, ...]:
    """The stamps of the files of a checkpoint folder."""
    return tuple(_stamp(path / name) for name in ("manifest.json", *FILES))


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Size, times of change and inode of a file: some change when it is written again. None for a missing file."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@lru_cache(maxsize=256)
def _manifest(path: Path, stamps: tuple[tuple[int, ...] | None, ...]) -> _Manifest:
    """The manifest of a checkpoint folder whose files have these stamps, and match it. Raises _Damaged.

    What raises is not kept: a file that could not be read may be readable the next time.
    """
    try:
        manifest = read_json(path / "manifest.json")
    except InputError as error:
        raise _Damaged(str(error).removeprefix(f"{path}{os.sep}")) from None
    try:
        form, step, system, files = (manifest[name] for name in ("format", "step", "system", "files"))
        if form != FORMAT:
            raise _Damaged(f"its format is {str(form)[:40]}, this version reads {FORMAT}")
        if type(step) is not int or not 0 <= step < 1 << 53 or type(system) is not str:
            raise _Damaged("manifest.json is damaged: its step or its system is no such thing")
        if others := sorted(set(files) - set(FILES)):
            raise _Damaged(f"its manifest lists {others[0][:80]!r}, which no checkpoint has")
        if missing := [name for name in FILES if name not in files]:
            raise _Damaged(f"its manifest does not list {missing[0]}")
        for name in FILES:
            _check_file(path / name, files[name]["bytes"], files[name]["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _Damaged("manifest.json is damaged") from None
    return _Manifest(step, system)


def _check_file(file: Path, size: int, sha256: str) -> None:
    """Raise _Damaged for a file that has not this size and digest, or cannot be read."""
    data = _content(file)
    if len(data) != size:
        raise _Damaged(f"{file.name} is truncated ({len(data)} of {str(size)[:40]} bytes)")
    if digest(data) != sha256:
        raise _Damaged(f"{file.name} was altered (its SHA-256 differs from the manifest)")


def _content(file: Path) -> bytes:
    """The bytes of a file of a checkpoint. Raises _Damaged."""
    if not file.exists():
        raise _Damaged(f"{file.name} is missing")
    try:
        return read_input(file, FILE_BYTES)
    except UnreadableFile as error:
        raise _Damaged(f"{file.name}: {error}") from None


def read_config(folder: Path) -> TrainConfig:
    """The configuration that config.json of a checkpoint folder or a run folder holds; no other file is read.

    Raises InputError when the file is not the configuration of a run, or cannot be read.
    """
    file = folder / "config.json"
    try:
        return config_from_json(read_json(file))
    except InputError as error:
        raise InputError(str(error) if str(file) in str(error) else f"{file}: {error}") from None


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint folder, or the newest good checkpoint of a run folder, to the CPU.

    Of a run folder, each checkpoint that is passed over is named on standard error.
    Raises InputError when there is no checkpoint, or when it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give a run folder or one of its checkpoints")
    if (path / "manifest.json").exists() or path.name.startswith("step_"):
        try:
            return _read(path)
        except _Damaged as error:
            raise InputError(f"the checkpoint {path} cannot be used: {error}; use another one of the run") from None
    saved = _newest_good(path, _read, tell=True)
    if saved is None:
        raise InputError(f"{path} holds no checkpoint; give a run folder or one of its checkpoints")
    return saved


def _newest_good(run_dir: Path, read: Callable[[Path], T], tell: bool) -> T | None:
    """What `read` makes of the newest checkpoint for which it does not raise _Damaged; None for a run without any.

    tell: print each checkpoint that is passed over. Raises InputError when all are damaged.
    """
    passed: list[tuple[Path, str]] = []
    for path in _newest_first(run_dir):
        try:
            found = read(path)
        except _Damaged as error:
            passed.append((path, str(error)))
            continue
        for damaged, wrong in passed if tell else ():
            print(f"skipping the damaged checkpoint {damaged}: {wrong}", file=sys.stderr)
        return found
    if passed:
        (newest, wrong), *_ = passed
        about = f"{newest.name}: {wrong}"
        raise InputError(f"every checkpoint in {run_dir} is damaged ({about}); start a new run in another folder")
    return None


def _newest_first(run_dir: Path) -> Iterator[Path]:
    """The checkpoint folders of a run, those of later steps first. Raises OSError where they cannot be listed."""
    try:
        names = atomic_files.contents(run_dir / FOLDER)
    except NotADirectoryError:
        return
    folders = [run_dir / FOLDER / name for name in names if name.startswith("step_")]
    yield from sorted(folders, key=_step_of, reverse=True)


def _read(path: Path) -> Checkpoint:
    """Read a checkpoint folder whose files all match its manifest. Raises _Damaged."""
    manifest = _manifest(path, _stamps(path))
    try:
        weights = parse_weights(_content(path / "weights.safetensors"))
        state = _parse_state(_content(path / "state.pt"))
        config = read_config(path)
    except InputError as error:
        raise _Damaged(str(error).removeprefix(f"{path}{os.sep}")) from None
    if manifest.system != config.system:
        names = f"{manifest.system[:80]!r} in manifest.json, {config.system!r} in config.json"
        raise _Damaged(f"its system is {names}")
    return Checkpoint(path, manifest.step, weights, state, config)


def parse_weights(data: bytes, *, halves: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file, of the dtypes that weights have, all finite. Raises InputError.

    halves: accept float16 and bfloat16 too, which become float32
    """
    try:
        weights = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"the weights are no whole safetensors file ({' '.join(str(error).split())[:200]})") from None
    if halves:
        weights = {name: tensor.float() if tensor.dtype in _HALVES else tensor for name, tensor in weights.items()}
    for name, tensor in weights.items():
        if tensor.dtype not in _DTYPES:
            raise InputError(f"the weights {name} are {str(tensor.dtype).removeprefix('torch.')}, not float32")
        if not torch.isfinite(tensor).all():
            raise InputError(f"the weights {name} are not finite (NaN or infinite)")
    return weights


def _parse_state(data: bytes) -> dict[str, Any]:
    """The content of a state.pt. Runs no code of it. Raises InputError for what `_serialise` did not write."""
    try:
        # torch.save compresses nothing: so what is read takes no more memory than the file
        if any(member.compress_type != zipfile.ZIP_STORED for member in zipfile.ZipFile(io.BytesIO(data)).infolist()):
            raise InputError("state.pt is compressed, which no checkpoint is")
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception:  # bytes that torch.save has not written make it raise anything
        raise InputError("state.pt is not the state of a Kiln run") from None
    if not isinstance(state, dict):
        raise InputError("state.pt is not the state of a Kiln run")
    return state


def _step_of(path: Path) -> int:
    """The step in a checkpoint folder's name; -1 when it holds no number."""
    digits = path.name.removeprefix("step_")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 20 else -1


def _prune(folder: Path, newest: int, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints up to the step `newest`; one line says where that fails."""
    # a checkpoint after `newest` can only be a damaged one that a resume skipped: it is neither counted nor removed
    old = sorted(path for path in folder.glob("step_*") if 0 <= _step_of(path) <= newest)
    marked = folder / BEST
    for path in old[:-keep]:
        if marked.is_symlink() and os.readlink(marked) == path.name:
            continue
        try:
            atomic_files.remove_folder(path)
        except OSError as error:
            print(f"the old checkpoint {path} could not be removed ({error.strerror})", file=sys.stderr)


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


def digest(data: bytes) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with atomic_files.naming(path):
        path.write_bytes(data)
