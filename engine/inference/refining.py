"""Refines images of any size and format: reads each, places it in the network's square, refines it, and saves it."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from engine.data.decoding.colour_profiles import Profile
from engine.data.decoding.plain_images import BadImage
from engine.data.decoding.stored_squares import unlike_displayed
from engine.data.landmarks import POINTS
from engine.data.layouts.sources import FolderSource, Source
from engine.data.layouts.which_layout import list_images
from engine.data.pixel_values import network_input, result_pixels
from engine.errors import InputError
from engine.host.environment import pick_device
from engine.host.input_files import UnreadableFile
from engine.inference import marking, pictures, shipped
from engine.inference.faces import FaceFinder, Framing
from engine.inference.picture_files import Item, counted, list_work, say, say_profiles
from engine.inference.trained import Trained, load_trained
from engine.systems.kinds import REFINE


@dataclass
class RefineOptions:
    """The options of `kiln refine`."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run folder (its best checkpoint, or its newest good one), checkpoint folder, exported folder, or the name of a
    shipped model (`kiln models`)."""
    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """Image, folder of images or zip of images."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder to write; for a single image, a folder or a file name."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """For images that are not square: crop takes the central square (as in training), pad takes the whole image and
    repeats its border (cut off again in the result), stretch squeezes the whole image (--original-size undoes it)."""
    face_crop: tyro.conf.FlagCreatePairsOff[bool] = False
    """Frame the largest face as in the model's photos, and repeat the border where the frame reaches beyond the image
    (needs OpenCV); --fit applies to images without a face."""
    original_size: tyro.conf.FlagCreatePairsOff[bool] = False
    """Resize the result from the network's resolution to the size of the part of the image that was refined."""
    format: Literal["keep", "png", "jpg", "webp"] = "keep"
    """Format of the results; keep turns formats without metadata (bmp, gif, ppm ...) into png."""
    weights: Literal["ema", "raw"] = "ema"
    """ema: the moving average of the generator's weights; raw: the last weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes cuda when there is one."""
    batch_size: int = 16
    """Images per pass."""
    eager: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the plain PyTorch references instead of the fused operators."""

    def check(self) -> None:
        """Raise InputError for a batch size that cannot work."""
        if self.batch_size < 1:
            raise InputError(f"--batch-size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True)
class Prepared:
    """An image ready for the network.

    pixels:    (C, R, R) uint8
    placement: which part of the image lies where in the square
    landmarks: (68, 2) float32 in pixels of R, for a model that needs them
    remark:    what the user should know about this image, or ""
    profile:   the colour profile of the image's file; None where it has none
    """

    pixels: np.ndarray
    placement: pictures.Placement
    landmarks: np.ndarray | None
    remark: str
    profile: Profile | None


class Skipped(Exception):
    """One image cannot be refined; the message says why."""


def find_landmarks(source: Source) -> dict[str, np.ndarray]:
    """Name of an image -> its landmarks (68, 2), from manifest.csv and landmarks_68.npy.

    For a folder named images, the files may lie in the folder above. Raises InputError when there are no landmarks.
    """
    landmarks = _face_landmarks(source)
    if not landmarks and isinstance(source, FolderSource) and source.root.resolve().name == "images":
        above = _face_landmarks(FolderSource(source.root.resolve().parent))
        landmarks = {name.removeprefix("images/"): points for name, points in above.items()}
    if not landmarks:
        raise InputError(
            f"this model was trained with landmarks: {source.root} needs a manifest.csv with the column landmarks_row "
            "and a landmarks_68.npy beside the images"
        )
    return landmarks


def _face_landmarks(source: Source) -> dict[str, np.ndarray]:
    """The landmarks that the source lists; none unless they are the 68 of a face."""
    listing = list_images(source)
    return listing.landmarks if listing.points == POINTS else {}


class Preparer:
    """Reads images and places them in the network's square."""

    def __init__(self, source: Source, options: RefineOptions, resolution: int, channels: int, landmarks: bool) -> None:
        self._source, self._fit = source, options.fit
        self._resolution, self._channels = resolution, channels
        self._landmarks = find_landmarks(source) if landmarks else None
        self._finder = None
        if options.face_crop:
            self._finder, self._framing = FaceFinder(), Framing.of(shipped.resolve(options.model))

    def __call__(self, name: str) -> Prepared:
        """The image of that name, ready for the network. Raises Skipped when it cannot be refined."""
        try:
            image, header = pictures.read(self._source.read(name))
        except (BadImage, UnreadableFile) as error:
            raise Skipped(str(error)) from error
        remarks = [f"{header.frame} refined"] if header.frame else []
        window = None
        if self._finder:
            window = self._finder.portrait(np.asarray(image), self._framing)
            if window is None:
                remarks.append(f"no face found, treated by --fit {self._fit}")
        placement = pictures.place(image.size, self._resolution, self._fit, window)
        points = None
        if self._landmarks is not None:
            if name not in self._landmarks:
                raise Skipped("no landmarks in manifest.csv, which this model needs")
            if why := unlike_displayed(self._landmarks[name], image.size, header.orientation):
                raise Skipped(why)
            points = placement.landmarks(self._landmarks[name])
        pixels = pictures.to_square(image, placement, self._resolution, self._channels)
        return Prepared(pixels, placement, points, "; ".join(remarks), header.profile)


def batches(items: Sequence[Item], prepare: Preparer, size: int) -> Iterator[list[tuple[Item, Prepared | Skipped]]]:
    """The prepared images in lists of up to `size`; a thread prepares the next list while the caller refines one."""

    def attempt(item: Item) -> tuple[Item, Prepared | Skipped]:
        try:
            return item, prepare(item.name)
        except Skipped as reason:
            return item, reason

    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead: Future | None = None
        for chunk in [*chunks, None]:
            following = None
            if chunk is not None:
                following = reader.submit(lambda chunk=chunk: [attempt(item) for item in chunk])
            if ahead is not None:
                yield ahead.result()
            ahead = following


def refine(model: torch.nn.Module, prepared: Sequence[Prepared], device: torch.device) -> np.ndarray:
    """The refined images of a batch, (B, C, R, R) uint8."""
    images = network_input(np.stack([one.pixels for one in prepared]), device)
    landmarks = None
    if prepared[0].landmarks is not None:
        landmarks = torch.from_numpy(np.stack([one.landmarks for one in prepared])).to(device)
    with torch.inference_mode():
        return result_pixels(model(images, landmarks))


def refine_files(options: RefineOptions) -> str:
    """Refine what the options name, file by file; returns one line that says what was done.

    Raises InputError for options that cannot work, and after the last image when some could not be refined.
    """
    options.check()
    device = pick_device(options.device)
    source, items = list_work(options.input, options.output, options.format, "kiln refine")
    fused, ema = not options.eager, options.weights == "ema"
    trained = load_trained(options.model, device, fused, ema, kind=REFINE)
    config = trained.config
    prepare = Preparer(source, options, config.resolution, config.channels, trained.module.needs_landmarks)
    skipped, profiles = len(source.passed_over), []
    with tqdm(total=len(items), unit=" images", disable=None, dynamic_ncols=True) as progress:
        for batch in batches(items, prepare, options.batch_size):
            skipped += refine_batch(batch, trained, options.original_size)
            profiles += [image.profile for _, image in batch if isinstance(image, Prepared) and image.profile]
            progress.update(len(batch))
    say_profiles(profiles, "kiln refine")
    total = len(items) + len(source.passed_over)
    done = total - skipped
    if skipped:
        rest = f"the other {done} are in {options.output}" if done else "nothing was written"
        raise InputError(f"{skipped} of {total} images could not be refined (named above); {rest}")
    side = config.resolution
    return f"{counted(done)} refined at {side}x{side}: {options.output}"


def refine_batch(batch: Sequence[tuple[Item, Prepared | Skipped]], trained: Trained, original_size: bool) -> int:
    """Refine and save the images of a list that `batches` gave; returns how many of them were skipped."""
    for item, result in batch:
        if isinstance(result, Skipped):
            say(f"kiln refine: skipped {item.name}: {result}")
        elif result.remark:
            say(f"kiln refine: note: {item.name}: {result.remark}")
    ready = [(item, result) for item, result in batch if isinstance(result, Prepared)]
    refined = refine(trained.module, [image for _, image in ready], trained.device) if ready else ()
    description = f"Synthetic image: generated by a neural network (Kiln {trained.config.system}) from an input image"
    for (item, image), pixels in zip(ready, refined, strict=True):
        picture = pictures.from_square(pixels, image.placement, original_size=original_size)
        marking.save(picture, item.target, description)
    return len(batch) - len(ready)
