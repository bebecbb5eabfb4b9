"""Lists the images that a command takes, and the file that it writes for each; for `kiln refine` and `kiln crop`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from engine.data.decoding.colour_profiles import Profile
from engine.data.layouts.sources import FolderSource, Source, is_image_name, open_source
from engine.errors import InputError
from engine.host.contained_paths import contained
from engine.host.terminal import printable
from engine.inference import marking


@dataclass(frozen=True)
class Item:
    """One image: its name in the source, and the file to write."""

    name: str
    target: Path


def list_work(path: Path, output: Path, kind: str, command: str) -> tuple[Source, list[Item]]:
    """The source of the images, and each image with the file to write. Raises InputError for paths that cannot work.

    path, output: INPUT and OUTPUT; kind, command: as of `plan` and `list_input`
    """
    source, names = list_input(path, output, command)
    single = is_single(path)
    items = plan(source, names, single, output, kind)
    if not single and output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder for the results")
    return source, items


def list_input(path: Path, output: Path | None, command: str) -> tuple[Source, list[str]]:
    """The source that INPUT names, and the names of its images. Raises InputError when there is none.

    output:  the folder to write, whose images are not listed; None where nothing is written
    command: what says which files are passed over, such as "kiln refine"
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if is_single(path):
        return FolderSource(path.parent), [path.name]
    source = open_source(path)
    names = [name for name in source.files() if is_image_name(name)]
    if output and isinstance(source, FolderSource):
        out = output.resolve()
        if out == path.resolve():
            raise InputError(f"OUTPUT is the same folder as INPUT ({path}): the originals are never overwritten")
        # results of an earlier run inside the input folder are not input
        names = [name for name in names if out not in (path / name).resolve().parents]
    for name, why in source.passed_over:
        say(f"{command}: skipped {name}: {why}")
    if not names:
        raise InputError(f"no image file in {path}; expected .jpg, .png, .webp, .bmp, .tif, .gif ...")
    return source, names


def is_single(path: Path) -> bool:
    """Whether INPUT is one image, whatever its suffix, and neither a folder nor a zip."""
    return path.is_file() and path.suffix.lower() != ".zip"


def plan(source: Source, names: Sequence[str], single: bool, output: Path, kind: str) -> list[Item]:
    """Each image with the file to write: the image's name below `output`, with the suffix of the format.

    single: INPUT is one image, and `output` may be a file name. kind: the option --format.
    Where two images would get the same name (a.bmp and a.png), the converted one keeps its old suffix too (a.bmp.png).
    Raises InputError when an output would overwrite an input.
    """
    if single and output.suffix and not output.is_dir():
        suffix = output.suffix.lower()
        if suffix not in marking.FORMATS:
            known = ", ".join(marking.FORMATS)
            raise InputError(f"{output}: cannot write {suffix} files; take one of {known}")
        items = [Item(names[0], output)]
    else:
        suffixes = {name: _suffix(name, kind) for name in names}
        kept = {name.casefold() for name in names if PurePosixPath(name).suffix == suffixes[name]}
        items, taken = [], set(kept)
        for name in names:
            target = PurePosixPath(name).with_suffix(suffixes[name])
            if PurePosixPath(name).suffix != suffixes[name]:
                if str(target).casefold() in taken:
                    target = PurePosixPath(name + suffixes[name])
                taken.add(str(target).casefold())
            items.append(Item(name, contained(output, str(target))))
    if isinstance(source, FolderSource):
        inputs = {(source.root / name).resolve() for name in names}
        for item in items:
            if item.target.resolve() in inputs:
                raise InputError(
                    f"{item.target} is one of the inputs, which are never overwritten; choose another OUTPUT"
                )
    return items


def _suffix(name: str, kind: str) -> str:
    """The suffix of an image's result in the format `kind`."""
    own = PurePosixPath(name).suffix
    if kind != "keep":
        # for the format jpg, .jpeg stays .jpeg
        return own if marking.FORMATS.get(own.lower()) == marking.FORMATS[f".{kind}"] else f".{kind}"
    return own if own.lower() in marking.FORMATS else ".png"


def counted(count: int) -> str:
    """So many images, in words."""
    return f"{count} image{'s' if count != 1 else ''}"


def say(line: str) -> None:
    """Print a line on standard error above the progress bar."""
    tqdm.write(printable(line), file=sys.stderr)


def say_profiles(profiles: Sequence[Profile], command: str) -> None:
    """Print how many images had a colour profile that leads to other colours, and how many one that cannot be used."""
    if converted := sum(profile.transform is not None for profile in profiles):
        say(f"{command}: note: converted to sRGB from other colour profiles: {counted(converted)}")
    if unusable := sum(not profile.usable for profile in profiles):
        say(f"{command}: note: read without their unusable colour profiles: {counted(unusable)}")
