"""--init: a run starts from the weights of another one, of an exported folder or of a shipped model.

All networks take their weights; optimisers, k, histories and the order of the images start anew.
"""

import dataclasses
from pathlib import Path

from torch import Tensor

from engine import checkpoint
from engine.config import Origins, TrainConfig, flag, saved_fields, show
from engine.errors import InputError
from engine.inference import exported, shipped
from engine.systems.base import System, load_part

ORIGIN = "init"
SLOWER = 4  # a run that starts from trained weights takes this part of their learning rate
# what the command line or the preset says, not the model: where, how long, how often
_OWN = ("preset", "fused", "data", "synthetic", "split", "hold_out", "out", "init", "freeze_d", "steps", "seed",
        "device", "precision", "cuda_graph", "threads", "ranks", "loader", "lr_warmup", "eval_every", "eval_split",
        "best_by", "patience", "log_every", "sample_every", "checkpoint_every", "keep")  # fmt: skip


def read_config(model: str) -> TrainConfig:
    """The configuration of the model that --init names. Raises InputError."""
    path = _found(model)
    if exported.is_exported(path):
        return exported.read(path)[0]
    return checkpoint.load_best(path).config


def adopt(config: TrainConfig, model: TrainConfig, given: set[str], origins: Origins) -> TrainConfig:
    """The configuration with the values of the model: its networks, its losses and, slowed down, its learning rate.

    config: of the preset; given: the fields that the command line names, which keep their own values
    Updates `origins`. Raises InputError for another system, and for networks that the command line wants otherwise.
    """
    if type(config) is not type(model):
        raise InputError(f"--init: that model is of --system {model.system}, which cannot become {config.system}")
    taken = [name for name in saved_fields(type(model)) if name not in _OWN and name not in given]
    origins |= dict.fromkeys(taken, ORIGIN)
    values = {name: getattr(model, name) for name in taken}
    if "lr" in values:
        values["lr"] = model.lr / SLOWER
    return dataclasses.replace(config, **values)


def check(config: TrainConfig, model: TrainConfig) -> None:
    """Raise InputError where the networks of a complete configuration are not those of the model."""
    for name in type(config).FIXED:
        wanted, has = getattr(config, name), getattr(model, name)
        if name not in _OWN and wanted != has:
            raise InputError(
                f"--init: that model has {flag(name)} {show(has)}, which cannot become {show(wanted)}; leave "
                f"{flag(name)} out, or start without --init"
            )


def load(system: System, model: str) -> str:
    """Give the system the weights of the model; returns one line that says which networks have them.

    Raises InputError for a model whose files are damaged or of other networks.
    """
    path = _found(model)
    if exported.is_exported(path):
        _, generator = exported.read(path)
        weights = exported.read_others(path) | generator
        # an export has one version of the generator, which is both the start and the start of its average
        weights |= {name.replace(exported.PART, "ema", 1): tensor for name, tensor in generator.items()}
    else:
        stored = checkpoint.load_best(path)
        path, weights = stored.path, stored.weights
    return f"{path.name if path.parent == exported.SHIPPED else path}: {_give(system, weights, path)}"


def _give(system: System, weights: dict[str, Tensor], path: Path) -> str:
    """Load what the weights hold; which networks start from them, and which start anew."""
    parts = {name.partition(".")[0] for name in weights}
    networks = {**system.networks(), **system.averaged()}
    from_model = [name for name in networks if name in parts]
    for name in from_model:
        try:
            load_part(networks[name], weights, name)
        except InputError as error:
            raise InputError(f"--init {path}: {error}") from None
    text = f"weights of {', '.join(from_model)}"
    if anew := [name for name in networks if name not in parts]:
        text += f"; {', '.join(anew)} start{'s' * (len(anew) == 1)} from scratch, for it holds no weights of "
        text += "that" if len(anew) == 1 else "those"
    return text


def _found(model: str) -> Path:
    path = shipped.resolve(model)
    if not path.exists():
        raise InputError(f"--init {path} does not exist; give a run, a checkpoint, an export or a shipped model")
    return path
