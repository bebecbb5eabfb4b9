"""`kiln export MODEL OUTPUT`: a trained generator as a folder to publish, in the layout of model hubs.

OUTPUT holds config.json (the system and its values, no paths of this machine), model.safetensors (the weights of the
module that `engine.load` gives), README.md (a model card) and framing.json (where faces lie in the photos, for
`kiln refine --face-crop`). `engine.load`, `kiln refine`, `sample` and `reenact` take such a folder as they take a run.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from engine import __version__
from engine.cli import parse, run
from engine.config import TrainConfig
from engine.errors import InputError
from engine.host import atomic_files

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = 1
# what the kinds of systems do, in the words of model hubs
TASKS = {"refine": "image-to-image", "generate": "unconditional-image-generation", "drive": "image-to-image"}
# what describes the run rather than the model
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
_USAGE = {
    "refine": ("refined = model(images)", "refine"),
    "generate": ("images = model(model.noise(16, torch.Generator().manual_seed(0)))", "sample"),
    "drive": ("driven = model(images, points)  # points (B, K, 2) in pixels", "reenact"),
}


@dataclass
class Arguments:
    """What `kiln export` takes."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_CHECKPOINT")]
    """Run folder (its newest good checkpoint) or checkpoint folder."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder to write, new or empty."""
    weights: Literal["ema", "raw"] = "ema"
    """The moving average of the generator's weights, or the last ones."""


def is_exported(path: Path) -> bool:
    """Whether `path` is a folder that `export` wrote (or a copy of one)."""
    return (path / WEIGHTS).is_file()


def export(path: Path | str, folder: Path | str, *, ema: bool = True) -> Path:
    """Write the trained generator of a run or checkpoint to `folder`, which must be new or empty; returns it.

    ema: the moving average of the generator's weights, or the last ones. Raises InputError for what is no trained model
    and for a folder that holds something, OSError where it cannot be written.
    """
    import safetensors.torch

    from engine.inference.faces import Framing
    from engine.systems.registry import load_trained, system_class

    path, folder = Path(path), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; give a new one")
    model, config = load_trained(path, ema=ema)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    saved = {name: entry["value"] for name, entry in config.to_json().items() if name not in _LEFT_OUT}
    head: dict[str, Any] = {"library": "kiln-engine", "version": __version__, "format": FORMAT}
    kind = system_class(config.system).kind
    usage, command = _USAGE[kind]
    card = _CARD.format(
        task=TASKS[kind],
        system=config.system,
        resolution=config.resolution,
        channels=config.channels,
        version=__version__,
        steps=config.steps,
        which="the generator's moving average" if ema else "the generator's last ones",
        usage=usage,
        command=command,
    )
    atomic_files.write_text(folder / CONFIG, json.dumps(head | {"config": saved}, indent=1) + "\n")
    atomic_files.write_text(folder / CARD, card)
    Framing.of(path).write(folder)
    # last: what makes the folder an exported one
    atomic_files.write_bytes(folder / WEIGHTS, safetensors.torch.save(weights, metadata={"format": "pt"}))
    return folder


def read(folder: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """The configuration and the weights by name of an exported folder. Raises InputError when it is damaged."""
    import safetensors
    import safetensors.torch

    try:
        found = json.loads((folder / CONFIG).read_text())
        if found["format"] != FORMAT:
            raise InputError(f"{folder}: its format is {found['format']}, this version reads {FORMAT}")
        config = TrainConfig.from_json({name: {"value": value} for name, value in found["config"].items()})
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise InputError(f"{folder}: {Path(error.filename).name} is missing; export the model again") from None
    except (ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder} is no exported model: {error}; export it again") from None
    return config, weights


def main(argv: list[str]) -> int:
    """Export a trained generator."""
    arguments = parse(Arguments, argv, prog="kiln export", description="Export a trained generator to publish it.")
    export(arguments.model, arguments.output, ema=arguments.weights == "ema")
    print(f"{arguments.output}: {', '.join(sorted(file.name for file in arguments.output.iterdir()))}")
    return 0


if __name__ == "__main__":
    run("export", main)
