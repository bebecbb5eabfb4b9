"""Writes a trained generator as a folder to publish, in the layout of model hubs; engine.inference.exported reads it.

The folder holds config.json (the system and its values, no paths of this machine, and the SHA-256 of the weights),
model.safetensors (the weights of the module that `engine.load` gives), README.md (a model card) and framing.json (where
faces lie in the photos, for `kiln refine --face-crop`).
"""

import json
from pathlib import Path
from typing import Any

import safetensors.torch

from engine.checkpoint import digest
from engine.host import atomic_files
from engine.inference.exported import CONFIG, DIGEST, FORMAT, WEIGHTS
from engine.inference.faces import Framing
from engine.inference.trained import load_trained
from engine.systems.registry import system_class
from engine.version import __version__

CARD = "README.md"
_FILES = (CONFIG, CARD, Framing.FILE, WEIGHTS)
# fields of the configuration that describe the run, not the model
_LEFT_OUT = ("data", "synthetic", "out", "device", "threads")
_CARD = """---
library_name: kiln-engine
pipeline_tag: {task}
tags: [gan, face, {system}]
---

# {system}, {resolution}x{resolution}

Trained with Kiln (`kiln-engine`) {version}, {steps:,} steps; the weights are {which}.

```python
import engine, torch

model = engine.load("this folder")
{usage}
```

Images are (B, {channels}, {resolution}, {resolution}) in [-1, 1]. `kiln {command}` uses the model on files
and marks its results as synthetic in their metadata. `config.json` has every value it was trained with.
"""


def export(path: Path | str, folder: Path | str, *, ema: bool = True) -> Path:
    """Write the trained generator of a run or checkpoint to `folder`, which must be new or empty; returns the folder.

    ema: export the moving average of the generator's weights, else the last weights.
    After a failure or a kill the same call works again.
    Raises InputError when `path` holds no trained model or `folder` is not empty, OSError when it cannot be written.
    """
    path, folder = Path(path), Path(folder)
    atomic_files.require_free(folder, *_FILES)
    trained = load_trained(path, ema=ema)
    config = trained.config
    tensors = {name: tensor.contiguous() for name, tensor in trained.module.state_dict().items()}
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    saved = {name: entry["value"] for name, entry in config.to_json().items() if name not in _LEFT_OUT}
    head: dict[str, Any] = {"library": "kiln-engine", "version": __version__, "format": FORMAT, DIGEST: digest(weights)}
    kind = system_class(config.system).kind
    card = _CARD.format(
        task=kind.task,
        system=config.system,
        resolution=config.resolution,
        channels=config.channels,
        version=__version__,
        steps=config.steps,
        which="the generator's moving average" if ema else "the generator's last ones",
        usage=kind.usage,
        command=kind.command,
    )
    framing = Framing.of(path)
    with atomic_files.filling(folder, *_FILES):
        atomic_files.write_text(folder / CONFIG, json.dumps(head | {"config": saved}, indent=1) + "\n")
        atomic_files.write_text(folder / CARD, card)
        framing.write(folder)
        # written last, because a folder with this file counts as an exported one
        atomic_files.write_bytes(folder / WEIGHTS, weights)
    return folder
