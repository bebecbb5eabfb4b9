"""`python -m engine.data validate PATH` checks a data set; `... avatars OUT -n N` writes the embedded one."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from engine import cli
from engine.errors import InputError
from engine.host.atomic_files import write_text


@dataclass
class Validate:
    """Decode every image of a folder or zip and report what training would use."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """A folder (searched with its subfolders) or a zip, of images or of any layout that docs/data.md describes."""
    json: Path | None = None
    """Write the whole report to this JSON file too."""
    quarantine: Path | None = None
    """Write the list of files left out (CSV: file, reason) here instead of into the cache folder."""
    fresh: bool = False
    """Decode everything again, also files that have not changed since the last time."""


@dataclass
class Avatars:
    """Write the embedded avatars as image files: OUT/photo and OUT/game, each with landmarks."""

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """A new folder."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 100
    """How many identities."""
    size: int = 128
    """Side of the images in pixels."""
    seed: int = 0
    """Another seed gives other people."""
    frames: int = 1
    """Frames of each identity (a clip when more than one)."""


def validate(arguments: Validate) -> int:
    """Print the report; the exit status is 0. Raises InputError when no image can be used."""
    # here, so that --help and wrong usage need neither Pillow nor numpy
    from engine.data.inventory import as_text, inventory
    from engine.data.reading import read_set
    from engine.data.validation import default_quarantine_file

    images = read_set(arguments.path, fresh=arguments.fresh)
    facts = inventory(images)
    print(as_text(facts))
    if arguments.json:
        write_text(arguments.json, json.dumps(facts, indent=1) + "\n")
    if images.quarantined or arguments.quarantine:
        place = arguments.quarantine or default_quarantine_file(images.source)
        try:
            images.write_quarantine(place)
            print(f"  list         {place}")
        except OSError as error:
            if arguments.quarantine:
                raise
            print(f"  list         not written ({place}: {error.strerror}); --quarantine names another file")
    if not len(images):
        raise InputError(f"no usable image in {arguments.path}; the report above says why")
    if images.quarantined:
        count = len(images.quarantined)
        print(f"kiln data: warning: {count:,} of {count + len(images):,} files are quarantined", file=sys.stderr)
    return 0


def avatars(arguments: Avatars) -> int:
    """Render the avatars and write them. Raises InputError for numbers out of range."""
    for name in ("n", "size", "frames"):
        if getattr(arguments, name) < 1:
            raise InputError(f"{name} must be at least 1, not {getattr(arguments, name)}")
    from engine.data import avatars as renderer  # here, so that --help and wrong usage need no Pillow

    renderer.write(arguments.out, arguments.n, arguments.size, arguments.seed, frames=arguments.frames)
    print(f"{arguments.out}: {arguments.n:,} identities, {arguments.frames} frames each, in photo/ and game/")
    return 0


_ACTIONS: dict[str, tuple[type, Callable[..., int]]] = {"validate": (Validate, validate), "avatars": (Avatars, avatars)}
_USAGE = """usage: kiln data validate PATH [--json FILE] [--quarantine FILE] [--fresh]
       kiln data avatars OUT -n N [--size 128] [--seed 0] [--frames 1]

validate  decode every image of a folder or zip and report what training would use
avatars   write the embedded avatars as image files with landmarks
"""


def main(argv: list[str]) -> int:
    """Run one of the two actions."""
    if argv[:1] in (["-h"], ["--help"]):
        print(_USAGE, end="")
        return 0
    if not argv or argv[0] not in _ACTIONS:
        given = f"unknown action {argv[0]!r}" if argv else "no action given"
        raise InputError(f"{given}: use `validate PATH` or `avatars OUT -n N` (see kiln data --help)")
    config, action = _ACTIONS[argv[0]]
    return action(cli.parse(config, argv[1:], prog=f"kiln data {argv[0]}", description=config.__doc__ or ""))


if __name__ == "__main__":
    cli.run("data", main)
