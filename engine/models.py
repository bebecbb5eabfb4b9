"""`kiln models [NAME]`: lists the trained models that Kiln ships, or prints the model card of one of them."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from engine.cli import parse, run
from engine.inference import exported, shipped


@dataclass
class Arguments:
    """The options of `kiln models`."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = ""
    """The model whose card to print; none lists all of them."""


def listing() -> str:
    """A line for each shipped model: its name, its system and resolution, the size of its files, what it does."""
    lines = []
    for name in shipped.names():
        folder = exported.SHIPPED / name
        config, _ = exported.read(folder)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        about = shipped.summary(name)
        lines.append(f"{name:<14} {config.system:<8} {config.resolution}x{config.resolution}  {size:4.1f} MB  {about}")
    if not lines:
        return "no trained model comes with this version of Kiln"
    use = "use a name in place of a run: kiln refine NAME INPUT OUTPUT; its card: kiln models NAME"
    return "\n".join([*lines, "", use])


def main(argv: list[str]) -> int:
    """List the shipped models, or print the card of one."""
    what = "List the trained models that Kiln ships, or print the model card of one of them."
    arguments = parse(Arguments, argv, prog="kiln models", description=what)
    print(shipped.card(arguments.name).rstrip() if arguments.name else listing())
    return 0


if __name__ == "__main__":
    run("models", main)
