"""Writes images that a trained generator makes from noise, interpolations between two noises, and a contact sheet."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from engine.data.pixel_values import finite, picture_pixels
from engine.errors import InputError
from engine.host import atomic_files
from engine.host.environment import pick_device
from engine.inference import marking
from engine.inference.trained import load_trained
from engine.systems.generation import TrainedGenerator
from engine.systems.kinds import GENERATE

SHEET = 400  # images on the contact sheet, at most
GAP = 2  # pixels between two images of a sheet
WRITTEN = ("sample_*.png", "grid.png", "interpolation_*.png", "interpolation_*.gif")
MILLISECONDS = 80  # that an animation shows each frame


@dataclass
class SampleOptions:
    """The options of `kiln sample`."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run folder (its best checkpoint, or its newest good one), checkpoint folder, exported folder, or the name of a
    shipped model (`kiln models`)."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder to write, new or empty."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """How many images."""
    interpolations: int = 0
    """How many interpolations between two noises; each becomes a strip and an animation."""
    frames: int = 12
    """Images of an interpolation, including both ends."""
    seed: int = 0
    """Seed of the noise; the same seed gives the same images."""
    weights: Literal["ema", "raw"] = "ema"
    """ema: the moving average of the generator's weights; raw: the last weights."""
    batch_size: int = 64
    """Images per pass; the images do not depend on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes cuda when there is one."""
    eager: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the plain PyTorch references instead of the fused operators."""

    def check(self) -> None:
        """Raise InputError for values that cannot work."""
        for name, least in (("n", 0), ("interpolations", 0), ("frames", 2), ("seed", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        if not self.n and not self.interpolations:
            raise InputError("nothing to do: --n 0 and no --interpolations")
        atomic_files.require_free(self.output, *WRITTEN)


def stream(seed: int, which: int) -> torch.Generator:
    """The random generator of the images' noise (which=0) or of the interpolations' ends (1).

    No two pairs of seed and `which` share a generator seed.
    """
    return torch.Generator().manual_seed(2 * seed + which)


def images(model: TrainedGenerator, noise: Tensor, batch_size: int, device: torch.device) -> Iterator[Image.Image]:
    """The picture that the model makes of each row of noise (N, h)."""
    for part in noise.split(batch_size):
        generated = model(part.to(device))
        for pixels in picture_pixels(finite(generated)):
            picture = Image.fromarray(pixels)
            yield picture.convert("L") if generated.shape[1] == 1 else picture


def sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """One picture of many pictures of one size: `columns` in a row, with white between them."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    size = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    page = Image.new(pictures[0].mode, size, "white")
    for index, picture in enumerate(pictures):
        page.paste(picture, (index % columns * (width + GAP), index // columns * (height + GAP)))
    return page


def write_samples(model: TrainedGenerator, options: SampleOptions, device: torch.device, description: str) -> None:
    """Write sample_00000.png, ... and grid.png, the contact sheet of the first SHEET samples."""
    noise, shown = model.noise(options.n, stream(options.seed, 0)), []
    samples = images(model, noise, options.batch_size, device)
    for index, picture in enumerate(tqdm(samples, total=options.n, unit=" images", disable=None, dynamic_ncols=True)):
        marking.save(picture, options.output / f"sample_{index:05d}.png", description)
        if index < SHEET:
            shown.append(picture)
    page = sheet(shown, math.ceil(math.sqrt(len(shown))))
    marking.save(page, options.output / "grid.png", description)


def write_interpolations(
    model: TrainedGenerator, options: SampleOptions, device: torch.device, description: str
) -> None:
    """Write each interpolation as a strip of frames (interpolation_00.png) and as a GIF that runs there and back."""
    ends = model.noise(2 * options.interpolations, stream(options.seed, 1))
    for index, (first, last) in enumerate(zip(ends[::2], ends[1::2], strict=True)):
        way = model.between(first, last, options.frames)
        frames = list(images(model, way, options.batch_size, device))
        path = options.output / f"interpolation_{index:02d}.png"
        marking.save(sheet(frames, len(frames)), path, description)
        there_and_back = [*frames, *frames[-2:0:-1]]
        animation = marking.encode_animation(there_and_back, MILLISECONDS, description)
        atomic_files.write_bytes(path.with_suffix(".gif"), animation)


def sample_files(options: SampleOptions) -> str:
    """Write the images that the options ask for; returns one line that says what was written. Raises InputError."""
    options.check()
    device = pick_device(options.device)
    fused, ema = not options.eager, options.weights == "ema"
    trained = load_trained(options.model, device, fused, ema, kind=GENERATE)
    model, config = trained.module, trained.config
    description = f"Synthetic image: generated by a neural network (Kiln {config.system}) from random numbers"
    with atomic_files.filling(options.output, *WRITTEN):
        if options.n:
            write_samples(model, options, device, description)
        if options.interpolations:
            write_interpolations(model, options, device, description)
    what = [f"{options.n} images"] if options.n else []
    what += [f"{options.interpolations} interpolations"] if options.interpolations else []
    return f"{' and '.join(what)} at {config.resolution}x{config.resolution}: {options.output}"
