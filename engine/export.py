"""`kiln export MODEL OUTPUT`: a trained generator as a folder to publish, in the layout of model hubs.

OUTPUT holds config.json, model.safetensors, README.md (a model card) and framing.json (engine.inference.publishing).
`engine.load`, `kiln refine`, `sample` and `reenact` take such a folder as they take a run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from engine.cli import parse, run
from engine.inference.publishing import export

__all__ = ["export"]


@dataclass
class Arguments:
    """What `kiln export` takes."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_CHECKPOINT")]
    """Run folder (its newest good checkpoint) or checkpoint folder."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder to write, new or empty."""
    weights: Literal["ema", "raw"] = "ema"
    """The moving average of the generator's weights, or the last ones."""


def main(argv: list[str]) -> int:
    """Export a trained generator."""
    arguments = parse(Arguments, argv, prog="kiln export", description="Export a trained generator to publish it.")
    export(arguments.model, arguments.output, ema=arguments.weights == "ema")
    print(f"{arguments.output}: {', '.join(sorted(file.name for file in arguments.output.iterdir()))}")
    return 0


if __name__ == "__main__":
    run("export", main)
