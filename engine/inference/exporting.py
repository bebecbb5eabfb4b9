"""Writes a trained generator as a folder to publish, in the layout of model hubs; engine.inference.exported reads it.

The folder holds config.json (the system and its values, no paths of this machine, and the SHA-256 of the weights),
model.safetensors (the weights of the module that `engine.load` gives), README.md (a model card) and framing.json (where
faces lie in the photos, for `kiln refine --face-crop`); on demand also other_networks.safetensors, what only a training
needs, for `kiln train --init`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from engine import checkpoint
from engine.checkpoint import digest
from engine.errors import InputError
from engine.host import atomic_files
from engine.inference import shipped
from engine.inference.exported import (
    CONFIG,
    DIGEST,
    FORMAT,
    OTHERS,
    OTHERS_DIGEST,
    WEIGHTS,
    is_exported,
    read_others,
)
from engine.inference.faces import Framing
from engine.inference.trained import load_trained
from engine.systems.registry import system_class
from engine.version import __version__

CARD = shipped.CARD
_FILES = (CONFIG, CARD, Framing.FILE, OTHERS, WEIGHTS)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# fields of the configuration that describe the run, not the model; paths of files with weights are of the run too
_LEFT_OUT = ("data", "synthetic", "out", "device", "threads", "vgg", "vgg_digest", "feature_weights")
_CARD = """---
library_name: kiln-engine
pipeline_tag: {task}
tags: [gan, face, {system}]
---

# {system}, {resolution}x{resolution}

Trained with Kiln (`kiln-engine`) {version}{trained}; the weights are {which}.

```python
import engine, torch

model = engine.load("this folder")
{usage}
```

Images are (B, {channels}, {resolution}, {resolution}) in [-1, 1]. `kiln {command}` uses the model on files
and marks its results as synthetic in their metadata. `config.json` has every value it was trained with.
"""


def export(
    path: Path | str, folder: Path | str, *, ema: bool = True, dtype: str = "fp32", all_networks: bool = False
) -> Path:
    """Write the trained generator of a run or checkpoint to `folder`, which must be new or empty; returns the folder.

    ema:          export the moving average of the generator's weights, else the last weights
    dtype:        "fp32", "fp16" or "bf16", in which the weights are stored; they are used in float32
    all_networks: write the networks that only a training needs too, which `kiln train --init` goes on with
    After a failure or a kill the same call works again.
    Raises InputError when `path` holds no trained model, when its weights do not fit into fp16 or `folder` is not
    empty, OSError when it cannot be written.
    """
    path, folder = shipped.resolve(path), Path(folder)
    atomic_files.require_free(folder, *_FILES)
    trained = load_trained(path, ema=ema)
    config = trained.config
    weights = _stored(trained.module.state_dict(), dtype)
    others = _stored(_others(trained.path), dtype) if all_networks else None
    saved = {name: entry["value"] for name, entry in config.to_json().items() if name not in _LEFT_OUT}
    if saved["init"] not in shipped.names():  # a path, then
        del saved["init"]
    head: dict[str, Any] = {"library": "kiln-engine", "version": __version__, "format": FORMAT, DIGEST: digest(weights)}
    head |= {OTHERS_DIGEST: digest(others)} if others else {}
    kind = system_class(config.system).kind
    card = _CARD.format(
        task=kind.task,
        system=config.system,
        resolution=config.resolution,
        channels=config.channels,
        version=__version__,
        trained="" if trained.step is None else f", {trained.step:,} steps",
        which="the generator's moving average" if ema else "the generator's last ones",
        usage=kind.usage,
        command=kind.command,
    )
    framing = Framing.of(path)
    with atomic_files.filling(folder, *_FILES):
        atomic_files.write_text(folder / CONFIG, json.dumps(head | {"config": saved}, indent=1) + "\n")
        atomic_files.write_text(folder / CARD, card)
        framing.write(folder)
        if others:
            atomic_files.write_bytes(folder / OTHERS, others)
        # written last, because a folder with this file counts as an exported one
        atomic_files.write_bytes(folder / WEIGHTS, weights)
    return folder


def _others(path: Path) -> dict[str, Tensor]:
    """The networks of a checkpoint or an exported folder but the generator and its average. Raises InputError."""
    if is_exported(path):
        others = read_others(path)
    else:
        weights = checkpoint.load(path).weights
        others = {name: tensor for name, tensor in weights.items() if not name.startswith(("generator.", "ema."))}
    if not others:
        raise InputError(f"{path} holds only the generator; leave out --all-networks")
    return others


def _stored(weights: Mapping[str, Tensor], dtype: str) -> bytes:
    """The bytes of a file of weights in a dtype. Raises InputError for weights that it cannot hold."""
    kind = DTYPES[dtype]
    stored = {name: (t.to(kind) if t.is_floating_point() else t).contiguous() for name, t in weights.items()}
    for name, tensor in stored.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"the weights {name} are too large for {dtype}; take bf16 or fp32")
    return safetensors.torch.save(stored, metadata={"format": "pt"})
