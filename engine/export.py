"""`kiln export RUN_OR_CHECKPOINT OUTPUT`: writes a trained generator in the layout of model hubs, to publish it.

OUTPUT holds config.json, model.safetensors, README.md (a model card) and framing.json (engine.inference.exporting).
`engine.load`, `kiln refine`, `sample` and `reenact` accept such a folder in place of a run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from engine.cli import parse, run
from engine.inference.exporting import export

__all__ = ["export"]


@dataclass
class Arguments:
    """The options of `kiln export`."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_CHECKPOINT")]
    """Run folder (its best checkpoint, or its newest good one), checkpoint folder, or shipped model."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder to write, new or empty."""
    weights: Literal["ema", "raw"] = "ema"
    """ema: the moving average of the generator's weights; raw: the last weights."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """How the weights are stored; they are used in float32."""
    all_networks: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write other_networks.safetensors too: the networks that only a training needs, for `kiln train --init`."""


def main(argv: list[str]) -> int:
    """Export a trained generator."""
    arguments = parse(Arguments, argv, prog="kiln export", description="Export a trained generator to publish it.")
    export(
        arguments.model,
        arguments.output,
        ema=arguments.weights == "ema",
        dtype=arguments.dtype,
        all_networks=arguments.all_networks,
    )
    print(f"{arguments.output}: {', '.join(sorted(file.name for file in arguments.output.iterdir()))}")
    return 0


if __name__ == "__main__":
    run("export", main)
